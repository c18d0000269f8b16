// The native tests of libfastddpm_cpu: every instruction on every instruction set of this machine.
// Usage: fastddpm_native_tests [part of a case's name]. Prints a line for every failure.
#include <cstdio>

#include "check.h"

int main(int count, char** arguments) {
  const std::string wanted = count > 1 ? arguments[1] : "";
  Cases cases;
  add_conv3x3(cases);
  add_convolution(cases);
  add_attention(cases);
  add_norm(cases);
  add_pointwise(cases);
  add_step(cases);
  add_draws(cases);
  add_torch_normal(cases);
  add_program(cases);
  add_team(cases);
  int run = 0, failures = 0;
  for (const Case& each : cases) {
    if (each.name.find(wanted) == std::string::npos) continue;
    failures += check(each);
    ++run;
  }
  std::printf("%d cases on %s: %d failures\n", run, fastddpm_isa_list(), failures);
  return failures == 0 && run > 0 ? 0 : 1;
}
