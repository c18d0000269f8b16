// A team of threads that run one program together: every thread calls every kernel, and takes its
// part.
//
// Between two instructions, and wherever a kernel needs what others have written, stands a barrier.
// How work is split may depend on the team's size, but no number that is computed does. So whoever
// is done takes work from others, but of what is over in a moment: cores run at different speeds
// where other programs use them, too, and with fixed shares each waited for the slowest (6 to 8 %
// of all time on two processors of a shared machine, Zen 3, November 2026).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

namespace fastddpm {

// Where the share of a member of `size` in [0, total) begins, and that of the one before ends.
static inline int64_t begin_of(int32_t member, int32_t size, int64_t total) {
  return total * member / size;
}

// Spins for a while, then lets other threads have the core.
class Patience {
 public:
  void wait();
  // Whether it is time to sleep.
  bool over() const { return over_; }

 private:
  std::chrono::steady_clock::time_point begin_;
  int32_t spins_ = 0;
  bool yields_ = false, over_ = false;
};

// A member's place: what it has to do, for others to take from.
struct alignas(64) Seat {
  // The round that its share is of, and how many pieces of the share have been taken: 32 bits each.
  std::atomic<uint64_t> share{0};
  // The item that it has opened last, how many pieces that has, and how many are for the taking.
  alignas(64) int64_t item = 0;
  int64_t pieces = 0;
  std::atomic<int64_t> left{0};
};

// What the members share.
class Meeting {
 public:
  explicit Meeting(int32_t size) : size_(size), seats_(size) {}

  // Count one member in. The last to come lets all go on, and true is returned.
  bool arrive();

  // Arrive and wait for the others, by spinning for a while and then asleep.
  void barrier();

  // The next piece of work that nobody has taken, 0, 1, ...; a barrier starts again from 0.
  int64_t claim() { return next_.fetch_add(1, std::memory_order_relaxed); }

  // The next piece of [0, total) for a member, of its own share or else of another's; total if
  // there is none. A barrier starts again.
  int64_t take(int32_t member, int64_t total);

  // A member's item has so many pieces, for all to take. take_piece: of the item that a member has
  // opened last; false if none is left.
  void open(int32_t member, int64_t item, int64_t pieces);
  bool take_piece(int32_t member, int64_t& item, int64_t& piece);
  // How many items all members have opened since the last barrier.
  int64_t opened() const { return opened_.load(std::memory_order_acquire); }

 private:
  const int32_t size_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> opened_{0};
  std::vector<Seat> seats_;
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
  int64_t begin(int64_t total) const { return begin_of(member, size, total); }
  int64_t end(int64_t total) const { return begin_of(member + 1, size, total); }

  // Calls body(piece) for [0, total), all members together: each has a share that is always the
  // same, and then takes from others what they have not come to. Once between two barriers.
  template <typename Body>
  void share(int64_t total, const Body& body) const {
    for (int64_t piece = meeting->take(member, total); piece < total;
         piece = meeting->take(member, total)) {
      body(piece);
    }
  }

  // The same for items of several pieces: prepare(item), which returns how many, is called by one
  // member for what lies in its own scratch, then body(owner, item, piece) by that one and by
  // whoever has nothing else to do. Others come to help when every item has been taken: each member
  // is at its last then, and what it prepares stays. They may leave early, as an owner goes on
  // until its item has no more pieces.
  template <typename Prepare, typename Body>
  void share(int64_t items, const Prepare& prepare, const Body& body) const {
    const auto work_for = [&](int32_t owner) {
      int64_t item, piece;
      bool any = false;
      for (; meeting->take_piece(owner, item, piece); any = true) body(owner, item, piece);
      return any;
    };
    share(items, [&](int64_t item) {
      meeting->open(member, item, prepare(item));
      work_for(member);
    });
    for (Patience patience; !patience.over();) {
      const bool all = meeting->opened() == items;
      bool any = false;
      for (int32_t other = 1; other < size; ++other) any |= work_for((member + other) % size);
      if (any) {
        patience = {};
      } else if (all) {
        return;
      } else {
        patience.wait();
      }
    }
  }
};

}  // namespace fastddpm
