#include "noise.h"

#include <cmath>

namespace {

struct Words {
  uint32_t word[4];
};

// Salmon et al. 2011.
Words philox4x32(Words counter, uint32_t k0, uint32_t k1) {
  uint32_t (&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = 0xD2511F53ull * c[0], second = 0xCD9E8D57ull * c[2];
    counter = {{static_cast<uint32_t>(second >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(second),
                static_cast<uint32_t>(first >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(first)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

}  // namespace

double normal_of(uint64_t seed, int64_t index, int64_t step, uint32_t purpose, int64_t element) {
  const auto sample = static_cast<uint64_t>(index);
  const Words words =
      philox4x32({{static_cast<uint32_t>(element / 4),
                   (static_cast<uint32_t>(step) & 0xFFFFFF) | purpose << 24,
                   static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32)}},
                 static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint32_t* pair = words.word + element % 4 / 2 * 2;
  const double u = static_cast<float>(pair[0]) * 0x1p-32 + 0x1p-33;
  const double s = ((pair[1] >> 6) & 0xFFFFFF) * 0x1p-24 - 0.5;
  const double angle = std::acos(0.0) * ((pair[1] >> 30) + s);
  return std::sqrt(-2 * std::log(u)) * (element % 2 == 0 ? std::cos(angle) : std::sin(angle));
}
