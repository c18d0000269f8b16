// How a team shares work: every piece is done once a round, whoever is slow, and what is prepared
// for an item stays as it is until its last piece is done.
#include "../../kernels/common/team.h"

#include <thread>

#include "check.h"

namespace {

using fastddpm::Meeting;
using fastddpm::Team;

constexpr int64_t ROUNDS = 20;

// A piece takes its time: of some, one member needs much longer than the others.
void work(const Team& team, int64_t round, int64_t piece) {
  if (team.member != round % team.size || piece % 7 != 0) return;
  for (int turn = 0; turn < 20; ++turn) std::this_thread::yield();
}

// Calls body(team) by every member of a team.
template <typename Body>
void assemble(int32_t threads, const Body& body) {
  Meeting meeting(threads);
  std::vector<std::thread> others;
  for (int32_t member = 1; member < threads; ++member) {
    others.emplace_back([&, member] { body(Team{member, threads, nullptr, 0, &meeting}); });
  }
  body(Team{0, threads, nullptr, 0, &meeting});
  for (std::thread& other : others) other.join();
}

Results counted(const std::vector<std::atomic<int32_t>>& times) {
  return {{"times", {times.begin(), times.end()}}};
}

// `each` pieces a sample.
Results share_pieces(int64_t each, Samples samples, int32_t threads) {
  std::vector<std::atomic<int32_t>> times(samples.count() * each);
  assemble(threads, [&](const Team& team) {
    for (int64_t round = 0; round < ROUNDS; ++round) {
      team.share(samples.count() * each, [&](int64_t piece) {
        work(team, round, piece);
        ++times[piece];
      });
      team.barrier();
    }
  });
  return counted(times);
}

// `items` of `each` pieces a sample, the first of every three without any.
Results share_items(int64_t items, int64_t each, Samples samples, int32_t threads) {
  std::vector<std::atomic<int32_t>> times(samples.count() * items * each);
  std::vector<int64_t> prepared(threads);
  assemble(threads, [&](const Team& team) {
    for (int64_t round = 0; round < ROUNDS; ++round) {
      team.share(
          samples.count() * items,
          [&](int64_t item) {
            prepared[team.member] = round + item;
            return item % items % 3 == 0 ? 0 : each;
          },
          [&](int32_t owner, int64_t item, int64_t piece) {
            work(team, round, piece);
            if (prepared[owner] == round + item) ++times[item * each + piece];
          });
      team.barrier();
    }
  });
  return counted(times);
}

}  // namespace

void add_team(Cases& cases) {
  for (const int64_t each : {1, 10, 40000}) {
    cases.push_back({"team, " + std::to_string(each) + " pieces a sample", 3, 0,
                     [=] { return Results{{"times", std::vector<double>(3 * each, ROUNDS)}}; },
                     [=](Samples s, int32_t threads) { return share_pieces(each, s, threads); }});
  }
  for (const int64_t items : {2, 8}) {
    const int64_t each = 5;
    const auto reference = [=] {
      std::vector<double> times(3 * items * each);
      for (int64_t k = 0; k < 3 * items * each; ++k) {
        times[k] = k / each % items % 3 == 0 ? 0 : ROUNDS;
      }
      return Results{{"times", times}};
    };
    cases.push_back(
        {"team, " + std::to_string(items) + " items a sample", 3, 0, reference,
         [=](Samples s, int32_t threads) { return share_items(items, each, s, threads); }});
  }
}
