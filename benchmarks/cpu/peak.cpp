// The most multiply-adds that the machine does: independent chains of them, all in registers.
//
//     a_i <- a_i m + s     2 FLOP a lane; CHAINS chains hide the latency of each
//
// Built by peak.py for the instruction set of the engine, with VECTOR_BYTES its vectors' width.
#include <time.h>

#include <chrono>
#include <thread>
#include <vector>

namespace {

typedef float vector __attribute__((vector_size(VECTOR_BYTES)));
constexpr int LANES = VECTOR_BYTES / 4, CHAINS = 12;
constexpr long TURNS = 1 << 14;

using wall = std::chrono::steady_clock;

struct Run {
  double flop;
  double seconds;  // that this thread had a processor
};

vector filled(float value) { return value - vector{}; }

double thread_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Run run_until(wall::time_point end) {
  vector a[CHAINS];
  for (int i = 0; i < CHAINS; ++i) a[i] = filled(static_cast<float>(i));
  vector m = filled(0.999f), s = filled(0.5f);
  asm volatile("" : "+m"(m), "+m"(s));
  const double begin = thread_seconds();
  double flop = 0;
  while (wall::now() < end) {
    for (long turn = 0; turn < TURNS; ++turn) {
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; ++i) a[i] = a[i] * m + s;
    }
    flop += 2.0 * LANES * CHAINS * TURNS;
  }
  for (int i = 0; i < CHAINS; ++i) asm volatile("" ::"m"(a[i]));
  return {flop, thread_seconds() - begin};
}

}  // namespace

// Runs so many threads for so many seconds on the wall. found: FLOP a second of all of them
// together while they have a processor, and the share of the time in which they have one.
extern "C" void peak(int threads, double seconds, double* found) {
  const auto length =
      std::chrono::duration_cast<wall::duration>(std::chrono::duration<double>(seconds));
  const auto end = wall::now() + length;
  std::vector<Run> runs(threads);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { runs[i] = run_until(end); });
  runs[0] = run_until(end);
  for (std::thread& other : others) other.join();
  found[0] = found[1] = 0;
  for (const Run& run : runs) {
    found[0] += run.flop / run.seconds;
    found[1] += run.seconds / (seconds * threads);
  }
}
