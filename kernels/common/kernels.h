// The kernels of one instruction set, and the table that cpu_features.cpp chooses from.
//
// Each kernels/<op>/cpu_kernel.cpp is compiled once per set with FASTDDPM_ISA = baseline, avx2, ...
// and defines its function in namespace fastddpm::FASTDDPM_ISA; all else in it has internal
// linkage. A kernel computes a range of blocks: block k is elements [BLOCK * k, BLOCK * (k + 1)) of
// one sample, and samples follow one another, so that any split into ranges gives the same numbers.
#pragma once

#include <cstdint>

#include "../include/fastddpm.h"
#include "team.h"

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

struct TorchNormalArguments {
  float* out;  // [count]
  int64_t count;
  fastddpm_mersenne* generator;
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

struct QSampleArguments {
  float* x_t;              // [B, elements]
  float* noise;            // [B, elements]
  const float* x_0;        // [B, elements]
  const int64_t* t;        // [B]
  const float* table;      // [rows, FASTDDPM_FORWARD_COLUMNS]
  const int64_t* indices;  // [B]
  int64_t elements;
  uint64_t seed;
  const int64_t* steps;  // [1] or [B]
  int64_t step_stride;   // 0 or 1
};

// One kind of instruction of a program. Every member of the team calls run; the program puts a
// barrier after it. scratch: bytes that the whole team needs for it.
struct Operation {
  void (*run)(const void* arguments, const Team& team);
  int64_t (*scratch)(const void* arguments, int32_t threads);
};

// An Operation from functions that take their own struct.
template <typename Arguments, void (*RUN)(const Arguments&, const Team&),
          int64_t (*SCRATCH)(const Arguments&, int32_t)>
constexpr Operation operation() {
  return {[](const void* arguments, const Team& team) {
            RUN(*static_cast<const Arguments*>(arguments), team);
          },
          [](const void* arguments, int32_t threads) {
            return SCRATCH(*static_cast<const Arguments*>(arguments), threads);
          }};
}

template <typename Arguments>
int64_t no_scratch(const Arguments&, int32_t) {
  return 0;
}

// How one kind of convolution keeps its weights.
struct Packing {
  int64_t (*bytes)(int64_t out_channels, int64_t in_channels, int64_t kernel, int64_t packing);
  void (*pack)(void* packed, const float* weight, int64_t out_channels, int64_t in_channels,
               int64_t kernel, int64_t packing);
};

struct Kernels {
  const char* isa;
  bool (*supported)();
  void (*normal)(const NormalArguments&, int64_t begin, int64_t end);
  bool (*torch_normal)(const TorchNormalArguments&);  // whether there is one
  void (*ancestral_step)(const AncestralStepArguments&, int64_t begin, int64_t end);
  void (*q_sample)(const QSampleArguments&, int64_t begin, int64_t end);
  const Operation* operations[FASTDDPM_OP_CALL];  // a call is the same in every set
  const Packing *conv3x3_packing, *convolution_packing;
};

// The chosen set.
const Kernels& kernels();

}  // namespace fastddpm
