// Which instruction set runs: the best that this CPU has, chosen once when the library is loaded.
//
// Built with baseline flags and without link-time optimisation, as must be everything that runs
// before the choice. CMake defines FASTDDPM_HAS_<SET> for each set it compiled the kernels for.
#include <cstring>

#include "../include/fastddpm.h"
#include "kernels.h"

#define FASTDDPM_DECLARE(SET)                                           \
  namespace SET {                                                       \
  void normal(const NormalArguments&, int64_t, int64_t);                \
  bool torch_normal(const TorchNormalArguments&);                       \
  void ancestral_step(const AncestralStepArguments&, int64_t, int64_t); \
  void q_sample(const QSampleArguments&, int64_t, int64_t);             \
  extern const Operation conv3x3, convolution, attention, statistics;   \
  extern const Operation norm, pointwise, layout, step;                 \
  extern const Packing conv3x3_packing, convolution_packing;            \
  }
// The operations in the order of their codes.
#define FASTDDPM_ENTRY(SET, SUPPORTED)                                               \
  {#SET,                                                                             \
   SUPPORTED,                                                                        \
   SET::normal,                                                                      \
   SET::torch_normal,                                                                \
   SET::ancestral_step,                                                              \
   SET::q_sample,                                                                    \
   {&SET::conv3x3, &SET::convolution, &SET::attention, &SET::statistics, &SET::norm, \
    &SET::pointwise, &SET::layout, &SET::step},                                      \
   &SET::conv3x3_packing,                                                            \
   &SET::convolution_packing}

namespace fastddpm {

FASTDDPM_DECLARE(baseline)
FASTDDPM_DECLARE(avx2)
FASTDDPM_DECLARE(avx512)

namespace {

bool has_baseline() { return true; }

#ifdef FASTDDPM_HAS_avx2
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

#ifdef FASTDDPM_HAS_avx512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Worst first.
const Kernels SETS[] = {
    FASTDDPM_ENTRY(baseline, has_baseline),
#ifdef FASTDDPM_HAS_avx2
    FASTDDPM_ENTRY(avx2, has_avx2),
#endif
#ifdef FASTDDPM_HAS_avx512
    FASTDDPM_ENTRY(avx512, has_avx512),
#endif
};

const Kernels* best() {
  const Kernels* found = &SETS[0];
  for (const Kernels& set : SETS) {
    if (set.supported()) found = &set;
  }
  return found;
}

// The supported names, separated by spaces.
struct Names {
  char text[64] = "";

  Names() {
    for (const Kernels& set : SETS) {
      if (!set.supported()) continue;
      if (text[0] != 0) strcat(text, " ");
      strcat(text, set.isa);
    }
  }
};

const Names names;
const Kernels* chosen = best();

}  // namespace

const Kernels& kernels() { return *chosen; }

}  // namespace fastddpm

extern "C" {

const char* fastddpm_isa_name(void) { return fastddpm::kernels().isa; }

const char* fastddpm_isa_list(void) { return fastddpm::names.text; }

int32_t fastddpm_use_isa(const char* name) {
  if (name == nullptr) return FASTDDPM_INVALID_ARGUMENT;
  for (const fastddpm::Kernels& set : fastddpm::SETS) {
    if (set.supported() && strcmp(set.isa, name) == 0) {
      fastddpm::chosen = &set;
      return FASTDDPM_OK;
    }
  }
  return FASTDDPM_UNKNOWN_ISA;
}

}  // extern "C"
