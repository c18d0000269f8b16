// What the instructions compute, written plainly in double: the references.
#pragma once

#include <vector>

#include "array.h"

// [out, in, kernel, kernel] of a size that keeps the output's variance near 1.
std::vector<double> random_weight(int64_t out, int64_t in, int64_t kernel);

// y[b, i, j, o] = sum over c, u, v of w[o, c, u, v] x[b, stride i + u - padding, ..., c]; zeros
// beyond the border.
Map convolve(const Map& x, const std::vector<double>& weight, int64_t out, int64_t kernel,
             int64_t stride, int64_t padding, int64_t height, int64_t width);

// Twice as high and wide, each pixel four times; half as high and wide, the mean of each four.
Map enlarged(const Map& x);
Map halved(const Map& x);

// Mean and squared deviations over strips of 4 rows, [B, strips, 2, C].
Map statistics_of(const Map& map);

// GroupNorm over maps side by side: (mean, 1 / sqrt(variance + eps), 0), [B, 3, 1, C].
Map group_norm(const std::vector<Map>& maps, int64_t groups, double eps);

// Channels [first, last), and maps side by side.
Map channels_of(const Map& map, int64_t first, int64_t last);
Map joined(const std::vector<Map>& maps);

// softmax(q k^T scale) v for each head.
Map attention(const Map& q, const Map& k, const Map& v, int64_t heads, double scale);
