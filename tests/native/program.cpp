// A program of all instructions, run for several steps: each reads what another wrote, and the
// program counts its steps.
#include <future>
#include <memory>
#include <stdexcept>
#include <thread>

#include "chain.h"
#include "check.h"

namespace {

// The weights of a 3x3 convolution as packed, and in which way.
struct Packed {
  int64_t packing;
  Memory<char> bytes;

  Packed(const std::vector<double>& weight, int64_t out, int64_t in, int64_t packing)
      : packing(packing), bytes(fastddpm_packed_conv3x3_bytes(out, in, packing)) {
    fastddpm_pack_conv3x3(bytes.data(), Memory<float>(weight).data(), out, in, packing);
  }
};

Memory<char> packed1x1(const std::vector<double>& weight, int64_t out, int64_t in) {
  Memory<char> bytes(fastddpm_packed_convolution_bytes(out, in, 1, FASTDDPM_PACKING_FLOAT32));
  fastddpm_pack_convolution(bytes.data(), Memory<float>(weight).data(), out, in, 1,
                            FASTDDPM_PACKING_FLOAT32);
  return bytes;
}

// Everything that the instructions point to, for a part of the batch, and the instructions.
struct Code {
  const Chain& chain;
  Samples samples;
  int64_t batch = samples.count();
  uint64_t seed = SEED;
  Memory<float> state{torch_order(chain.x, samples)}, table{chain.table}, divisors{DIVISORS};
  Memory<float> model_output{state.count(), Alignment::ELEMENTS};
  Memory<int64_t> timesteps{TIMESTEPS};
  Memory<int64_t> indices{
      std::vector<int64_t>(INDICES.begin() + samples.first, INDICES.begin() + samples.last)};
  Packed first{chain.first, HIDDEN, COLORS, FASTDDPM_PACKING_TRANSFORMED};
  Packed second{chain.second, HIDDEN, HIDDEN, FASTDDPM_PACKING_TRANSFORMED};
  Packed last{chain.last, COLORS, INNER, FASTDDPM_PACKING_FLOAT32};
  Memory<char> project = packed1x1(chain.project, 3 * INNER, 2 * HIDDEN);
  OutputMemory in{chain.in, samples}, h{chain.h, samples}, g{chain.g, samples};
  OutputMemory qkv{chain.qkv, samples}, attended{chain.attended, samples};
  OutputMemory small{chain.small, samples}, out{chain.out, samples};
  Memory<float> h_norm{batch * 3 * stride_of(HIDDEN)}, norm{batch * 3 * stride_of(2 * HIDDEN)};
  Memory<float> g_statistics{batch * ((HEIGHT + 3) / 4) * 2 * stride_of(HIDDEN)};

  Code(const Chain& chain, Samples samples) : chain(chain), samples(samples) {
    g.output.residual = h.output.data;
    g.output.residual_stride = h.output.stride;
  }

  static fastddpm_input reading(const OutputMemory& a) {
    return {.data = {a.output.data, nullptr},
            .stride = {a.output.stride, 0},
            .channels = {a.output.channels, 0},
            .norm = nullptr,
            .activation = FASTDDPM_ACTIVATION_NONE};
  }

  fastddpm_conv3x3 conv3x3(const fastddpm_input& x, const OutputMemory& y, const Packed& weights,
                           int64_t doubled = 0) const {
    return {.x = x,
            .y = y.output,
            .batch = batch,
            .height = HEIGHT,
            .width = WIDTH,
            .doubled = doubled,
            .weights = weights.bytes.data(),
            .packing = weights.packing};
  }

  fastddpm_conv3x3 normalised_conv3x3() const {
    fastddpm_input x = reading(h);
    x.norm = h_norm.data();
    x.activation = FASTDDPM_ACTIVATION_SILU;
    return conv3x3(x, g, second);
  }

  // Of h alone, or of h and g.
  fastddpm_norm norm_of(bool both) const {
    return {.statistics = {h.output.statistics, both ? g_statistics.data() : nullptr},
            .stride = {h.output.stride, both ? g.output.stride : 0},
            .channels = {HIDDEN, both ? HIDDEN : 0},
            .batch = batch,
            .height = HEIGHT,
            .width = WIDTH,
            .groups = GROUPS,
            .eps = EPS,
            .weight = nullptr,
            .bias = nullptr,
            .modulation = {},
            .norm = both ? norm.data() : h_norm.data()};
  }

  fastddpm_statistics statistics() const {
    return {g.output.data, g.output.stride, HIDDEN, batch, HEIGHT, WIDTH, g_statistics.data()};
  }

