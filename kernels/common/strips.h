// The statistics of a map that lies finished before the team: fastddpm_statistics. A barrier stands
// before it.
#pragma once

#include "statistics.h"
#include "team.h"

namespace {

static inline void write_statistics(const fastddpm_statistics& s, const fastddpm::Team& team) {
  constexpr int64_t GROUP = 64;  // channels of one piece of work
  const int64_t strips = strips_of(s.height), groups = (s.channels + GROUP - 1) / GROUP;
  const int64_t pieces = s.batch * strips * groups;
  for (int64_t piece = team.claim(); piece < pieces; piece = team.claim()) {
    const int64_t first = piece % groups * GROUP, strip = piece / groups % strips;
    const int64_t sample = piece / groups / strips, left = s.channels - first;
    const float* from = s.data + (sample * s.height + strip * STRIP) * s.width * s.stride;
    strip_statistics(from, s.stride, rows_of(strip, s.height), s.width, first,
                     first + (left < GROUP ? left : GROUP),
                     s.statistics + (sample * strips + strip) * 2 * s.stride);
  }
}

}  // namespace
