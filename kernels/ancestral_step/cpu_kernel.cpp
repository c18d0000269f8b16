// One reverse step, x_{t-1} from x_t, the model's output and noise (given, or drawn here).
//
// Specification: reference.py, agreed with bit for bit. NaN passes through the clamp, as in
// torch.clamp.
#include "../common/kernels.h"
#include "../common/philox.h"
#include "../include/fastddpm.h"

namespace {

using fastddpm::AncestralStepArguments;
using fastddpm::BLOCK;
using fastddpm::blocks_per_sample;

constexpr uint32_t REVERSE = 1;  // Purpose.REVERSE of fastddpm/noise.py

// A comparison with NaN is false, so NaN stays.
static inline f32 clamp(f32 v, float low, float high) {
  v = v < low ? broadcast(low) : v;
  return v > high ? broadcast(high) : v;
}

struct Factors {
  f32 factor, power;
};

// exp(v / 2) as 2 exp(r / 2) and 2^(n - 1), v = n ln 4 + r; if v is NaN, so is the first.
static inline Factors exponential(f32 v) {
  constexpr float TWICE_EXP_HALF[] = {2.0f,
                                      1.0f,
                                      0.24999997019767761f,
                                      0.041666302829980850f,
                                      0.0052085332572460175f,
                                      0.00052304222481325269f,
                                      0.000043189655116293579f};
  constexpr float LOG_4_E = 0.72134751081466675f, LN_4 = 1.3862943649291992f;
  constexpr float ROUND = 12582911.0f;  // 1.5 2^23 - 1: the sum's bits show n - 1
  constexpr uint32_t ONE_BITS = 0x3F800000;
  const f32 shifted = fused_multiply_add(v, broadcast(LOG_4_E), broadcast(ROUND));
  const f32 r = fused_multiply_add(shifted - ROUND, broadcast(-LN_4), v);
  f32 factor = broadcast(TWICE_EXP_HALF[6]);
  for (int k = 5; k >= 0; --k) {
    factor = fused_multiply_add(r, factor, broadcast(TWICE_EXP_HALF[k]));
  }
  return {factor, reinterpret_cast<f32>((reinterpret_cast<u32>(shifted) << 23) + ONE_BITS)};
}

// Of v, where exp(v / 2) is LEAST_SIGMA, which is taken from it, and infinity.
constexpr float LOWEST = -172, HIGHEST = 178, LEAST_SIGMA = 4.4737804325289394e-38f;

// What a step's arguments say of every element. A copy that no vector's store can alias stays in
// registers.
struct Step {
  float x0_from_x, x0_from_output, mean_from_x0, mean_from_x, mean_from_output;
  float sigma;
  float middle, reach;  // of the log-variance
  float highest;        // log-variance that is told apart
  float clip;
  int32_t prediction, variance;

  explicit Step(const AncestralStepArguments& a)
      : x0_from_x(a.row[FASTDDPM_X0_FROM_X]),
        x0_from_output(a.row[FASTDDPM_X0_FROM_OUTPUT]),
        mean_from_x0(a.row[FASTDDPM_MEAN_FROM_X0]),
        mean_from_x(a.row[FASTDDPM_MEAN_FROM_X]),
        mean_from_output(a.row[FASTDDPM_MEAN_FROM_OUTPUT]),
        sigma(a.row[FASTDDPM_SIGMA]),
        middle((a.row[FASTDDPM_LOG_VARIANCE_MAX] + a.row[FASTDDPM_LOG_VARIANCE_MIN]) * 0.5f),
        reach((a.row[FASTDDPM_LOG_VARIANCE_MAX] - a.row[FASTDDPM_LOG_VARIANCE_MIN]) * 0.5f),
        highest(a.row[FASTDDPM_NOISE_GATE] != 0 ? HIGHEST : LOWEST),
        clip(a.clip),
        prediction(a.prediction),
        variance(a.variance) {}

  f32 x_0(f32 x, f32 out) const {
    if (prediction == FASTDDPM_PREDICTION_EPSILON_IN_X) {
      return clamp((x + out * x0_from_output) * x0_from_x, -clip, clip);
    }
    return clamp(x * x0_from_x + out * x0_from_output, -clip, clip);
  }

  f32 mean(f32 x_0, f32 x, f32 out) const {
    if (prediction == FASTDDPM_PREDICTION_PREVIOUS_SAMPLE) return out * mean_from_output;
    return x_0 * mean_from_x0 + x * mean_from_x;
  }

