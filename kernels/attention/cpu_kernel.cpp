// Attention (Vaswani et al. 2017, equation 1), for each head of each sample:
//
//     s = scale q k^T,   p = exp(s - max s),   y = (p v) / sum p        rows by themselves
//
// A block of queries has whole rows of s in scratch: two matrix products around a softmax, nothing
// rescaled, the numerator exact in its order. k^T and v are packed into panels once per head. A NaN
// anywhere in a row of s makes the whole row of y NaN.
//
// A thread takes a head to itself while there is one for everybody; the heads that remain are
// packed together, and their blocks of queries shared out.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/output.h"
#include "../common/rows_times_panel.h"

namespace {

using fastddpm::Team;

constexpr int64_t SCORES = 64 * 1024;  // floats of a block of queries, a quarter of a usual L2
constexpr int64_t MAX_BLOCKS = 4;      // of MAX_ROWS queries

struct Plan {
  Plan(const fastddpm_attention& a, int64_t threads)
      : heads(a.batch * a.heads),
        alone(heads / threads * threads),
        key_panels((a.tokens + PANEL - 1) / PANEL),
        value_panels((a.head_dim + PANEL - 1) / PANEL),
        query_stride(scratch_stride(a.head_dim)),
        score_stride(scratch_stride(key_panels * PANEL)) {
    const int64_t fit = SCORES / score_stride / MAX_ROWS;
    const int64_t rows = (fit < 1 ? 1 : fit < MAX_BLOCKS ? fit : MAX_BLOCKS) * MAX_ROWS;
    blocks = (a.tokens + rows - 1) / rows;
    if (alone < heads) blocks = round_up(blocks, threads);
    if (blocks > a.tokens) blocks = a.tokens;
    block_rows = (a.tokens + blocks - 1) / blocks;
    packed_keys = key_panels * a.head_dim * PANEL;
    packed_floats = scratch_stride(packed_keys + value_panels * a.tokens * PANEL);
    own_floats = scratch_stride(block_rows * (query_stride + score_stride + PANEL + 1));
  }

  int64_t bytes(int64_t threads) const {
    return threads * (packed_floats + own_floats) * int64_t{sizeof(float)};
  }

  int64_t heads, alone;  // of all samples; those that a thread takes to itself
  int64_t key_panels, value_panels;
  int64_t query_stride, score_stride;
  int64_t blocks, block_rows;  // of queries
  int64_t packed_keys, packed_floats;
  int64_t own_floats;  // of one thread: queries, scores, sums, 1 / sums of p
};

// One head: where its rows begin, and its panels.
struct Head {
  Head(const fastddpm_attention& a, const Plan& plan, int64_t index, float* packed)
      : sample(index / a.heads),
        channel(index % a.heads * a.head_dim),
        pixel(sample * a.tokens),
        keys(packed),
        values(packed + plan.packed_keys) {}

