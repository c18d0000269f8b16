// 3x3 convolution of stride 1.
#include "../common/kernels.h"

namespace {

using fastddpm::Team;

void run_conv3x3(const fastddpm_conv3x3&, const Team&) {}
int64_t bytes(int64_t, int64_t, int64_t, int64_t) { return 64; }
void pack(void*, const float*, int64_t, int64_t, int64_t, int64_t) {}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation conv3x3;
const Operation conv3x3 = operation<fastddpm_conv3x3, run_conv3x3, no_scratch<fastddpm_conv3x3>>();
extern const Packing conv3x3_packing;
const Packing conv3x3_packing = {bytes, pack};

}  // namespace fastddpm::FASTDDPM_ISA
