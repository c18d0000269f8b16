// fastddpm_attention against softmax(q k^T scale) v, written out.
#include <algorithm>
#include <cmath>
#include <memory>

#include "check.h"
#include "formulas.h"

namespace {

struct Shape {
  int64_t batch, height, width, heads, head_dim;
  int options;
  bool one_map;      // q, k and v are parts of one map
  double deviation;  // of q and k: large ones make scores that overflow without the maximum
  double tolerance;
};

const Shape SHAPES[] = {
    {3, 4, 4, 1, 64, PLAIN, false, 1, FLOAT32},
    {2, 7, 7, 1, 20, BIAS | RESIDUAL, false, 1, FLOAT32},
    {2, 7, 7, 3, 12, IN_PLACE | DIVISOR, false, 1, FLOAT32},
    {2, 5, 9, 4, 16, RESIDUAL, true, 1, FLOAT32},
    {2, 16, 16, 1, 48, STEP_ROW | WIDE, true, 1, FLOAT32},
    {1, 16, 16, 2, 160, RESIDUAL, false, 1, FLOAT32},
    {2, 1, 1, 2, 8, BIAS, false, 1, FLOAT32},
    {2, 3, 1, 5, 1, SAMPLE_ROW, false, 1, FLOAT32},
    {2, 8, 8, 1, 256, RESIDUAL, true, 1, FLOAT32},
    {2, 6, 6, 2, 32, PLAIN, false, 12, 1e-4},
};

struct Problem {
  Shape shape;
  Map q, k, v;
  Output output;

  explicit Problem(const Shape& s)
      : shape(s),
        q(random_map(s.batch, s.height, s.width, s.heads * s.head_dim, 0, s.deviation)),
        k(random_map(s.batch, s.height, s.width, s.heads * s.head_dim, 0, s.deviation)),
        v(random_map(s.batch, s.height, s.width, s.heads * s.head_dim, 1)),
        output(s.batch, s.height, s.width, s.heads * s.head_dim, s.options) {}

  int64_t tokens() const { return shape.height * shape.width; }
  int64_t channels() const { return shape.heads * shape.head_dim; }
  double scale() const { return 1 / std::sqrt(static_cast<double>(shape.head_dim)); }

  Results reference() const { return output.finish(attention(q, k, v, shape.heads, scale())); }

  Results run(Samples samples, int32_t threads) const {
    const OutputMemory y(output, samples);
    fastddpm_attention arguments = {};
    const int64_t stride = stride_of(channels());
    Memory<float> parts[3] = {laid_out(q, samples, stride), laid_out(k, samples, stride),
                              laid_out(v, samples, stride)};
    arguments.q = parts[0].data();
    arguments.k = parts[1].data();
    arguments.v = parts[2].data();
    arguments.q_stride = arguments.k_stride = arguments.v_stride = stride;
    Memory<float> joined;
    if (shape.one_map) {
      const int64_t pixels = samples.count() * tokens();
      joined = Memory<float>(pixels * 3 * stride);
      for (int64_t p = 0; p < pixels; ++p) {
        for (int part = 0; part < 3; ++part) {
          std::copy_n(parts[part].data() + p * stride, stride,
                      joined.data() + (3 * p + part) * stride);
        }
      }
      arguments.q = joined.data();
      arguments.k = joined.data() + stride;
      arguments.v = joined.data() + 2 * stride;
      arguments.q_stride = arguments.k_stride = arguments.v_stride = 3 * stride;
    }
    arguments.y = y.output;
    arguments.batch = samples.count();
    arguments.tokens = tokens();
    arguments.heads = shape.heads;
    arguments.head_dim = shape.head_dim;
    arguments.scale = scale();
    execute(FASTDDPM_OP_ATTENTION, &arguments, threads);
    return y.take();
  }
};

}  // namespace

void add_attention(Cases& cases) {
  for (const Shape& shape : SHAPES) {
    const auto problem = std::make_shared<const Problem>(shape);
    std::string name = "attention " + std::to_string(shape.height) + "x" +
                       std::to_string(shape.width) + ", " + std::to_string(shape.heads) +
                       " heads of " + std::to_string(shape.head_dim);
    cases.push_back({name, shape.batch, shape.tolerance, [=] { return problem->reference(); },
                     [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
  }
}
