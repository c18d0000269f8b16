// The products of a piece, M += V U: U, transformed from nine numbers a weight, lives in the cache
// or, for few tiles, in registers.
#pragma once

#include "multiply_few.h"
#include "multiply_many.h"
#include "multiply_phase.h"
#include "multiply_thin.h"

namespace {

template <int WIDTH, typename Number>
static void multiply_numbers(Piece& piece, int phase) {
  if (piece.blocks.map.phases > 1) return multiply_phase<WIDTH, Number>(piece, phase);
  if (piece.blocks.few) return multiply_few<WIDTH, Number>(piece);
  if constexpr (THIN > FEW) {
    if (piece.blocks.thin) return multiply_thin<WIDTH, Number>(piece);
  }
  multiply_many<WIDTH, Number>(piece);
}

template <int WIDTH>
static void multiply(Piece& piece, int64_t packing, int phase) {
  if (packing == FASTDDPM_PACKING_TRANSFORMED) {
    multiply_transformed<WIDTH>(piece);
  } else if (packing == FASTDDPM_PACKING_FLOAT16) {
    multiply_numbers<WIDTH, uint16_t>(piece, phase);
  } else {
    multiply_numbers<WIDTH, float>(piece, phase);
  }
}

}  // namespace
