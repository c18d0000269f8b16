// One reverse step, x_{t-1} from x_t, the model's output and noise (given, or drawn here).
//
// Specification: reference.py, agreed with bit for bit for a fixed variance. With a learned one the
// exponential is within 2 ulp of the true value (torch's own: 1), so x_{t-1} differs by at most
// 3 ulp of sigma z, plus one of x_{t-1}. NaN passes through the clamp, as in torch.clamp.
#include "../common/kernels.h"
#include "../common/philox.h"
#include "../include/fastddpm.h"

namespace {

using fastddpm::AncestralStepArguments;
using fastddpm::BLOCK;
using fastddpm::blocks_per_sample;

constexpr uint32_t REVERSE = 1;  // Purpose.REVERSE of fastddpm/noise.py

static inline f32 select(i32 condition, f32 yes, f32 no) {
  return as_f32((as_i32(yes) & condition) | (as_i32(no) & ~condition));
}

// A comparison with NaN is false, so NaN stays.
static inline f32 clamp(f32 v, float low, float high) {
  v = select(v < low, broadcast(low), v);
  return select(v > high, broadcast(high), v);
}

// 2^n for n in [-126, 127]; any other n, as NaN leads to, gives some number.
static inline f32 power_of_two(i32 n) {
  return reinterpret_cast<f32>(reinterpret_cast<u32>(n + 127) << 23);
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in two parts (Cody and Waite), Taylor to
// r^7 (|r| <= 0.347: 2e-8 relative). 2^n goes in as two factors, so infinity, subnormals and 0 come
// out by themselves.
static inline f32 exponential(f32 x) {
  constexpr float TAYLOR[] = {1.0f,      1.0f,       1.0f / 2,   1.0f / 6,
                              1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040};
  constexpr float ROUND = 0x1.8p23f;  // adding it rounds to an integer and shows it in the bits
  x = clamp(x, -105.0f, 90.0f);
  const f32 shifted = x * 0x1.715476p0f + ROUND;
  const f32 n = shifted - ROUND;
  const f32 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  const i32 exponent = as_i32(shifted) - 0x4B400000;
  const i32 half = exponent >> 1;
  return polynomial(TAYLOR, r) * power_of_two(half) * power_of_two(exponent - half);
}

// sigma of one vector of elements; v is the variance half of the model's output.
static inline f32 sigma_of(const float* row, int32_t variance, f32 v) {
  if (variance == FASTDDPM_VARIANCE_FIXED) return broadcast(row[FASTDDPM_SIGMA]);
  f32 log_variance = v;
  if (variance == FASTDDPM_VARIANCE_LEARNED_RANGE) {
    const f32 fraction = (v + 1.0f) * 0.5f;
    log_variance = fraction * row[FASTDDPM_LOG_VARIANCE_MAX] +
                   (1.0f - fraction) * row[FASTDDPM_LOG_VARIANCE_MIN];
  }
  return row[FASTDDPM_NOISE_GATE] * exponential(log_variance * 0.5f);
}

// Blocks [begin, end); whether the model's output and x_{t-1} are finite there.
bool step_blocks(const AncestralStepArguments& a, int64_t begin, int64_t end) {
  const float* row = a.row;
  const int64_t blocks = blocks_per_sample(a.elements);
  const int64_t outputs = a.variance == FASTDDPM_VARIANCE_FIXED ? 1 : 2;
  alignas(64) float drawn[BLOCK];
  i32 strange = {};  // lanes that met NaN or infinity: v - v is NaN then, else 0
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / blocks, first = (block % blocks) * BLOCK;
    const int64_t count = a.elements - first < BLOCK ? a.elements - first : BLOCK;
    const int64_t offset = sample * a.elements + first;
    const float* output = a.model_output + sample * a.elements * outputs + first;
    const float* z = a.noise == nullptr ? drawn : a.noise + offset;
    if (a.noise == nullptr) {
      const Stream stream = stream_of(a.seed, a.indices[sample], a.timestep, REVERSE);
      for (int64_t element = 0; element < count; element += 4 * LANES) {
        normals(stream, static_cast<uint32_t>((first + element) / 4), drawn + element);
      }
    }
    for (int64_t at = 0; at < count; at += LANES) {
      const int64_t lanes = count - at;
      const f32 x = load(a.x + offset + at, lanes);
      const f32 out = load(output + at, lanes);
      const f32 v = outputs == 2 ? load(output + a.elements + at, lanes) : out;
      f32 x_0 = x * row[FASTDDPM_X0_FROM_X] + out * row[FASTDDPM_X0_FROM_OUTPUT];
      x_0 = clamp(x_0, -a.clip, a.clip);
      f32 mean = x_0 * row[FASTDDPM_MEAN_FROM_X0] + x * row[FASTDDPM_MEAN_FROM_X];
      if (a.prediction == FASTDDPM_PREDICTION_PREVIOUS_SAMPLE) {
        mean = out * row[FASTDDPM_MEAN_FROM_OUTPUT];
      }
      const f32 x_prev = mean + sigma_of(row, a.variance, v) * load(z + at, lanes);
      store(a.x_prev + offset + at, x_prev, lanes);
      if (a.x_0 != nullptr) store(a.x_0 + offset + at, x_0, lanes);
      strange |= (out - out != 0.0f) | (v - v != 0.0f) | (x_prev - x_prev != 0.0f);
    }
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
