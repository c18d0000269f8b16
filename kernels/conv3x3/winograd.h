// Winograd's F(4x4, 3x3): 4x4 outputs of a 3x3 convolution from 6x6 inputs by 36 multiplications.
//
//     Y = A^T [ (G g G^T) * (B^T d B) ] A          * element by element, summed over input channels
//
// (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016; Toom-Cook). The six
// points are 0, +-p, +-q and infinity, with p = 3/4 and q = 3/2: half the error of the usual 1 and
// 2. With m(x) = x (x^2 - p^2) (x^2 - q^2), a row of B^T holds the coefficients of m(x) / (x - t),
// a row of G the powers of t. The factors 1 / m'(t) stand in A^T, where they cost nothing.
//
//           | 1    0   -(p^2+q^2)/(pq)^2  0      1/(pq)^2  0 |        | 1   0   0  |
//           | 0  -pq^2       -q^2         p         1      0 |        | 1   p  p^2 |
//     B^T = | 0   pq^2       -q^2        -p         1      0 |    G = | 1  -p  p^2 |
//           | 0  -qp^2       -p^2         q         1      0 |        | 1   q  q^2 |
//           | 0   qp^2       -p^2        -q         1      0 |        | 1  -q  q^2 |
//           | 0  (pq)^2        0     -(p^2+q^2)     0      1 |        | 0   0   1  |
//
//           | 1  s     s     r     r    0 |
//     A^T = | 0  sp   -sp    rq   -rq   0 |       s = 1 / (2 p^2 (p^2 - q^2))
//           | 0  sp^2  sp^2  rq^2  rq^2 0 |       r = 1 / (2 q^2 (q^2 - p^2))
//           | 0  sp^3 -sp^3  rq^3 -rq^3 1 |
#pragma once

#include "../common/simd.h"