  int64_t sample, channel, pixel;
  float* keys;    // [key_panels][head_dim][PANEL]
  float* values;  // [value_panels][tokens][PANEL]
};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Columns of a panel are keys, 0 beyond the last.
static void pack_keys(const fastddpm_attention& a, const Head& head, int64_t panel) {
  const int64_t first = panel * PANEL, count = least(PANEL, a.tokens - first);
  const float* from = a.k + (head.pixel + first) * a.k_stride + head.channel;
  float* to = head.keys + first * a.head_dim;
  for (int64_t c = 0; c < a.head_dim; ++c, to += PANEL) {
    for (int64_t key = 0; key < PANEL; ++key) {
      to[key] = key < count ? from[key * a.k_stride + c] : 0;
    }
  }
}

static void pack_values(const fastddpm_attention& a, const Head& head, int64_t panel) {
  const int64_t first = panel * PANEL;
  const float* from = a.v + head.pixel * a.v_stride + head.channel + first;
  float* to = head.values + first * a.tokens;
  for (int64_t token = 0; token < a.tokens; ++token, from += a.v_stride, to += PANEL) {
    for (int64_t c = 0; c < PANEL; c += LANES) {
      const int64_t left = a.head_dim - first - c;
      store(to + c, left > 0 ? load(from + c, left) : f32{});
    }
  }
}

static void pack(const fastddpm_attention& a, const Plan& plan, const Head& head, int64_t panel) {
  if (panel < plan.key_panels) {
    pack_keys(a, head, panel);
  } else {
    pack_values(a, head, panel - plan.key_panels);
  }
}

// s -> p in place; returns 1 / sum p.
static float soften(float* row, int64_t tokens) {
  f32 most = broadcast(-__builtin_inff()), sum = {};
  for (int64_t t = tokens; t % LANES != 0; ++t) row[t] = -__builtin_inff();
  for (int64_t t = 0; t < tokens; t += LANES) {
    const f32 s = load(row + t);
    most = s > most ? s : most;
  }
  float greatest = most[0], total = 0;
  for (int lane = 1; lane < LANES; ++lane) greatest = most[lane] > greatest ? most[lane] : greatest;
  for (int64_t t = 0; t < tokens; t += LANES) {
    const f32 p = bounded_exponential(load(row + t) - greatest);
    sum = sum + p;
    store(row + t, p);
  }
  for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
  return 1.0f / total;
}

static void attend(const fastddpm_attention& a, const Plan& plan, const Head& head, int64_t step,
                   int64_t first, int64_t end, float* room) {
  const int64_t count = end - first;
  float* const queries = room;
  float* const scores = queries + plan.block_rows * plan.query_stride;
  float* const sums = scores + plan.block_rows * plan.score_stride;
  float* const inverse = sums + plan.block_rows * PANEL;
  const float scale = static_cast<float>(a.scale);
  for (int64_t row = 0; row < count; ++row) {
    const float* q = a.q + (head.pixel + first + row) * a.q_stride + head.channel;
    for (int64_t c = 0; c < a.head_dim; ++c) queries[row * plan.query_stride + c] = q[c] * scale;
  }
  for (int64_t panel = 0; panel < plan.key_panels; ++panel) {
    const float* keys = head.keys + panel * a.head_dim * PANEL;
    const auto keep = [&](int64_t row, const auto& sum) {
      float* to = scores + row * plan.score_stride + panel * PANEL;
      for (const auto& vectors : sum) {
        int64_t at = 0;
        for (const f32& vector : vectors) store(to + LANES * at++, vector);
        to += plan.score_stride;
      }
    };
    with_width(a.tokens - panel * PANEL, [&](auto width) {
      multiply_rows<decltype(width)::value>(
          {queries, plan.query_stride, count, a.head_dim},
          [&](int64_t k, int64_t) { return keys + k * PANEL; }, sums, keep);
    });
  }
  for (int64_t row = 0; row < count; ++row) {
    inverse[row] = soften(scores + row * plan.score_stride, a.tokens);
  }
  const float* y_row = row_of(a.y.row, head.sample, step);
  for (int64_t panel = 0; panel < plan.value_panels; ++panel) {
    const float* values = head.values + panel * a.tokens * PANEL;
    const auto finish = [&](int64_t row, const auto& sum) {
      int64_t pixel = head.pixel + first + row;
      for (const auto& vectors : sum) {
        const float factor = inverse[row++];
        int64_t at = panel * PANEL;
        for (const f32& vector : vectors) {
          const int64_t c = head.channel + at, left = a.head_dim - at;
          const f32 offset = offset_of(a.y, y_row, c);
          if (left >= LANES) {
            write(a.y, pixel, c, vector * factor, offset);
          } else {
            write_part(a.y, pixel, c, left, vector * factor, offset);
          }
          at += LANES;
        }
        ++pixel;
      }
    };
    with_width(a.head_dim - panel * PANEL, [&](auto width) {
      multiply_rows<decltype(width)::value>(
          {scores, plan.score_stride, count, a.tokens},
          [&](int64_t k, int64_t) { return values + k * PANEL; }, sums, finish);
    });
  }
}

void run_attention(const fastddpm_attention& a, const Team& team) {
  const Plan plan(a, team.size);
  float* const packed = reinterpret_cast<float*>(team.scratch);
  float* const room = packed + team.size * plan.packed_floats + team.member * plan.own_floats;
  const auto attend_block = [&](const Head& head, int64_t block) {
    attend(a, plan, head, team.step, a.tokens * block / plan.blocks,
           a.tokens * (block + 1) / plan.blocks, room);
  };
  const int64_t panels = plan.key_panels + plan.value_panels;
  for (int64_t index = team.claim(); index < plan.alone; index = team.claim()) {
    const Head head(a, plan, index, packed + team.member * plan.packed_floats);
    for (int64_t panel = 0; panel < panels; ++panel) pack(a, plan, head, panel);
    for (int64_t block = 0; block < plan.blocks; ++block) attend_block(head, block);
  }
  const int64_t rest = plan.heads - plan.alone;
  if (rest == 0) return;
  const auto shared_head = [&](int64_t index) {
    return Head(a, plan, plan.alone + index, packed + index * plan.packed_floats);
  };
  team.barrier();
  for (int64_t piece = team.claim(); piece < rest * panels; piece = team.claim()) {
    pack(a, plan, shared_head(piece / panels), piece % panels);
  }
  team.barrier();
  for (int64_t piece = team.claim(); piece < rest * plan.blocks; piece = team.claim()) {
    attend_block(shared_head(piece / plan.blocks), piece % plan.blocks);
  }
}

int64_t scratch_bytes(const fastddpm_attention& a, int32_t threads) {
  return Plan(a, threads).bytes(threads);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation attention;
const Operation attention = operation<fastddpm_attention, run_attention, scratch_bytes>();

}  // namespace fastddpm::FASTDDPM_ISA
