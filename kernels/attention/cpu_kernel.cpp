// Attention (Vaswani et al. 2017, equation 1), for each head of each sample:
//
//     s = scale q k^T,   p = exp(s - max s),   y = (p v) / sum p        rows by themselves
//
// A block of queries has whole rows of s in scratch: two matrix products around a softmax, and
// nothing to rescale. k^T and v are packed into panels once per head. A NaN anywhere in a row of s
// makes the whole row of y NaN.
//
// A thread takes a head to itself if there is one for everybody, and others help it with the last;
// fewer heads are packed together, and their blocks of queries shared out.
#include "../common/input.h"
#include "../common/kernels.h"
#include "../common/lanes.h"
#include "../common/output.h"
#include "../common/rows_times_panel.h"

namespace {

using fastddpm::Team;

constexpr int64_t SCORES = 64 * 1024;  // floats of a block of queries, a quarter of a usual L2
constexpr int64_t MAX_BLOCKS = 4;      // of MAX_ROWS queries

struct Plan {
  Plan(const fastddpm_attention& a, int64_t threads)
      : heads(a.batch * a.heads),
        together(heads < threads),
        key_panels((a.tokens + PANEL - 1) / PANEL),
        value_panels((a.head_dim + PANEL - 1) / PANEL),
        query_stride(scratch_stride(a.head_dim)),
        score_stride(scratch_stride(key_panels * PANEL)) {
    const int64_t fit = SCORES / score_stride / MAX_ROWS;
    const int64_t rows = (fit < 1 ? 1 : fit < MAX_BLOCKS ? fit : MAX_BLOCKS) * MAX_ROWS;
    blocks = (a.tokens + rows - 1) / rows;
    if (together) blocks = round_up(blocks, threads);
    if (blocks > a.tokens) blocks = a.tokens;
    block_rows = (a.tokens + blocks - 1) / blocks;
    packed_keys = key_panels * a.head_dim * PANEL;
    packed_floats = scratch_stride(packed_keys + value_panels * a.tokens * PANEL);
    own_floats = scratch_stride(block_rows * (query_stride + score_stride + PANEL + 1));
  }

  int64_t bytes(int64_t threads) const {
    return threads * (packed_floats + own_floats) * int64_t{sizeof(float)};
  }

  int64_t heads;  // of all samples
  bool together;  // fewer than threads
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

// The keys and values of one panel of tokens. A panel's columns are keys, 0 beyond the last. Those
// of the next panel are asked for meanwhile: rows that lie apart are what a cache foresees badly.
static void pack(const fastddpm_attention& a, const Head& head, int64_t panel) {
  float* const keys = head.keys + panel * a.head_dim * PANEL;
  for (int64_t column = 0; column < PANEL; column += LANES) {
    const int64_t first = panel * PANEL + column, count = least(LANES, a.tokens - first);
    const float* from = a.k + (head.pixel + first) * a.k_stride + head.channel;
    for (int64_t c = 0; c < a.head_dim; c += LANES) {
      const int64_t channels = least(LANES, a.head_dim - c);
      f32 block[LANES] = {};
      for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(from + (i + PANEL) * a.k_stride + c, 0, 2);
        block[i] = load(from + i * a.k_stride + c, channels);
      }
      transpose(block);
      for (int64_t i = 0; i < channels; ++i) store(keys + (c + i) * PANEL + column, block[i]);
    }
  }
  const int64_t end = least((panel + 1) * PANEL, a.tokens);
  for (int64_t token = panel * PANEL; token < end; ++token) {
    const float* from = a.v + (head.pixel + token) * a.v_stride + head.channel;
    for (int64_t c = 0; c < a.head_dim; c += LANES) {
      float* to = head.values + (c / PANEL * a.tokens + token) * PANEL + c % PANEL;
      __builtin_prefetch(from + PANEL * a.v_stride + c, 0, 2);
      store(to, load(from + c, a.head_dim - c));
    }
  }
}

// s -> p in place; returns 1 / sum p.
static float soften(float* row, int64_t tokens) {
  constexpr float NOTHING = -__builtin_inff();
  const int64_t left = tokens % LANES;
  if (left != 0) {
    float* const last = row + tokens - left;
    store(last, lanes_below(left) ? load(last) : broadcast(NOTHING));
  }
  f32 most = broadcast(NOTHING), total = {}, sum = {};
  for (int64_t t = 0; t < tokens; t += LANES) {
    const f32 s = load(row + t);
    most = maximum(s, most);
    total = total + s;
  }
  const float greatest = greatest_lane(most), witness = sum_of_lanes(total);
  // NaN among s, which the maximum and the exponential may lose, or infinity - infinity.
  if (witness != witness || greatest - greatest != 0) return __builtin_nanf("");
  for (int64_t t = 0; t < tokens; t += LANES) {
    const f32 p = bounded_exponential(load(row + t) - greatest);
    sum = sum + p;
    store(row + t, p);
  }
  return 1.0f / sum_of_lanes(sum);
}

// Queries [first, first + count) of a head, and what is made of them.
struct Block {
  Block(const Plan& plan, int64_t first, int64_t count, float* room)
      : first(first),
        count(count),
        queries(room),
        scores(queries + plan.block_rows * plan.query_stride),
        sums(scores + plan.block_rows * plan.score_stride),
        inverse(sums + plan.block_rows * PANEL) {}

