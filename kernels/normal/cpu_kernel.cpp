// Standard normal noise. Specification: fastddpm/noise.py, agreed with bit for bit.
#include "../common/kernels.h"
#include "../common/philox.h"

namespace fastddpm::FASTDDPM_ISA {

void normal(const NormalArguments& a, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_per_sample(a.elements);
  alignas(64) float z[4 * LANES];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t sample = block / blocks, first = (block % blocks) * BLOCK;
    const Stream stream =
        stream_of(a.seed, a.indices[sample], a.steps[sample * a.step_stride], a.purpose);
    const int64_t last = first + BLOCK < a.elements ? first + BLOCK : a.elements;
    for (int64_t element = first; element < last; element += 4 * LANES) {
      const int64_t count = last - element < 4 * LANES ? last - element : 4 * LANES;
      normals(stream, static_cast<uint32_t>(element / 4), z);
      memcpy(a.out + sample * a.elements + element, z, count * sizeof(float));
    }
  }
}

}  // namespace fastddpm::FASTDDPM_ISA
