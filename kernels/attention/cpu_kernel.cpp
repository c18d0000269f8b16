// Attention.
#include "../common/kernels.h"

namespace {

using fastddpm::Team;

void run_attention(const fastddpm_attention&, const Team&) {}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation attention;
const Operation attention =
    operation<fastddpm_attention, run_attention, no_scratch<fastddpm_attention>>();

}  // namespace fastddpm::FASTDDPM_ISA