  fastddpm_convolution projection() const {
    return {.x = {.data = {h.output.data, g.output.data},
                  .stride = {h.output.stride, g.output.stride},
                  .channels = {HIDDEN, HIDDEN},
                  .norm = norm.data(),
                  .activation = FASTDDPM_ACTIVATION_NONE},
            .y = qkv.output,
            .batch = batch,
            .height = HEIGHT,
            .width = WIDTH,
            .input_height = HEIGHT,
            .input_width = WIDTH,
            .kernel = 1,
            .stride = 1,
            .padding = 0,
            .weights = project.data(),
            .packing = FASTDDPM_PACKING_FLOAT32};
  }

  fastddpm_attention attention() const {
    const float* q = qkv.output.data;
    const int64_t stride = qkv.output.stride;
    return {.q = q,
            .k = q + INNER,
            .v = q + 2 * INNER,
            .q_stride = stride,
            .k_stride = stride,
            .v_stride = stride,
            .y = attended.output,
            .batch = batch,
            .tokens = PIXELS,
            .heads = HEADS,
            .head_dim = INNER / HEADS,
            .scale = SCALE};
  }

  fastddpm_pointwise halve() const {
    return {reading(attended), small.output, batch, HEIGHT / 2, WIDTH / 2, FASTDDPM_RESAMPLE_HALVE};
  }

  fastddpm_layout layout(bool into_map) const {
    return {.to = into_map ? in.output.data : model_output.data(),
            .from = into_map ? state.data() : out.output.data,
            .stride = into_map ? in.output.stride : out.output.stride,
            .batch = batch,
            .channels = COLORS,
            .pixels = PIXELS,
            .into_map = into_map,
            .factor = 1,
            .offset = 0,
            .divisor = {into_map ? divisors.data() : nullptr, 0, 1}};
  }

  fastddpm_step step() const {
    return {.x = state.data(),
            .x_0 = nullptr,
            .model_output = model_output.data(),
            .noise = nullptr,
            .table = table.data(),
            .batch = batch,
            .elements = COLORS * PIXELS,
            .prediction = FASTDDPM_PREDICTION_OTHER,
            .variance = FASTDDPM_VARIANCE_FIXED,
            .clip = CLIP,
            .seed = &seed,
            .indices = indices.data(),
            .timesteps = timesteps.data(),
            .first_nonfinite = nullptr};
  }
};

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

// What a called function saw: once a step, by the thread that runs the program.
struct Called {
  std::thread::id caller = std::this_thread::get_id();
  int64_t times = 0, sum_of_steps = 0;

  static void note(void* context, int64_t step) {
    Called& own = *static_cast<Called*>(context);
    if (std::this_thread::get_id() != own.caller) return;
    ++own.times;
    own.sum_of_steps += step;
  }

  void check() const {
    if (times != STEPS || sum_of_steps != STEPS * (STEPS - 1) / 2) {
      throw std::runtime_error("a function is not called once a step by the caller's own thread");
    }
  }
};

}  // namespace

Results Chain::run(Samples samples, int32_t threads) const {
  const Code code(*this, samples);
  const auto enter = code.layout(true), leave = code.layout(false);
  const auto first = code.conv3x3(Code::reading(code.in), code.h, code.first);
  const auto last = code.conv3x3(Code::reading(code.small), code.out, code.last, 1);
  const auto h_norm = code.norm_of(false), norm = code.norm_of(true);
  const auto second = code.normalised_conv3x3();
  const auto statistics = code.statistics();
  const auto projection = code.projection();
  const auto attention = code.attention();
  const auto halve = code.halve();
  const auto step = code.step();
  Called called;
  const fastddpm_call call = {reinterpret_cast<void*>(&Called::note), &called};
  run_all({{FASTDDPM_OP_LAYOUT, &enter},
           {FASTDDPM_OP_CONV3X3, &first},
           {FASTDDPM_OP_NORM, &h_norm},
           {FASTDDPM_OP_CONV3X3, &second},
           {FASTDDPM_OP_STATISTICS, &statistics},
           {FASTDDPM_OP_NORM, &norm},
           {FASTDDPM_OP_CONVOLUTION, &projection},
           {FASTDDPM_OP_ATTENTION, &attention},
           {FASTDDPM_OP_POINTWISE, &halve},
           {FASTDDPM_OP_CONV3X3, &last},
           {FASTDDPM_OP_LAYOUT, &leave},
           {FASTDDPM_OP_CALL, &call},
           {FASTDDPM_OP_STEP, &step}},
          threads);
  called.check();
  return {{"x", taken(code.state, 1, 1)}};
}

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
