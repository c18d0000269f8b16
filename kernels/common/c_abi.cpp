// The entry points of include/fastddpm.h: they check, split the work, and call the chosen kernels.
#include <cmath>

#include "../include/fastddpm.h"
#include "kernels.h"
#include "parallel.h"

namespace {

// Blocks a thread must have to be worth its start (tens of microseconds).
constexpr int64_t GRAIN = 1024;

bool invalid_sizes(int64_t batch, int64_t elements) { return batch < 0 || elements < 0; }

}  // namespace

extern "C" {

int32_t fastddpm_abi_version(void) { return FASTDDPM_ABI_VERSION; }

const char* fastddpm_error_message(int32_t status) {
  switch (status) {
    case FASTDDPM_OK:
      return "success";
    case FASTDDPM_INVALID_ARGUMENT:
      return "invalid argument: a null pointer, a negative size or an unknown code";
    case FASTDDPM_ROW_OUT_OF_RANGE:
      return "the row index lies outside of the step table";
    case FASTDDPM_UNKNOWN_ISA:
      return "unknown instruction set, or one that this CPU or this library lacks";
    case FASTDDPM_NO_MEMORY:
      return "no memory for scratch space, or no thread, is to be had";
    case FASTDDPM_NO_SUCH_KERNEL:
      return "the instruction set in use has no such kernel";
    default:
      return "unknown status";
  }
}

int32_t fastddpm_normal(float* out, const int64_t* indices, int64_t batch, int64_t elements,
                        uint64_t seed, const int64_t* steps, int64_t step_count, int32_t purpose,
                        int32_t threads) {
  if (invalid_sizes(batch, elements) || purpose < 0 || purpose > 255) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  if (batch == 0 || elements == 0) return FASTDDPM_OK;
  if (out == nullptr || indices == nullptr || steps == nullptr ||
      (step_count != 1 && step_count != batch)) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::NormalArguments arguments = {};
  arguments.out = out;
  arguments.indices = indices;
  arguments.elements = elements;
  arguments.seed = seed;
  arguments.steps = steps;
  arguments.step_stride = step_count == 1 ? 0 : 1;
  arguments.purpose = static_cast<uint32_t>(purpose);
  const fastddpm::Kernels& kernels = fastddpm::kernels();
  fastddpm::parallel(batch * fastddpm::blocks_per_sample(elements), GRAIN, threads,
                     [&](int64_t begin, int64_t end) { kernels.normal(arguments, begin, end); });
  return FASTDDPM_OK;
}

int32_t fastddpm_torch_normal(float* out, int64_t count, fastddpm_mersenne* generator) {
  if (out == nullptr || generator == nullptr || count < 16 || generator->left < 1 ||
      generator->left > FASTDDPM_MERSENNE_WORDS) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::TorchNormalArguments arguments = {};
  arguments.out = out;
  arguments.count = count;
  arguments.generator = generator;
  return fastddpm::kernels().torch_normal(arguments) ? FASTDDPM_OK : FASTDDPM_NO_SUCH_KERNEL;
}

int32_t fastddpm_ancestral_step(float* x_prev, float* x_0, const float* x,
                                const float* model_output, const float* noise, const float* table,
                                int64_t rows, const int64_t* row, int64_t batch, int64_t elements,
                                int32_t prediction, int32_t variance, float clip, uint64_t seed,
                                const int64_t* indices, const int64_t* timesteps, int32_t threads) {
  if (invalid_sizes(batch, elements) || table == nullptr || row == nullptr || prediction < 0 ||
      prediction > FASTDDPM_PREDICTION_EPSILON_IN_X || variance < 0 ||
      variance > FASTDDPM_VARIANCE_LEARNED_RANGE || std::isnan(clip) || clip < 0) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  if (*row < 0 || *row >= rows) return FASTDDPM_ROW_OUT_OF_RANGE;
  if (batch == 0 || elements == 0) return FASTDDPM_OK;
  if (x_prev == nullptr || x == nullptr || model_output == nullptr ||
      (noise == nullptr && (indices == nullptr || timesteps == nullptr))) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::AncestralStepArguments arguments = {};
  arguments.x_prev = x_prev;
  arguments.x_0 = x_0;
  arguments.x = x;
  arguments.model_output = model_output;
  arguments.noise = noise;
  arguments.row = table + *row * FASTDDPM_STEP_COLUMNS;
  arguments.elements = elements;
  arguments.prediction = prediction;
  arguments.variance = variance;
  arguments.clip = clip;
  arguments.seed = seed;
  arguments.indices = indices;
  arguments.timestep = timesteps == nullptr ? 0 : timesteps[*row];
  const fastddpm::Kernels& kernels = fastddpm::kernels();
  fastddpm::parallel(
      batch * fastddpm::blocks_per_sample(elements), GRAIN, threads,
      [&](int64_t begin, int64_t end) { kernels.ancestral_step(arguments, begin, end); });
  return FASTDDPM_OK;
}

int32_t fastddpm_q_sample(float* x_t, float* noise, const float* x_0, const int64_t* t,
                          const float* table, int64_t rows, const int64_t* indices, int64_t batch,
                          int64_t elements, uint64_t seed, const int64_t* steps, int64_t step_count,
                          int32_t threads) {
  if (invalid_sizes(batch, elements)) return FASTDDPM_INVALID_ARGUMENT;
  if (batch == 0 || elements == 0) return FASTDDPM_OK;
  if (x_t == nullptr || noise == nullptr || x_0 == nullptr || t == nullptr || table == nullptr ||
      indices == nullptr || steps == nullptr || (step_count != 1 && step_count != batch)) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  for (int64_t b = 0; b < batch; ++b) {
    if (t[b] < 0 || t[b] >= rows) return FASTDDPM_ROW_OUT_OF_RANGE;
  }
  fastddpm::QSampleArguments arguments = {};
  arguments.x_t = x_t;
  arguments.noise = noise;
  arguments.x_0 = x_0;
  arguments.t = t;
  arguments.table = table;
  arguments.indices = indices;
  arguments.elements = elements;
  arguments.seed = seed;
  arguments.steps = steps;
  arguments.step_stride = step_count == 1 ? 0 : 1;
  const fastddpm::Kernels& kernels = fastddpm::kernels();
  fastddpm::parallel(batch * fastddpm::blocks_per_sample(elements), GRAIN, threads,
                     [&](int64_t begin, int64_t end) { kernels.q_sample(arguments, begin, end); });
  return FASTDDPM_OK;
}

int64_t fastddpm_packed_conv3x3_bytes(int64_t out_channels, int64_t in_channels, int64_t packing) {
  if (out_channels < 1 || in_channels < 1 || packing < 0 ||
      packing > FASTDDPM_PACKING_TRANSFORMED) {
    return -1;
  }
  return fastddpm::kernels().conv3x3_packing->bytes(out_channels, in_channels, 3, packing);
}

int64_t fastddpm_packed_convolution_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel,
                                          int64_t packing) {
  if (out_channels < 1 || in_channels < 1 || (kernel != 1 && kernel != 3) || packing < 0 ||
      packing > FASTDDPM_PACKING_FLOAT16) {
    return -1;
  }
  return fastddpm::kernels().convolution_packing->bytes(out_channels, in_channels, kernel, packing);
}

int32_t fastddpm_pack_conv3x3(void* packed, const float* weight, int64_t out_channels,
                              int64_t in_channels, int64_t packing) {
  if (packed == nullptr || weight == nullptr ||
      fastddpm_packed_conv3x3_bytes(out_channels, in_channels, packing) < 0) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::kernels().conv3x3_packing->pack(packed, weight, out_channels, in_channels, 3, packing);
  return FASTDDPM_OK;
}

int32_t fastddpm_pack_convolution(void* packed, const float* weight, int64_t out_channels,
                                  int64_t in_channels, int64_t kernel, int64_t packing) {
  if (packed == nullptr || weight == nullptr ||
      fastddpm_packed_convolution_bytes(out_channels, in_channels, kernel, packing) < 0) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::kernels().convolution_packing->pack(packed, weight, out_channels, in_channels, kernel,
                                                packing);
  return FASTDDPM_OK;
}

}  // extern "C"
