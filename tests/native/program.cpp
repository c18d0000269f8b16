// A small network and its reverse step as one program of all instructions, run for several steps:
// each reads what another wrote, and the program counts its steps.
//
//     x ─► layout ─► conv3x3 ─► h ─► norm ─► conv3x3 (+ h) ─► g
//     h, g ─► norm ─► 1x1 ─► q, k, v ─► attention ─► halve ─► conv3x3 doubled ─► layout ─► step ─►
//     x
#include <cmath>
#include <future>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>

#include "check.h"
#include "formulas.h"
#include "noise.h"

namespace {

constexpr int64_t BATCH = 3, HEIGHT = 6, WIDTH = 10, PIXELS = HEIGHT * WIDTH, COLORS = 3;
constexpr int64_t HIDDEN = 20, INNER = 16, HEADS = 2, GROUPS = 4;
constexpr double EPS = 1e-5, SCALE = 0.25, CLIP = 1;
constexpr uint64_t SEED = 42;
const std::vector<int64_t> INDICES = {4, 0, 9}, TIMESTEPS = {0, 10, 20, 30};
const std::vector<double> DIVISORS = {1, 1.5, 2, 2.5};

Output output_of(int64_t height, int64_t width, int64_t channels, int options) {
  return Output(BATCH, height, width, channels, options);
}

// The network's numbers.
struct Chain {
  Map x = random_map(BATCH, HEIGHT, WIDTH, COLORS);
  std::vector<double> table = random_numbers(STEPS * FASTDDPM_STEP_COLUMNS, 0, 0.5);
  std::vector<double> first = random_weight(HIDDEN, COLORS, 3);
  std::vector<double> second = random_weight(HIDDEN, HIDDEN, 3);
  std::vector<double> project = random_weight(3 * INNER, 2 * HIDDEN, 1);
  std::vector<double> last = random_weight(COLORS, INNER, 3);
  Output in = output_of(HEIGHT, WIDTH, COLORS, PLAIN);
  Output h = output_of(HEIGHT, WIDTH, HIDDEN, BIAS | STEP_ROW | STATISTICS);
  Output g = output_of(HEIGHT, WIDTH, HIDDEN, BIAS);
  Output qkv = output_of(HEIGHT, WIDTH, 3 * INNER, BIAS);
  Output attended = output_of(HEIGHT, WIDTH, INNER, PLAIN);
  Output small = output_of(HEIGHT / 2, WIDTH / 2, INNER, PLAIN);
  Output out = output_of(HEIGHT, WIDTH, COLORS, BIAS);

  Map network(const Map& state, int64_t step) const;
  Results reference() const;
  Results run(Samples samples, int32_t threads) const;
};

Map normalised(const std::vector<Map>& maps, int options) {
  Input input(maps[0].batch, 0, 0, {}, options);
  input.maps = maps;
  input.norm = group_norm(maps, GROUPS, EPS);
  return input.read();
}

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
      x_0 = std::fmax(-CLIP, std::fmin(CLIP, x_0));
      value = row[FASTDDPM_MEAN_FROM_X0] * x_0 + row[FASTDDPM_MEAN_FROM_X] * value +
              row[FASTDDPM_SIGMA] * z;
    }
  }
  return {{"x", torch_order(state, {0, BATCH})}};
}

Memory<char> packed3x3(const std::vector<double>& weight, int64_t out, int64_t in,
                       int64_t packing) {
  const Memory<float> plain(weight);
  Memory<char> packed(fastddpm_packed_conv3x3_bytes(out, in, packing));
  fastddpm_pack_conv3x3(packed.data(), plain.data(), out, in, packing);
  return packed;
}

// Reads one map, or two.
fastddpm_input input_of(const fastddpm_output& a, const fastddpm_output* b = nullptr,
                        const float* norm = nullptr, int64_t activation = 0) {
  fastddpm_input input = {};
  input.data[0] = a.data;
  input.stride[0] = a.stride;
  input.channels[0] = a.channels;
  if (b != nullptr) {
    input.data[1] = b->data;
    input.stride[1] = b->stride;
    input.channels[1] = b->channels;
  }
  input.norm = norm;
  input.activation = activation;
  return input;
}

// A program's steps in all the ways to run it; STEPS of them in the end.
void run_all(const std::vector<fastddpm_instruction>& code, int32_t threads) {
  int32_t status = FASTDDPM_OK;
  fastddpm_program* program =
      fastddpm_program_create(code.data(), static_cast<int64_t>(code.size()), threads, &status);
  if (program == nullptr) throw std::runtime_error(fastddpm_error_message(status));
  int64_t index = STEPS - 1;
  std::vector<double> seconds(code.size());
  bool right = fastddpm_program_run(program, &index, 2, 3600) == 2 && index == STEPS - 3;
  // No time: one step all the same.
  right = fastddpm_program_run(program, &index, 9, 0) == 1 && index == STEPS - 4 && right;
  fastddpm_program_profile(program, &index, seconds.data());
  fastddpm_program_destroy(program);
  for (const double each : seconds) right = right && each > 0;
  if (!right || index != -1) throw std::runtime_error("the program counts its steps wrongly");
}

