// What is asked of every case, for every instruction set that this machine runs:
//
//   - the numbers are those of a plain reference in double, to `tolerance` (relative L2 distance);
//   - 1, 2 and 3 threads give the same bits;
//   - a sample alone, and the batch without its first sample, give the same bits.
//
// The tolerance is wide enough for float32 and far below one wrong element.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ports.h"

struct Case {
  std::string name;
  int64_t batch;
  double tolerance;
  std::function<Results()> reference;
  std::function<Results(Samples, int32_t threads)> run;
};

constexpr double FLOAT32 = 1e-5, FLOAT16 = 1e-3;

// Runs one instruction once, as a program, for step STEP.
void execute(int64_t op, const void* arguments, int32_t threads);

std::vector<std::string> instruction_sets();

// Adds the cases of one kind; each in the file of that name.
using Cases = std::vector<Case>;
void add_conv3x3(Cases&);
void add_convolution(Cases&);
void add_attention(Cases&);
void add_norm(Cases&);
void add_pointwise(Cases&);
void add_step(Cases&);
void add_draws(Cases&);
void add_torch_normal(Cases&);
void add_program(Cases&);
void add_team(Cases&);

// Prints one line for each set with which the case fails; returns how many there are.
int check(const Case& of);