  // x_{t-1}; v is the variance half of the model's output.
  f32 previous(f32 mean, f32 v, f32 z) const {
    if (variance == FASTDDPM_VARIANCE_FIXED) return mean + sigma * z;
    if (variance == FASTDDPM_VARIANCE_LEARNED_RANGE) {
      v = fused_multiply_add(v, broadcast(reach), broadcast(middle));
    }
    const Factors own = exponential(clamp(v, LOWEST, highest));
    const f32 deviation = fused_multiply_add(own.factor, own.power, broadcast(-LEAST_SIGMA));
    return fused_multiply_add(deviation, z, mean);
  }
};

// `count` elements, where the variance half of the output lies `elements` further, or nowhere (0).
// Returned: lanes that are not 0 where the model's output or x_{t-1} was NaN or infinity.
static inline f32 step_elements(const Step& step, float* x_prev, float* x_0, const float* x,
                                const float* output, int64_t elements, const float* z,
                                int64_t count) {
  f32 strange = {};  // v - v is NaN for such a v, else 0
  const auto take = [&](int64_t at, int64_t lanes) {
    const f32 x_t = load(x + at, lanes), out = load(output + at, lanes);
    const f32 v = elements == 0 ? out : load(output + elements + at, lanes);
    const f32 estimate = step.x_0(x_t, out);
    const f32 next = step.previous(step.mean(estimate, x_t, out), v, load(z + at, lanes));
    store(x_prev + at, next, lanes);
    if (x_0 != nullptr) store(x_0 + at, estimate, lanes);
    strange += (out - out) + (v - v) + (next - next);
  };
  int64_t at = 0;
  for (; at + LANES <= count; at += LANES) take(at, LANES);
  if (at < count) take(at, count - at);
  return strange;
}

// Blocks [begin, end); whether the model's output and x_{t-1} are finite there.
bool step_blocks(const AncestralStepArguments& a, int64_t begin, int64_t end) {
  const Step step(a);
  const int64_t blocks = blocks_per_sample(a.elements);
  const int64_t second = a.variance == FASTDDPM_VARIANCE_FIXED ? 0 : a.elements;
  alignas(64) float drawn[BLOCK];
  f32 strange = {};
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / blocks, first = (block % blocks) * BLOCK;
    const int64_t count = a.elements - first < BLOCK ? a.elements - first : BLOCK;
    const int64_t offset = sample * a.elements + first;
    if (a.noise == nullptr) {
      const Stream stream = stream_of(a.seed, a.indices[sample], a.timestep, REVERSE);
      for (int64_t element = 0; element < count; element += 4 * LANES) {
        normals(stream, static_cast<uint32_t>((first + element) / 4), drawn + element);
      }
    }
    strange += step_elements(step, a.x_prev + offset, a.x_0 == nullptr ? nullptr : a.x_0 + offset,
                             a.x + offset, a.model_output + offset + sample * second, second,
                             a.noise == nullptr ? drawn : a.noise + offset, count);
  }
  for (int lane = 0; lane < LANES; ++lane) {
    if (strange[lane] != 0) return false;
  }
  return true;
}

AncestralStepArguments arguments_of(const fastddpm_step& a, int64_t step) {
  AncestralStepArguments given = {};
  given.x_prev = a.x;
  given.x_0 = a.x_0;
  given.x = a.x;
  given.model_output = a.model_output;
  given.noise = a.noise;
  given.row = a.table + step * FASTDDPM_STEP_COLUMNS;
  given.elements = a.elements;
  given.prediction = static_cast<int32_t>(a.prediction);
  given.variance = static_cast<int32_t>(a.variance);
  given.clip = static_cast<float>(a.clip);
  if (a.noise == nullptr) {
    given.seed = *a.seed;
    given.indices = a.indices;
    given.timestep = a.timesteps[step];
  }
  return given;
}

// Others of the team do the same.
void raise_to(int64_t* number, int64_t least) {
  int64_t seen = __atomic_load_n(number, __ATOMIC_RELAXED);
  while (seen < least && !__atomic_compare_exchange_n(number, &seen, least, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
  }
}

void run_step(const fastddpm_step& a, const fastddpm::Team& team) {
  const int64_t blocks = a.batch * blocks_per_sample(a.elements);
  const bool finite = step_blocks(arguments_of(a, team.step), team.begin(blocks), team.end(blocks));
  if (!finite && a.first_nonfinite != nullptr) raise_to(a.first_nonfinite, team.step);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation step;
const Operation step = operation<fastddpm_step, run_step, no_scratch<fastddpm_step>>();

void ancestral_step(const AncestralStepArguments& a, int64_t begin, int64_t end) {
  step_blocks(a, begin, end);
}

}  // namespace fastddpm::FASTDDPM_ISA
