// fastddpm_conv3x3 against the sum over nine shifted maps.
#include <memory>

#include "check.h"
#include "formulas.h"

namespace {

struct Shape {
  int64_t batch, height, width;
  std::vector<int64_t> in;
  int64_t out;
  int options;
  bool doubled;
};

constexpr int ALL = NORM | SILU | BIAS | STEP_ROW | RESIDUAL | STATISTICS;

const Shape SHAPES[] = {
    {3, 8, 8, {16}, 16, PLAIN, false},
    {2, 7, 7, {3}, 5, BIAS, false},
    {2, 28, 28, {1}, 20, BIAS | STATISTICS, false},
    {2, 28, 28, {20}, 1, NORM | SILU | BIAS, false},
    {2, 5, 9, {24, 12}, 17, ALL, false},
    {2, 6, 10, {3, 30}, 34, ALL | WIDE, false},
    {5, 4, 4, {32}, 40, ALL, false},
    {7, 2, 3, {8, 8}, 16, NORM | BIAS, false},
    {9, 1, 1, {5}, 3, SILU | BIAS, false},
    {2, 12, 16, {72, 56}, 80, NORM | SILU | BIAS | SAMPLE_ROW | IN_PLACE | STATISTICS, false},
    {1, 32, 32, {32}, 33, BIAS | RESIDUAL | DIVISOR | STATISTICS, false},
    {1, 33, 31, {17}, 16, NORM | SILU | STATISTICS, false},
    {2, 8, 8, {160}, 144, ALL, false},
    // More than the block of lines that is transformed together.
    {2, 32, 60, {260}, 2, BIAS | STATISTICS, false},
    {2, 14, 10, {20}, 9, BIAS | STATISTICS, true},
    {3, 2, 2, {16}, 16, PLAIN, true},
    {2, 16, 16, {36, 44}, 48, NORM | SILU | BIAS | WIDE, true},
    {2, 8, 8, {64}, 64, BIAS | STEP_ROW | DIVISOR | STATISTICS, true},
    // Several blocks of each member's own.
    {2, 64, 64, {16}, 112, PLAIN, false},
    // Phase by phase.
    {3, 38, 26, {20, 7}, 40, ALL | WIDE, true},
    {2, 32, 32, {260}, 17, BIAS | DIVISOR | STATISTICS, true},
    {2, 36, 64, {16}, 16, BIAS | RESIDUAL | IN_PLACE | STATISTICS, true},
};

struct Packing {
  int64_t code;
  const char* name;
  double tolerance;
};

const Packing PACKINGS[] = {
    {FASTDDPM_PACKING_FLOAT32, "float32", FLOAT32},
    {FASTDDPM_PACKING_TRANSFORMED, "transformed", FLOAT32},
    {FASTDDPM_PACKING_FLOAT16, "float16", FLOAT16},
};

struct Problem {
  Shape shape;
  Packing packing;
  Input input;
  Output output;
  std::vector<double> weight;

  Problem(const Shape& s, const Packing& packing)
      : shape(s),
        packing(packing),
        input(s.batch, s.height / (s.doubled ? 2 : 1), s.width / (s.doubled ? 2 : 1), s.in,
              s.options),
        output(s.batch, s.height, s.width, s.out, s.options),
        weight(random_weight(s.out, input.channels(), 3)) {}

  Results reference() const {
    const Map x = shape.doubled ? enlarged(input.read()) : input.read();
    return output.finish(convolve(x, weight, shape.out, 3, 1, 1, shape.height, shape.width));
  }

  Results run(Samples samples, int32_t threads) const {
    const InputMemory x(input, samples);
    const OutputMemory y(output, samples);
    const Memory<float> plain(weight);
    const Memory<char> packed(
        fastddpm_packed_conv3x3_bytes(shape.out, input.channels(), packing.code));
    fastddpm_pack_conv3x3(packed.data(), plain.data(), shape.out, input.channels(), packing.code);
    const fastddpm_conv3x3 arguments = {x.input,     y.output,      samples.count(), shape.height,
                                        shape.width, shape.doubled, packed.data(),   packing.code};
    execute(FASTDDPM_OP_CONV3X3, &arguments, threads);
    return y.take();
  }
};

}  // namespace

void add_conv3x3(Cases& cases) {
  for (const Shape& shape : SHAPES) {
    for (const Packing& packing : PACKINGS) {
      const auto problem = std::make_shared<const Problem>(shape, packing);
      std::string name = "conv3x3 " + shape_name(problem->input, problem->output) + " " +
                         (shape.doubled ? "doubled " : "") + packing.name;
      cases.push_back({name, shape.batch, packing.tolerance, [=] { return problem->reference(); },
                       [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
    }
  }
}
