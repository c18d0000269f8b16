// A barrier: one counter of those who have come, and the round that the last of them begins.
#include "team.h"

#include <chrono>
#include <thread>

namespace {

// A sleeper wakes late (hundreds of microseconds on a virtual machine), and whoever waits for it
// then falls asleep in turn: so members spin for longer than the pieces of an instruction differ,
// then let other threads have the core as long as a step may take, and only then sleep.
constexpr std::chrono::microseconds SPINS(200), YIELDS(20000);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

namespace fastddpm {

// Whoever arrives publishes what it wrote, and the last, which has seen all arrive, publishes that
// with the round; the counters are reset before anybody can see the new round and use them.
bool Meeting::arrive() {
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) != size_ - 1) return false;
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  return true;
}

void Meeting::barrier() {
  // It cannot change before this member has arrived.
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrive()) return;
  const auto begin = std::chrono::steady_clock::now();
  auto waited = begin - begin;
  while (waited < YIELDS) {
    for (int spin = 0; spin < 16; ++spin) {
      if (round_.load(std::memory_order_acquire) != round) return;
      relax();
    }
    if (waited > SPINS) std::this_thread::yield();
    waited = std::chrono::steady_clock::now() - begin;
  }
  while (round_.load(std::memory_order_acquire) == round) round_.wait(round);
}

}  // namespace fastddpm
