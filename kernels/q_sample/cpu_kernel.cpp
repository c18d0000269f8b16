// The forward process in one step, its noise drawn on the way and kept for the loss.
//
//     x_t = signal x_0 + spread z,   (signal, spread) = table[t]
//
// Specification: reference.py with the noise of fastddpm/noise.py, agreed with bit for bit.
#include "../common/kernels.h"
#include "../common/philox.h"

namespace {

constexpr uint32_t FORWARD = 2;  // Purpose.FORWARD of fastddpm/noise.py

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

void q_sample(const QSampleArguments& a, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_sample(a.elements);
  alignas(64) float z[4 * LANES];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / blocks, first = (block % blocks) * BLOCK;
    const int64_t last = first + BLOCK < a.elements ? first + BLOCK : a.elements;
    const float* row = a.table + a.t[sample] * FASTDDPM_FORWARD_COLUMNS;
    const Stream stream =
        stream_of(a.seed, a.indices[sample], a.steps[sample * a.step_stride], FORWARD);
    for (int64_t element = first; element < last; element += 4 * LANES) {
      normals(stream, static_cast<uint32_t>(element / 4), z);
      for (int64_t at = 0; at < 4 * LANES && element + at < last; at += LANES) {
        const int64_t offset = sample * a.elements + element + at, lanes = last - element - at;
        const f32 noise = load(z + at);
        const f32 x_t =
            load(a.x_0 + offset, lanes) * row[FASTDDPM_SIGNAL] + noise * row[FASTDDPM_SPREAD];
        store(a.noise + offset, noise, lanes);
        store(a.x_t + offset, x_t, lanes);
      }
    }
  }
}

}  // namespace fastddpm::FASTDDPM_ISA
