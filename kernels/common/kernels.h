// The kernels of one instruction set, and the table that cpu_features.cpp chooses from.
//
// Each kernels/<op>/cpu_kernel.cpp is compiled once per set with FASTDDPM_ISA = baseline, avx2, ...
// and defines its function in namespace fastddpm::FASTDDPM_ISA; all else in it has internal
// linkage. A kernel computes a range of blocks: block k is elements [BLOCK * k, BLOCK * (k + 1)) of
// one sample, and samples follow one another, so that any split into ranges gives the same numbers.
#pragma once

#include <cstdint>

namespace fastddpm {

// Elements; a multiple of 4 normals a counter times the widest vector (16 floats).
constexpr int64_t BLOCK = 64;

constexpr int64_t blocks_per_sample(int64_t elements) { return (elements + BLOCK - 1) / BLOCK; }

struct NormalArguments {
  float* out;              // [B, elements]
  const int64_t* indices;  // [B]
  int64_t elements;
  uint64_t seed;
  const int64_t* steps;  // [1] or [B]
  int64_t step_stride;   // 0 or 1
  uint32_t purpose;
};

struct AncestralStepArguments {
  float* x_prev;              // [B, elements]
  float* x_0;                 // [B, elements] or null
  const float* x;             // [B, elements]
  const float* model_output;  // [B, elements] or [B, 2 elements]
  const float* noise;         // [B, elements] or null: drawn here
  const float* row;           // [FASTDDPM_STEP_COLUMNS]
  int64_t elements;
  int32_t prediction;
  int32_t variance;
  float clip;
  uint64_t seed;
  const int64_t* indices;  // [B]
  int64_t timestep;
};

struct Kernels {
  const char* isa;
  bool (*supported)();
  void (*normal)(const NormalArguments&, int64_t begin, int64_t end);
  void (*ancestral_step)(const AncestralStepArguments&, int64_t begin, int64_t end);
};

// The chosen set.
const Kernels& kernels();

}  // namespace fastddpm