  int64_t first, count;
  float *queries, *scores;  // rows plan.query_stride and plan.score_stride apart
  float* sums;              // room for multiply_rows
  float* inverse;           // 1 / sum p of each row
};

static void read_queries(const fastddpm_attention& a, const Plan& plan, const Head& head,
                         const Block& block) {
  const float scale = static_cast<float>(a.scale);
  for (int64_t row = 0; row < block.count; ++row) {
    const float* q = a.q + (head.pixel + block.first + row) * a.q_stride + head.channel;
    float* to = block.queries + row * plan.query_stride;
    for (int64_t c = 0; c < a.head_dim; c += LANES) {
      __builtin_prefetch(q + plan.block_rows * a.q_stride + c, 0, 2);
      store(to + c, load(q + c, a.head_dim - c) * scale);
    }
  }
}

// s = scale q k^T of one panel of keys.
template <int WIDTH>
static void score(const fastddpm_attention& a, const Plan& plan, const Head& head,
                  const Block& block, int64_t panel) {
  const float* keys = head.keys + panel * a.head_dim * PANEL;
  multiply_rows<WIDTH>(
      {block.queries, plan.query_stride, block.count, a.head_dim},
      [&](int64_t k, int64_t chunk) { return chunk_of(keys, k, chunk); }, block.sums,
      [&]<int ROWS>(int64_t row, const f32(&sum)[ROWS][WIDTH]) {
        float* to = block.scores + row * plan.score_stride + panel * PANEL;
        for (int r = 0; r < ROWS; ++r, to += plan.score_stride) {
          for (int v = 0; v < WIDTH; ++v) store(to + v * LANES, sum[r][v]);
        }
      });
}

// y = p v / sum p of one panel of channels.
template <int WIDTH>
static void combine(const fastddpm_attention& a, const Plan& plan, const Head& head,
                    const Block& block, int64_t panel, const float* y_row) {
  const float* values = head.values + panel * a.tokens * PANEL;
  const int64_t c = head.channel + panel * PANEL, left = a.head_dim - panel * PANEL;
  f32 offset[WIDTH];
  for (int v = 0; v < WIDTH; ++v) offset[v] = offset_of(a.y, y_row, c + v * LANES);
  multiply_rows<WIDTH>(
      {block.scores, plan.score_stride, block.count, a.tokens},
      [&](int64_t k, int64_t chunk) { return chunk_of(values, k, chunk); }, block.sums,
      [&]<int ROWS>(int64_t row, const f32(&sum)[ROWS][WIDTH]) {
        for (int r = 0; r < ROWS; ++r) {
          const int64_t pixel = head.pixel + block.first + row + r;
          for (int v = 0; v < WIDTH; ++v) {
            write_part(a.y, pixel, c + v * LANES, left - v * LANES,
                       sum[r][v] * block.inverse[row + r], offset[v]);
          }
        }
      });
}

static void attend(const fastddpm_attention& a, const Plan& plan, const Head& head,
                   const Block& block, int64_t step) {
  read_queries(a, plan, head, block);
  for (int64_t panel = 0; panel < plan.key_panels; ++panel) {
    with_width(a.tokens - panel * PANEL,
               [&](auto width) { score<decltype(width)::value>(a, plan, head, block, panel); });
  }
  for (int64_t row = 0; row < block.count; ++row) {
    block.inverse[row] = soften(block.scores + row * plan.score_stride, a.tokens);
  }
  const float* y_row = row_of(a.y.row, head.sample, step);
  for (int64_t panel = 0; panel < plan.value_panels; ++panel) {
    with_width(a.head_dim - panel * PANEL, [&](auto width) {
      combine<decltype(width)::value>(a, plan, head, block, panel, y_row);
    });
  }
}

void run_attention(const fastddpm_attention& a, const Team& team) {
  const Plan plan(a, team.size);
  float* const packed = reinterpret_cast<float*>(team.scratch);
  float* const room = packed + team.size * plan.packed_floats + team.member * plan.own_floats;
  const auto attend_block = [&](const Head& head, int64_t block) {
    const int64_t first = a.tokens * block / plan.blocks;
    const int64_t end = a.tokens * (block + 1) / plan.blocks;
    attend(a, plan, head, Block(plan, first, end - first, room), team.step);
  };
  if (!plan.together) {
    return team.share(
        plan.heads,
        [&](int64_t index) {
          const Head head(a, plan, index, packed + team.member * plan.packed_floats);
          for (int64_t panel = 0; panel < plan.key_panels; ++panel) pack(a, head, panel);
          return plan.blocks;
        },
        [&](int64_t owner, int64_t index, int64_t block) {
          attend_block(Head(a, plan, index, packed + owner * plan.packed_floats), block);
        });
  }
  const auto head_of = [&](int64_t index) {
    return Head(a, plan, index, packed + index * plan.packed_floats);
  };
  team.share(plan.heads * plan.key_panels, [&](int64_t piece) {
    pack(a, head_of(piece / plan.key_panels), piece % plan.key_panels);
  });
  team.barrier();
  team.share(plan.heads * plan.blocks, [&](int64_t piece) {
    attend_block(head_of(piece / plan.blocks), piece % plan.blocks);
  });
}

int64_t scratch_bytes(const fastddpm_attention& a, int32_t threads) {
  return Plan(a, threads).bytes(threads);
}

}  // namespace

namespace fastddpm::FASTDDPM_ISA {

extern const Operation attention;
const Operation attention = operation<fastddpm_attention, run_attention, scratch_bytes>();

}  // namespace fastddpm::FASTDDPM_ISA
