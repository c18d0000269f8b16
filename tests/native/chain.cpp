// The reference of the program of all instructions.
#include "chain.h"

#include <algorithm>

#include "noise.h"

namespace {

Map normalised(const std::vector<Map>& maps, int options) {
  Input input(maps[0].batch, 0, 0, {}, options);
  input.maps = maps;
  input.norm = group_norm(maps, GROUPS, EPS);
  return input.read();
}

}  // namespace

Map Chain::network(const Map& state, int64_t step) const {
  Map scaled = state;
  for (double& value : scaled.values) value /= DIVISORS[step];
  const Map a = h.finished(convolve(scaled, first, HIDDEN, 3, 1, 1, HEIGHT, WIDTH), step);
  Map b = convolve(normalised({a}, NORM | SILU), second, HIDDEN, 3, 1, 1, HEIGHT, WIDTH);
  b = g.finished(b, step);
  for (size_t k = 0; k < b.values.size(); ++k) b.values[k] += a.values[k];
  const Map read = normalised({a, b}, NORM);
  const Map all = qkv.finished(convolve(read, project, 3 * INNER, 1, 1, 0, HEIGHT, WIDTH), step);
  const Map mixed = attention(channels_of(all, 0, INNER), channels_of(all, INNER, 2 * INNER),
                              channels_of(all, 2 * INNER, 3 * INNER), HEADS, SCALE);
  const Map large = enlarged(halved(mixed));
  return out.finished(convolve(large, last, COLORS, 3, 1, 1, HEIGHT, WIDTH), step);
}

Results Chain::reference() const {
  Map state = x;
  for (int64_t step = STEPS - 1; step >= 0; --step) {
    const Map eps = network(state, step);
    const double* row = &table[step * FASTDDPM_STEP_COLUMNS];
    for (size_t k = 0; k < state.values.size(); ++k) {
      const int64_t c = k % COLORS, pixel = k / COLORS % PIXELS, b = k / COLORS / PIXELS;
      const double z = normal_of(SEED, INDICES[b], TIMESTEPS[step], 1, c * PIXELS + pixel);
      double& value = state.values[k];
      double x_0 = row[FASTDDPM_X0_FROM_X] * value + row[FASTDDPM_X0_FROM_OUTPUT] * eps.values[k];
      x_0 = std::clamp(x_0, -CLIP, CLIP);
      value = row[FASTDDPM_MEAN_FROM_X0] * x_0 + row[FASTDDPM_MEAN_FROM_X] * value +
              row[FASTDDPM_SIGMA] * z;
    }
  }
  return {{"x", torch_order(state, {0, BATCH})}};
}
