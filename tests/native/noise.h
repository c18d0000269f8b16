// The noise of fastddpm/noise.py: Philox's integers as they are, the normals in double.
#pragma once

#include <cstdint>

// Element `element` of sample `index`.
double normal_of(uint64_t seed, int64_t index, int64_t step, uint32_t purpose, int64_t element);
