// How a team shares work: every piece is done once a round, by others if its member is slow, and
// what an item is prepared from stays until its last piece is done.
//
// The library keeps its team to itself, so these have one of their own.
#include "../../kernels/common/team.cpp"

#include <chrono>
#include <thread>

#include "check.h"

namespace {

using fastddpm::Meeting;
using fastddpm::Team;
using namespace std::chrono_literals;

constexpr int64_t ROUNDS = 20, PIECES = 5;  // pieces of an item

// How often each piece has been done in this round, and in how many rounds it was done once.
class Record {
 public:
  explicit Record(int64_t pieces) : times_(pieces), rounds_(pieces) {}

  // The first piece is slow: where there are others, it lasts until they have done all else.
  void done(const Team& team, int64_t piece) {
    const auto limit = std::chrono::steady_clock::now() + 10s;
    const auto all = static_cast<int64_t>(times_.size()) - 1;
    while (piece == 0 && team.size > 1 && count_ < all) {
      if (std::chrono::steady_clock::now() > limit) return;
      std::this_thread::yield();
    }
    ++times_[piece];
    ++count_;
  }

  void end_round() {
    count_ = 0;
    for (size_t k = 0; k < times_.size(); ++k) rounds_[k] += times_[k].exchange(0) == 1;
  }

  Results read() const { return {{"rounds", rounds_}}; }

 private:
  std::vector<std::atomic<int32_t>> times_;
  std::atomic<int64_t> count_{0};
  std::vector<double> rounds_;
};

// Calls body(team, round) by every member of a team, for each round.
template <typename Body>
Results assemble(Record& record, int32_t threads, const Body& body) {
  Meeting meeting(threads);
  const auto work = [&](int32_t member) {
    const Team team = {member, threads, nullptr, 0, &meeting};
    for (int64_t round = 0; round < ROUNDS; ++round) {
      body(team, round);
      team.barrier();
      if (member == 0) record.end_round();
      team.barrier();
    }
  };
  std::vector<std::thread> others;
  for (int32_t member = 1; member < threads; ++member) others.emplace_back(work, member);
  work(0);
  for (std::thread& other : others) other.join();
  return record.read();
}

Results share_pieces(int64_t pieces, int32_t threads) {
  Record record(pieces);
  return assemble(record, threads, [&](const Team& team, int64_t) {
    team.share(pieces, [&](int64_t piece) { record.done(team, piece); });
  });
}

Results share_items(int64_t items, int32_t threads) {
  Record record(items * PIECES);
  std::vector<int64_t> prepared(threads);
  return assemble(record, threads, [&](const Team& team, int64_t round) {
    team.share(
        items,
        [&](int64_t item) {
          prepared[team.member] = round * items + item;
          return PIECES;
        },
        [&](int32_t owner, int64_t item, int64_t piece) {
          if (team.member != owner) std::this_thread::sleep_for(50us);
          const bool right = prepared[owner] == round * items + item;
          if (right) record.done(team, item * PIECES + piece);
        });
  });
}

}  // namespace

void add_team(Cases& cases) {
  for (const int64_t each : {1, 10, 10000}) {
    const auto reference = [=] {
      return Results{{"rounds", std::vector<double>(3 * each, ROUNDS)}};
    };
    cases.push_back(
        {"team, " + std::to_string(each) + " pieces a sample", 3, 0, reference,
         [=](Samples s, int32_t threads) { return share_pieces(s.count() * each, threads); }});
  }
  for (const int64_t each : {1, 2, 7}) {
    const auto reference = [=] {
      return Results{{"rounds", std::vector<double>(3 * each * PIECES, ROUNDS)}};
    };
    cases.push_back(
        {"team, " + std::to_string(each) + " items a sample", 3, 0, reference,
         [=](Samples s, int32_t threads) { return share_items(s.count() * each, threads); }});
  }
}
