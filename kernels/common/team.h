// A team of threads that run one program together: every thread calls every kernel, and takes its
// part.
//
// Between two instructions, and wherever a kernel needs what others have written, stands a barrier.
// How work is split may depend on the team's size, but no number that is computed does.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastddpm {

// What the members share.
class Meeting {
 public:
  explicit Meeting(int32_t size) : size_(size) {}

  // Count one member in. The last to come lets all go on, and true is returned.
  bool arrive();

  // Arrive and wait for the others, by spinning for a while and then asleep.
  void barrier();

  // The next piece of work that nobody has taken, 0, 1, ...; a barrier starts again from 0.
  int64_t claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

 private:
  const int32_t size_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

// One member's view of the team.
struct Team {
  int32_t member;  // 0 ... size - 1
  int32_t size;
  char* scratch;  // shared by all, as many bytes as the kernel asked for, aligned to 64 bytes
  int64_t step;   // the row of the step's tables
  Meeting* meeting;

  void barrier() const { meeting->barrier(); }
  int64_t claim() const { return meeting->claim(); }

  // This member's fixed share of [0, total).
  int64_t begin(int64_t total) const { return total * member / size; }
  int64_t end(int64_t total) const { return total * (member + 1) / size; }
};

}  // namespace fastddpm
