// A fixed split of a range over threads of our own (torch brings an OpenMP pool; a second one would
// fight it). Threads live for one call, so short ranges stay on the caller's.
#pragma once

#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fastddpm {

// Calls body(begin, end) on pieces of [0, total), each of at least `grain`, `threads` at most.
template <typename Body>
void parallel(int64_t total, int64_t grain, int32_t threads, const Body& body) {
  int64_t pieces = total / grain < threads ? total / grain : threads;
  if (pieces < 1) pieces = 1;
  std::vector<std::thread> workers;
  int64_t begin = 0;
  try {
    workers.reserve(pieces - 1);
    for (int64_t piece = 1; piece < pieces; ++piece) {
      const int64_t end = total * piece / pieces;
      workers.emplace_back([&body, begin, end] { body(begin, end); });
      begin = end;
    }
  } catch (const std::system_error&) {
    // No more threads to be had: this one does the rest.
  } catch (const std::bad_alloc&) {
  }
  body(begin, total);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace fastddpm