namespace {

constexpr int TILE = 4, POINTS = 6, FREQUENCIES = POINTS * POINTS;

constexpr float P = 0.75f, Q = 1.5f, P2 = P * P, Q2 = Q * Q;
constexpr float POINT[POINTS] = {0, P, -P, Q, -Q, 0};  // the last stands for infinity
constexpr float S = static_cast<float>(1 / (2.0 * P2 * (P2 - Q2)));
constexpr float R = static_cast<float>(1 / (2.0 * Q2 * (Q2 - P2)));

// a + factor b
static inline f32 plus(f32 a, float factor, f32 b) { return multiply_add(broadcast(factor), b, a); }

// The rows of B^T times (d0 ... d5): the first, a pair +-t (other: the square of the other pair's
// point), and the last.
static inline f32 input_first(f32 d0, f32 d2, f32 d4) {
  return plus(plus(d0, -(P2 + Q2) / (P2 * Q2), d2), 1 / (P2 * Q2), d4);
}

static inline void input_pair(float t, float other, f32 d1, f32 d2, f32 d3, f32 d4, f32& positive,
                              f32& negative) {
  const f32 even = plus(d4, -other, d2), odd = plus(d3, -other, d1);
  positive = plus(even, t, odd);
  negative = plus(even, -t, odd);
}

static inline f32 input_last(f32 d1, f32 d3, f32 d5) {
  return plus(plus(d5, -(P2 + Q2), d3), P2 * Q2, d1);
}

static inline void input_line(const f32 (&d)[POINTS], float* to, int64_t stride) {
  f32 v[POINTS];
  v[0] = input_first(d[0], d[2], d[4]);
  input_pair(P, Q2, d[1], d[2], d[3], d[4], v[1], v[2]);
  input_pair(Q, P2, d[1], d[2], d[3], d[4], v[3], v[4]);
  v[5] = input_last(d[1], d[3], d[5]);
#pragma GCC unroll 6
  for (int j = 0; j < POINTS; ++j) store(to + j * stride, v[j]);
}

// B^T d B for LANES channels of one tile: pixel (y, x) at rows[y] + at + x * pixel, frequency f to
// to + f * stride. Two rows at a time, to fit the registers.
static inline void transform_input(const float* const (&rows)[POINTS], int64_t at, int64_t pixel,
                                   float* to, int64_t stride) {
  const auto d = [&](int y, int x) { return load(rows[y] + at + x * pixel); };
  f32 line[POINTS], next[POINTS];
#pragma GCC unroll 6
  for (int x = 0; x < POINTS; ++x) line[x] = input_first(d(0, x), d(2, x), d(4, x));
  input_line(line, to, stride);
#pragma GCC unroll 6
  for (int x = 0; x < POINTS; ++x) {
    input_pair(P, Q2, d(1, x), d(2, x), d(3, x), d(4, x), line[x], next[x]);
  }
  input_line(line, to + 6 * stride, stride);
  input_line(next, to + 12 * stride, stride);
#pragma GCC unroll 6
  for (int x = 0; x < POINTS; ++x) {
    input_pair(Q, P2, d(1, x), d(2, x), d(3, x), d(4, x), line[x], next[x]);
  }
  input_line(line, to + 18 * stride, stride);
  input_line(next, to + 24 * stride, stride);
#pragma GCC unroll 6
  for (int x = 0; x < POINTS; ++x) line[x] = input_last(d(1, x), d(3, x), d(5, x));
  input_line(line, to + 30 * stride, stride);
}

// Row ROW of G times (g0, g1, g2).
template <int ROW>
static inline f32 weight_point(f32 g0, f32 g1, f32 g2) {
  if constexpr (ROW == 0) return g0;
  if constexpr (ROW == POINTS - 1) return g2;
  return plus(plus(g0, POINT[ROW] * POINT[ROW], g2), POINT[ROW], g1);
}

// Row ROW of G g G^T for LANES output channels from the nine g(0) ... g(8): emit(column, u) for the
// columns 0, 5, 1, 2, 3, 4, so that one who uses each at once needs few registers.
template <int ROW, typename Weights, typename Emit>
static inline void transform_weights(const Weights& g, const Emit& emit) {
  f32 line[3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) line[x] = weight_point<ROW>(g(x), g(3 + x), g(6 + x));
  emit(0, line[0]);
  emit(5, line[2]);
  emit(1, weight_point<1>(line[0], line[1], line[2]));
  emit(2, weight_point<2>(line[0], line[1], line[2]));
  emit(3, weight_point<3>(line[0], line[1], line[2]));
  emit(4, weight_point<4>(line[0], line[1], line[2]));
}

// Rows 0 and 2 of A^T times (m0 ... m5), and rows 1 and 3.
static inline void output_even(f32 m0, f32 m1, f32 m2, f32 m3, f32 m4, f32& y0, f32& y2) {
  const f32 p = m1 + m2, q = m3 + m4;
  y0 = plus(plus(m0, S, p), R, q);
  y2 = plus(S * P2 * p, R * Q2, q);
}

static inline void output_odd(f32 m1, f32 m2, f32 m3, f32 m4, f32 m5, f32& y1, f32& y3) {
  const f32 p = m1 - m2, q = m3 - m4;
  y1 = plus(S * P * p, R * Q, q);
  y3 = plus(plus(m5, S * P * P2, p), R * Q * Q2, q);
}

static inline void output_line(const f32 (&m)[POINTS], f32 (&y)[TILE]) {
  output_even(m[0], m[1], m[2], m[3], m[4], y[0], y[2]);
  output_odd(m[1], m[2], m[3], m[4], m[5], y[1], y[3]);
}

// A^T m A for LANES channels of one tile, frequency f at m + f * stride: emit(row, y[4]) for each
// of the 4 rows, in the order 0, 2, 1, 3.
template <typename Emit>
static inline void transform_output(const float* m, int64_t stride, const Emit& emit) {
  const auto at = [&](int i, int j) { return load(m + (i * POINTS + j) * stride); };
  f32 line[POINTS], next[POINTS], y[TILE];
#pragma GCC unroll 6
  for (int j = 0; j < POINTS; ++j) {
    output_even(at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), line[j], next[j]);
  }
  output_line(line, y);
  emit(0, y);
  output_line(next, y);
  emit(2, y);
#pragma GCC unroll 6
  for (int j = 0; j < POINTS; ++j) {
    output_odd(at(1, j), at(2, j), at(3, j), at(4, j), at(5, j), line[j], next[j]);
  }
  output_line(line, y);
  emit(1, y);
  output_line(next, y);
  emit(3, y);
}

}  // namespace