Results Chain::run(Samples samples, int32_t threads) const {
  const int64_t batch = samples.count();
  const Memory<float> state(torch_order(x, samples)), rows(table), divisors(DIVISORS);
  const Memory<float> model_output(state.count(), Alignment::ELEMENTS);
  const Memory<int64_t> timesteps(TIMESTEPS),
      indices(
          std::vector<int64_t>(INDICES.begin() + samples.first, INDICES.begin() + samples.last));
  const int64_t packing = FASTDDPM_PACKING_TRANSFORMED;
  const Memory<char> w1 = packed3x3(first, HIDDEN, COLORS, packing),
                     w2 = packed3x3(second, HIDDEN, HIDDEN, packing),
                     w4 = packed3x3(last, COLORS, INNER, FASTDDPM_PACKING_FLOAT32);
  const Memory<char> w3(fastddpm_packed_convolution_bytes(3 * INNER, 2 * HIDDEN, 1, 0));
  fastddpm_pack_convolution(w3.data(), Memory<float>(project).data(), 3 * INNER, 2 * HIDDEN, 1, 0);

  const OutputMemory im(in, samples), hm(h, samples), qkvm(qkv, samples), am(attended, samples),
      sm(small, samples), om(out, samples);
  OutputMemory gm(g, samples);
  gm.output.residual = hm.output.data;
  gm.output.residual_stride = hm.output.stride;
  const Memory<float> norm1(batch * 3 * stride_of(HIDDEN)),
      norm2(batch * 3 * stride_of(2 * HIDDEN));
  const Memory<float> statistics(batch * ((HEIGHT + 3) / 4) * 2 * gm.output.stride);

  const uint64_t seed = SEED;
  const fastddpm_layout enter = {
      im.output.data, state.data(), im.output.stride, batch, COLORS, PIXELS, 1, 1, 0,
      divisors.data()};
  const fastddpm_conv3x3 conv1 = {input_of(im.output), hm.output, batch, HEIGHT, WIDTH, 0,
                                  w1.data(),           packing};
  fastddpm_norm n1 = {};
  n1.statistics[0] = hm.output.statistics;
  n1.stride[0] = hm.output.stride;
  n1.channels[0] = HIDDEN;
  n1.batch = batch;
  n1.height = HEIGHT;
  n1.width = WIDTH;
  n1.groups = GROUPS;
  n1.eps = EPS;
  n1.norm = norm1.data();
  const fastddpm_conv3x3 conv2 = {input_of(hm.output, nullptr, norm1.data(), 1),
                                  gm.output,
                                  batch,
                                  HEIGHT,
                                  WIDTH,
                                  0,
                                  w2.data(),
                                  packing};
  const fastddpm_statistics of_g = {gm.output.data, gm.output.stride, HIDDEN, batch, HEIGHT,
                                    WIDTH,          statistics.data()};
  fastddpm_norm n2 = n1;
  n2.statistics[1] = statistics.data();
  n2.stride[1] = gm.output.stride;
  n2.channels[1] = HIDDEN;
  n2.norm = norm2.data();
  const fastddpm_convolution linear = {input_of(hm.output, &gm.output, norm2.data()),
                                       qkvm.output,
                                       batch,
                                       HEIGHT,
                                       WIDTH,
                                       HEIGHT,
                                       WIDTH,
                                       1,
                                       1,
                                       0,
                                       w3.data(),
                                       FASTDDPM_PACKING_FLOAT32};
  const float* q = qkvm.output.data;
  const int64_t stride = qkvm.output.stride;
  const fastddpm_attention attend = {q,      q + INNER, q + 2 * INNER, stride,
                                     stride, stride,    am.output,     batch,
                                     PIXELS, HEADS,     INNER / HEADS, SCALE};
  const fastddpm_pointwise halve = {input_of(am.output), sm.output, batch,
                                    HEIGHT / 2,          WIDTH / 2, FASTDDPM_RESAMPLE_HALVE};
  const fastddpm_conv3x3 conv4 = {
      input_of(sm.output), om.output, batch, HEIGHT, WIDTH, 1, w4.data(), FASTDDPM_PACKING_FLOAT32};
  const fastddpm_layout leave = {model_output.data(),
                                 om.output.data,
                                 om.output.stride,
                                 batch,
                                 COLORS,
                                 PIXELS,
                                 0,
                                 1,
                                 0,
                                 nullptr};
  const fastddpm_step step = {state.data(),
                              nullptr,
                              model_output.data(),
                              nullptr,
                              rows.data(),
                              batch,
                              COLORS * PIXELS,
                              0,
                              0,
                              CLIP,
                              &seed,
                              indices.data(),
                              timesteps.data(),
                              nullptr};
  run_all({{FASTDDPM_OP_LAYOUT, &enter},
           {FASTDDPM_OP_CONV3X3, &conv1},
           {FASTDDPM_OP_NORM, &n1},
           {FASTDDPM_OP_CONV3X3, &conv2},
           {FASTDDPM_OP_STATISTICS, &of_g},
           {FASTDDPM_OP_NORM, &n2},
           {FASTDDPM_OP_CONVOLUTION, &linear},
           {FASTDDPM_OP_ATTENTION, &attend},
           {FASTDDPM_OP_POINTWISE, &halve},
           {FASTDDPM_OP_CONV3X3, &conv4},
           {FASTDDPM_OP_LAYOUT, &leave},
           {FASTDDPM_OP_STEP, &step}},
          threads);
  return {{"x", taken(state, 1, 1)}};
}

}  // namespace

void add_program(Cases& cases) {
  const auto chain = std::make_shared<const Chain>();
  cases.push_back({"program of all instructions", BATCH, 1e-4, [=] { return chain->reference(); },
                   [=](Samples s, int32_t threads) { return chain->run(s, threads); }});
  // Two programs beside each other: a call may run beside others.
  const auto both = [=](Samples samples, int32_t threads) {
    auto beside = std::async(std::launch::async, [&] { return chain->run(samples, threads); });
    Results one = chain->run(samples, threads);
    one.push_back({"the other x", beside.get()[0].values});
    return one;
  };
  cases.push_back({"two programs at once", BATCH, 1e-4,
                   [=] {
                     const Results each = chain->reference();
                     return Results{each[0], {"the other x", each[0].values}};
                   },
                   both});
}
