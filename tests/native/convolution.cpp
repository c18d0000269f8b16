// fastddpm_convolution, and with it the linear layer, against the plain sum.
#include <memory>

#include "check.h"
#include "formulas.h"

namespace {

struct Shape {
  int64_t batch, height, width;  // of the output
  std::vector<int64_t> in;
  int64_t out;
  int options;
  int64_t input_height, input_width, kernel, stride, padding;
};

constexpr int ALL = NORM | SILU | BIAS | STEP_ROW | RESIDUAL | STATISTICS;

const Shape SHAPES[] = {
    {3, 8, 8, {16}, 16, PLAIN, 8, 8, 1, 1, 0},
    {2, 7, 7, {3}, 5, BIAS | STATISTICS, 7, 7, 1, 1, 0},
    {2, 5, 9, {24, 12}, 17, ALL, 5, 9, 1, 1, 0},
    {2, 6, 5, {3, 30}, 66, ALL | WIDE, 6, 5, 1, 1, 0},
    {5, 4, 4, {72, 56}, 96, NORM | BIAS | IN_PLACE | STATISTICS, 4, 4, 1, 1, 0},
    {2, 28, 28, {1}, 1, BIAS, 28, 28, 1, 1, 0},
    {1, 16, 16, {200}, 150, BIAS | RESIDUAL | DIVISOR, 16, 16, 1, 1, 0},
    // Linear layers.
    {1, 1, 1, {128}, 512, BIAS, 1, 1, 1, 1, 0},
    {19, 1, 1, {33}, 70, SILU | BIAS | SAMPLE_ROW, 1, 1, 1, 1, 0},
    // Stride 2 as diffusers has it, with zeros all around and on two sides only.
    {2, 4, 4, {32}, 32, BIAS | STATISTICS, 8, 8, 3, 2, 1},
    {2, 4, 4, {32}, 32, BIAS | STATISTICS, 8, 8, 3, 2, 0},
    {2, 4, 4, {20}, 9, BIAS | RESIDUAL, 7, 7, 3, 2, 1},
    {2, 3, 5, {3}, 18, ALL, 7, 11, 3, 2, 0},
    {2, 14, 14, {40, 7}, 36, NORM | SILU | BIAS | WIDE | STATISTICS, 28, 28, 3, 2, 1},
    {3, 1, 1, {16}, 16, BIAS, 1, 1, 3, 2, 1},
    {2, 1, 1, {16}, 16, BIAS, 2, 2, 3, 2, 0},
    // And what else the contract allows.
    {2, 9, 6, {24}, 20, ALL, 9, 6, 3, 1, 1},
    {2, 4, 5, {16}, 16, PLAIN, 6, 7, 3, 1, 0},
    {2, 3, 3, {16}, 24, BIAS, 7, 8, 3, 3, 1},
    {2, 4, 3, {17}, 24, BIAS, 7, 6, 1, 2, 0},
};

struct Packing {
  int64_t code;
  const char* name;
  double tolerance;
};

const Packing PACKINGS[] = {
    {FASTDDPM_PACKING_FLOAT32, "float32", FLOAT32},
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
        input(s.batch, s.input_height, s.input_width, s.in, s.options),
        output(s.batch, s.height, s.width, s.out, s.options),
        weight(random_weight(s.out, input.channels(), s.kernel)) {}

  Results reference() const {
    return output.finish(convolve(input.read(), weight, shape.out, shape.kernel, shape.stride,
                                  shape.padding, shape.height, shape.width));
  }

  Results run(Samples samples, int32_t threads) const {
    const InputMemory x(input, samples);
    const OutputMemory y(output, samples);
    const Memory<float> plain(weight);
    const Memory<char> packed(
        fastddpm_packed_convolution_bytes(shape.out, input.channels(), shape.kernel, packing.code));
    fastddpm_pack_convolution(packed.data(), plain.data(), shape.out, input.channels(),
                              shape.kernel, packing.code);
    const fastddpm_convolution arguments = {x.input,           y.output,      samples.count(),
                                            shape.height,      shape.width,   shape.input_height,
                                            shape.input_width, shape.kernel,  shape.stride,
                                            shape.padding,     packed.data(), packing.code};
    execute(FASTDDPM_OP_CONVOLUTION, &arguments, threads);
    return y.take();
  }
};

}  // namespace

void add_convolution(Cases& cases) {
  for (const Shape& shape : SHAPES) {
    for (const Packing& packing : PACKINGS) {
      const auto problem = std::make_shared<const Problem>(shape, packing);
      const std::string kernel = std::to_string(shape.kernel) + "x" + std::to_string(shape.kernel);
      std::string name = "convolution " + kernel + " / " + std::to_string(shape.stride) + " " +
                         shape_name(problem->input, problem->output) + " " + packing.name;
      cases.push_back({name, shape.batch, packing.tolerance, [=] { return problem->reference(); },
                       [=](Samples s, int32_t threads) { return problem->run(s, threads); }});
    }
  }
}
