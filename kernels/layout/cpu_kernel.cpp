// Between torch's order and channels last.
#include "../common/kernels.h"

namespace {

using fastddpm::Team;

void run_layout(const fastddpm_layout&, const Team&) {}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation layout;
const Operation layout = operation<fastddpm_layout, run_layout, no_scratch<fastddpm_layout>>();

}  // namespace fastddpm::FASTDDPM_ISA
