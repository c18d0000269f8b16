// The two ends that most instructions share, fastddpm_input and fastddpm_output: their random
// numbers, their reference, and their memory for a part of the batch.
#pragma once

#include <string>

#include "../../kernels/include/fastddpm.h"
#include "array.h"

// A program runs step STEP of tables of STEPS rows.
constexpr int64_t STEP = 2, STEPS = 4;

enum Option {
  PLAIN = 0,
  NORM = 1,
  SILU = 2,
  BIAS = 4,
  STEP_ROW = 8,     // a row for each step that all samples share
  SAMPLE_ROW = 16,  // a row for each sample and step
  RESIDUAL = 32,
  IN_PLACE = 64,  // the residual is the output itself
  DIVISOR = 128,
  STATISTICS = 256,
  WIDE = 512  // strides larger than they must be
};

// One array that an instruction writes; the numbers of one sample lie together.
struct Result {
  std::string name;
  std::vector<double> values;
};
using Results = std::vector<Result>;

struct Input {
  std::vector<Map> maps;  // one, or two side by side
  Map norm;               // [B, 3, 1, C]: mean, scale, shift
  int options;

  Input(int64_t batch, int64_t height, int64_t width, const std::vector<int64_t>& channels,
        int options);
  int64_t channels() const { return norm.channels; }
  Map read() const;  // reference
};

struct InputMemory {
  Memory<float> maps[2], norm;
  fastddpm_input input = {};

  InputMemory(const Input& from, Samples samples);
};

struct Output {
  Map residual;  // also the shape
  std::vector<double> bias;
  Map rows;  // [1 or B, STEPS, 1, C]
  double divisor;
  int options;

  Output(int64_t batch, int64_t height, int64_t width, int64_t channels, int options);
  // References: what is written at one step, and all that is written at step STEP.
  Map finished(Map value, int64_t step) const;
  Results finish(const Map& value) const;
};

struct OutputMemory {
  Memory<float> map, residual, bias, rows, statistics;
  fastddpm_output output = {};

  OutputMemory(const Output& to, Samples samples);
  Results take() const;
};

// As in "2 x 5x9x24+12 to 17 norm silu": what one case differs in from another.
std::string shape_name(const Input& from, const Output& to);
