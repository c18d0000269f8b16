#include "check.h"

#include <cmath>
#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace {

// The reason why two lists differ by more than `tolerance`, or nothing.
std::string difference(const Results& got, const Results& want, double tolerance) {
  if (got.size() != want.size()) return "another number of arrays";
  for (size_t k = 0; k < got.size(); ++k) {
    if (got[k].values.size() != want[k].values.size()) return got[k].name + " of another size";
    double error = 0, norm = 0;
    for (size_t e = 0; e < got[k].values.size(); ++e) {
      error += std::pow(got[k].values[e] - want[k].values[e], 2);
      norm += std::pow(want[k].values[e], 2);
    }
    const double relative = std::sqrt(error / (norm > 0 ? norm : 1));
    // Written so that NaN differs.
    if (!(relative <= tolerance)) {
      char number[32];
      std::snprintf(number, sizeof number, "%.1e", relative);
      return got[k].name + " differs by " + number;
    }
  }
  return "";
}

Results part_of(const Results& whole, int64_t batch, Samples samples) {
  Results part;
  for (const Result& result : whole) {
    const auto each = static_cast<int64_t>(result.values.size()) / batch;
    const auto begin = result.values.begin();
    part.push_back({result.name, {begin + samples.first * each, begin + samples.last * each}});
  }
  return part;
}

std::string failure(const Case& of, const Results& want) {
  const Results whole = of.run({0, of.batch}, 1);
  std::string why = difference(whole, want, of.tolerance);
  if (!why.empty()) return why + " from the reference";
  for (const int32_t threads : {2, 3}) {
    why = difference(of.run({0, of.batch}, threads), whole, 0);
    if (!why.empty()) return why + " with " + std::to_string(threads) + " threads";
  }
  std::vector<Samples> splits = {{1, of.batch}};
  for (int64_t b = 0; b < of.batch; ++b) splits.push_back({b, b + 1});
  for (const Samples& samples : splits) {
    if (samples.count() == 0) continue;
    why = difference(of.run(samples, 2), part_of(whole, of.batch, samples), 0);
    if (why.empty()) continue;
    return why + " in samples " + std::to_string(samples.first) + " to " +
           std::to_string(samples.last - 1) + " by themselves";
  }
  return "";
}

}  // namespace

void execute(int64_t op, const void* arguments, int32_t threads) {
  const fastddpm_instruction code = {op, arguments};
  int32_t status = FASTDDPM_OK;
  fastddpm_program* program = fastddpm_program_create(&code, 1, threads, &status);
  if (program == nullptr) throw std::runtime_error(fastddpm_error_message(status));
  int64_t index = STEP;
  fastddpm_program_run(program, &index, 1, 0);
  fastddpm_program_destroy(program);
}

std::vector<std::string> instruction_sets() {
  std::istringstream names(fastddpm_isa_list());
  std::vector<std::string> sets;
  for (std::string name; names >> name;) sets.push_back(name);
  return sets;
}

int check(const Case& of) {
  const Results want = of.reference();
  int failures = 0;
  for (const std::string& set : instruction_sets()) {
    std::string why;
    try {
      fastddpm_use_isa(set.c_str());
      why = failure(of, want);
    } catch (const std::exception& error) {
      why = error.what();
    }
    if (why.empty()) continue;
    std::printf("FAIL %s, %s: %s\n", of.name.c_str(), set.c_str(), why.c_str());
    std::fflush(stdout);
    ++failures;
  }
  return failures;
}
