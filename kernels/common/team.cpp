// A barrier: one counter of those who have come, and the round that the last of them begins. Shares
// and items: a word of each member, changed by compare-and-exchange.
#include "team.h"

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

void Patience::wait() {
  using std::chrono::steady_clock;
  relax();
  if (spins_ == 0) begin_ = steady_clock::now();
  if (++spins_ % 16 != 0) return;
  if (yields_) std::this_thread::yield();
  const auto waited = steady_clock::now() - begin_;
  yields_ = waited > SPINS;
  over_ = waited > YIELDS;
}

// Whoever arrives publishes what it wrote, and the last, which has seen all arrive, publishes that
// with the round; the counters are reset before anybody can see the new round and use them.
bool Meeting::arrive() {
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) != size_ - 1) return false;
  arrived_.store(0, std::memory_order_relaxed);
  next_.store(0, std::memory_order_relaxed);
  opened_.store(0, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  return true;
}

void Meeting::barrier() {
  // It cannot change before this member has arrived.
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrive()) return;
  for (Patience patience; !patience.over(); patience.wait()) {
    if (round_.load(std::memory_order_acquire) != round) return;
  }
  while (round_.load(std::memory_order_acquire) == round) round_.wait(round);
}

// Who finds that all of a share is taken must see what its owner had done before it took the last:
// only then is an item that it has opened its last.
int64_t Meeting::take(int32_t member, int64_t total) {
  const uint64_t none = uint64_t{round_.load(std::memory_order_relaxed)} << 32;
  for (int32_t k = 0; k < size_; ++k) {
    const int32_t owner = (member + k) % size_;
    const int64_t begin = begin_of(owner, size_, total), end = begin_of(owner + 1, size_, total);
    std::atomic<uint64_t>& share = seats_[owner].share;
    uint64_t seen = share.load(std::memory_order_acquire);
    for (;;) {
      // Of an earlier round: nobody has taken any yet.
      const uint64_t now = seen >> 32 == none >> 32 ? seen : none;
      const int64_t piece = begin + static_cast<int64_t>(now - none);
      if (piece >= end) break;
      if (share.compare_exchange_weak(seen, now + 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
        return piece;
      }
    }
  }
  return total;
}

void Meeting::open(int32_t member, int64_t item, int64_t pieces) {
  Seat& seat = seats_[member];
  seat.item = item;
  seat.pieces = pieces;
  // Whoever takes a piece sees this, and what the item was prepared from.
  seat.left.store(pieces, std::memory_order_release);
  opened_.fetch_add(1, std::memory_order_release);
}

bool Meeting::take_piece(int32_t member, int64_t& item, int64_t& piece) {
  Seat& seat = seats_[member];
  int64_t left = seat.left.load(std::memory_order_acquire);
  while (left > 0) {
    if (!seat.left.compare_exchange_weak(left, left - 1, std::memory_order_acquire)) continue;
    item = seat.item;
    piece = seat.pieces - left;
    return true;
  }
  return false;
}

}  // namespace fastddpm
