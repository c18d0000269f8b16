// A small network and its reverse step: what a program of all instructions computes.
//
//     x ─► layout ─► conv3x3 ─► h ─► norm ─► conv3x3 (+ h) ─► g
//     h, g ─► norm ─► 1x1 ─► q, k, v ─► attention ─► halve ─► conv3x3 doubled ─► layout ─► step ─►
//     x
#pragma once

#include "formulas.h"
#include "ports.h"

constexpr int64_t BATCH = 3, HEIGHT = 6, WIDTH = 10, PIXELS = HEIGHT * WIDTH, COLORS = 3;
constexpr int64_t HIDDEN = 20, INNER = 16, HEADS = 2, GROUPS = 4;
constexpr double EPS = 1e-5, SCALE = 0.25, CLIP = 1;
constexpr uint64_t SEED = 42;
inline const std::vector<int64_t> INDICES = {4, 0, 9}, TIMESTEPS = {0, 10, 20, 30};
inline const std::vector<double> DIVISORS = {1, 1.5, 2, 2.5};

struct Chain {
  Map x = random_map(BATCH, HEIGHT, WIDTH, COLORS);
  std::vector<double> table = random_numbers(STEPS * FASTDDPM_STEP_COLUMNS, 0, 0.5);
  std::vector<double> first = random_weight(HIDDEN, COLORS, 3);
  std::vector<double> second = random_weight(HIDDEN, HIDDEN, 3);
  std::vector<double> project = random_weight(3 * INNER, 2 * HIDDEN, 1);
  std::vector<double> last = random_weight(COLORS, INNER, 3);
  Output in{BATCH, HEIGHT, WIDTH, COLORS, PLAIN};
  Output h{BATCH, HEIGHT, WIDTH, HIDDEN, BIAS | STEP_ROW | STATISTICS};
  Output g{BATCH, HEIGHT, WIDTH, HIDDEN, BIAS};
  Output qkv{BATCH, HEIGHT, WIDTH, 3 * INNER, BIAS};
  Output attended{BATCH, HEIGHT, WIDTH, INNER, PLAIN};
  Output small{BATCH, HEIGHT / 2, WIDTH / 2, INNER, PLAIN};
  Output out{BATCH, HEIGHT, WIDTH, COLORS, BIAS};

  // x after all STEPS steps, in torch's order; the reference, and by the library.
  Results reference() const;
  Results run(Samples samples, int32_t threads) const;

 private:
  Map network(const Map& state, int64_t step) const;
};
