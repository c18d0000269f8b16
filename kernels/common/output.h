// What an instruction writes: (value + bias + row + residual) / divisor, a vector of channels at a
// time.
#pragma once

#include "../include/fastddpm.h"
#include "simd.h"

namespace {

// The row of sample b at this step, or null.
static inline const float* row_of(const fastddpm_row& row, int64_t sample, int64_t step) {
  if (row.data == nullptr) return nullptr;
  return row.data + sample * row.sample_stride + step * row.step_stride;
}

// What all pixels of a sample add, for the vector of channels that begins at c.
static inline f32 offset_of(const fastddpm_output& y, const float* row, int64_t c) {
  const int64_t left = y.channels - c;
  f32 offset = y.bias == nullptr ? f32{} : load(y.bias + c, left);
  if (row != nullptr) offset = offset + load(row + c, left);
  return offset;
}

// Finish and write the vector of channels that begins at c of one pixel; returns what was written.
static inline f32 write(const fastddpm_output& y, int64_t pixel, int64_t c, f32 value, f32 offset) {
  f32 v = value + offset;
  if (y.residual != nullptr) v = v + load(y.residual + pixel * y.residual_stride + c);
  if (y.divisor != 1.0) v = v / static_cast<float>(y.divisor);
  store(y.data + pixel * y.stride + c, v);
  return v;
}

// The same where only the first `count` channels are the caller's to write.
static inline void write_part(const fastddpm_output& y, int64_t pixel, int64_t c, int64_t count,
                              f32 value, f32 offset) {
  if (count >= LANES) {
    write(y, pixel, c, value, offset);
    return;
  }
  f32 v = value + offset;
  if (y.residual != nullptr) v = v + load(y.residual + pixel * y.residual_stride + c, count);
  if (y.divisor != 1.0) v = v / static_cast<float>(y.divisor);
  store(y.data + pixel * y.stride + c, v, count);
}

}  // namespace
