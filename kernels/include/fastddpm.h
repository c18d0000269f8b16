/* The whole C ABI of libfastddpm_cpu.
 *
 * Plain C, called through ctypes: no torch and no Python headers. Arrays are contiguous and belong
 * to the caller; a call keeps no pointer and may run beside others. A function that can fail
 * returns a status, 0 for success, and then has written nothing. B = batch, N = elements of one
 * sample, T = rows of the step table.
 */
#ifndef FASTDDPM_H
#define FASTDDPM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTDDPM_API __attribute__((visibility("default")))

/* Changes whenever a signature or a meaning below changes. */
#define FASTDDPM_ABI_VERSION 4

enum {
  FASTDDPM_OK = 0,
  FASTDDPM_INVALID_ARGUMENT = 1, /* a null pointer, a negative size, an unknown code */
  FASTDDPM_ROW_OUT_OF_RANGE = 2, /* the row index lies outside of the step table */
  FASTDDPM_UNKNOWN_ISA = 3,      /* not in fastddpm_isa_list() */
  FASTDDPM_NO_MEMORY = 4,        /* scratch memory or a thread is not to be had */
  FASTDDPM_NO_SUCH_KERNEL = 5    /* the instruction set in use has none */
};

/* What the model's output stands for, and where the variance of a step comes from. */
enum {
  FASTDDPM_PREDICTION_OTHER = 0,
  FASTDDPM_PREDICTION_PREVIOUS_SAMPLE = 1,
  FASTDDPM_PREDICTION_EPSILON_IN_X = 2
};
enum {
  FASTDDPM_VARIANCE_FIXED = 0,
  FASTDDPM_VARIANCE_LEARNED = 1,
  FASTDDPM_VARIANCE_LEARNED_RANGE = 2
};

/* Columns of the step table, float32 [T, 10]; STEP_COLUMNS in ancestral_step/reference.py. */
enum {
  FASTDDPM_X0_FROM_X = 0,
  FASTDDPM_X0_FROM_OUTPUT,
  FASTDDPM_MEAN_FROM_X0,
  FASTDDPM_MEAN_FROM_X,
  FASTDDPM_MEAN_FROM_OUTPUT,
  FASTDDPM_SIGMA,
  FASTDDPM_LOG_VARIANCE_MIN,
  FASTDDPM_LOG_VARIANCE_MAX,
  FASTDDPM_NOISE_GATE,
  FASTDDPM_TIMESTEP,
  FASTDDPM_STEP_COLUMNS
};

/* Columns of the forward process's table, float32 [T, 2]; FORWARD_COLUMNS in
 * q_sample/reference.py. */
enum { FASTDDPM_SIGNAL = 0, FASTDDPM_SPREAD, FASTDDPM_FORWARD_COLUMNS };

FASTDDPM_API int32_t fastddpm_abi_version(void);
FASTDDPM_API const char* fastddpm_error_message(int32_t status);

/* The instruction set in use (at load: the best that this CPU has), all that this library holds and
 * this CPU can run, worst first and separated by spaces, and a change of set. Noise and steps do
 * not depend on it; a network's last bits do, which fuses multiply-adds where the set can. Not
 * while another call runs. */
FASTDDPM_API const char* fastddpm_isa_name(void);
FASTDDPM_API const char* fastddpm_isa_list(void);
FASTDDPM_API int32_t fastddpm_use_isa(const char* name);

/* out [B, N] = standard normal noise; fastddpm/noise.py is the specification.
 * indices [B]: sample indices. steps: [1] or [B] timesteps, step_count says which.
 * threads: at most so many; the result does not depend on it. */
FASTDDPM_API int32_t fastddpm_normal(float* out, const int64_t* indices, int64_t batch,
                                     int64_t elements, uint64_t seed, const int64_t* steps,
                                     int64_t step_count, int32_t purpose, int32_t threads);

/* The state of torch's generator on a CPU, as torch.Generator.get_state begins. */
enum { FASTDDPM_MERSENNE_WORDS = 624 };
typedef struct {
  uint64_t seed;
  int32_t left, seeded;
  uint64_t next;
  uint64_t words[FASTDDPM_MERSENNE_WORDS];
} fastddpm_mersenne;

/* out [count], count >= 16: what torch.randn draws with AVX2 from this state, which then is the one
 * that torch leaves. FASTDDPM_NO_SUCH_KERNEL on the baseline. */
FASTDDPM_API int32_t fastddpm_torch_normal(float* out, int64_t count, fastddpm_mersenne* generator);

/* One reverse step, x_prev [B, N] and x_0 [B, N] (may be null) from x [B, N]; x_prev may be x, and
 * x_0 may be noise.
 * model_output: [B, N], or [B, 2 N] with the variance second if `variance` is learned.
 * table [rows, FASTDDPM_STEP_COLUMNS], row [1]: the step's index, read at run time.
 * clip: bound of |x_0|, infinity for none.
 * noise [B, N]; if null it is drawn here as fastddpm_normal draws it for purpose 1 from seed,
 * indices [B] and the row's entry of timesteps [rows]. */
FASTDDPM_API int32_t fastddpm_ancestral_step(float* x_prev, float* x_0, const float* x,
                                             const float* model_output, const float* noise,
                                             const float* table, int64_t rows, const int64_t* row,
                                             int64_t batch, int64_t elements, int32_t prediction,
                                             int32_t variance, float clip, uint64_t seed,
                                             const int64_t* indices, const int64_t* timesteps,
                                             int32_t threads);

/* The forward process: x_t [B, N] = table[t, 0] x_0 [B, N] + table[t, 1] noise, and that noise
 * [B, N], drawn as fastddpm_normal draws it for purpose 2. table [rows, FASTDDPM_FORWARD_COLUMNS];
 * t [B]: each sample's row; steps: [1] or [B]. */
FASTDDPM_API int32_t fastddpm_q_sample(float* x_t, float* noise, const float* x_0, const int64_t* t,
                                       const float* table, int64_t rows, const int64_t* indices,
                                       int64_t batch, int64_t elements, uint64_t seed,
                                       const int64_t* steps, int64_t step_count, int32_t threads);

/* ---- The captured program: a list of instructions, replayed for every step of a chain ----
 *
 * Feature maps are float32 [B, H, W, C], channels last. Pixel p of all B H W begins at
 * data + p * stride; a stride is a multiple of FASTDDPM_ALIGN floats and at least C, and maps,
 * norms and packed weights are aligned to 64 bytes. Lanes between C and the stride may hold
 * anything. Buffers belong to the caller and must outlive the program, which keeps their addresses.
 */
#define FASTDDPM_ALIGN 16

enum { FASTDDPM_ACTIVATION_NONE = 0, FASTDDPM_ACTIVATION_SILU = 1 };

/* What an instruction reads: one map or two side by side, joined by channels; normalised while
 * it is read if norm is not null: y = activation((x - mean) * scale + shift). */
typedef struct {
  const float* data[2];
  int64_t stride[2];
  int64_t channels[2]; /* channels[1] is 0 for one map */
  const float* norm;   /* [B, 3, S]: mean, scale, shift; S = all channels rounded up to ALIGN */
  int64_t activation;  /* applied with or without a norm */
} fastddpm_input;

/* Numbers that every pixel of a sample shares, [C] each; sample b at step i reads
 * data + b * sample_stride + i * step_stride. None if data is null. */
typedef struct {
  const float* data;
  int64_t sample_stride;
  int64_t step_stride; /* 0: the same at every step */
} fastddpm_row;

/* What an instruction writes: (value + bias + row + residual) / divisor. */
typedef struct {
  float* data;
  int64_t stride;
  int64_t channels;
  const float* bias; /* [channels] or null */
  fastddpm_row row;
  const float* residual; /* a map like the output, or null; may be the output itself */
  int64_t residual_stride;
  double divisor;
  float* statistics; /* or null; see fastddpm_statistics */
} fastddpm_output;

/* A 3x3 convolution of stride 1 and padding 1. doubled: the input, [B, H/2, W/2], is first enlarged
 * by two (nearest neighbour). H, W: of the output. Winograd F(4x4, 3x3). */
typedef struct {
  fastddpm_input x;
  fastddpm_output y;
  int64_t batch, height, width;
  int64_t doubled;
  const void* weights; /* of fastddpm_pack_conv3x3 */
  int64_t packing;     /* FASTDDPM_PACKING_... */
} fastddpm_conv3x3;

/* Any other convolution: kernel 1x1 or 3x3, any stride, zeros beyond the border. `padding` rows
 * above and columns to the left; what lies beyond the right and the lower border is 0, too. H, W:
 * of the output. A linear layer is a 1x1 convolution. */
typedef struct {
  fastddpm_input x;
  fastddpm_output y;
  int64_t batch, height, width;
  int64_t input_height, input_width;
  int64_t kernel, stride, padding;
  const void* weights; /* of fastddpm_pack_convolution */
  int64_t packing;
} fastddpm_convolution;

/* softmax(q k^T scale) v for each head; head h reads channels [h d, (h + 1) d) of each. N tokens.
 */
typedef struct {
  const float *q, *k, *v;
  int64_t q_stride, k_stride, v_stride;
  fastddpm_output y; /* heads * head_dim channels; statistics null: tokens lie in no rows */
  int64_t batch, tokens, heads, head_dim;
  double scale;
} fastddpm_attention;

/* Mean and squared deviations of each channel over strips of 4 rows of a map:
 * statistics [B, strips, 2, stride], strips = ceil(H / 4): sum_p x / n, sum_p (x - mean)^2. */
typedef struct {
  const float* data;
  int64_t stride, channels;
  int64_t batch, height, width;
  float* statistics;
} fastddpm_statistics;

/* GroupNorm's coefficients for fastddpm_input.norm from the statistics of one map or two:
 * scale = weight / sqrt(variance + eps), shift = bias; with modulation [2 C] = (a, b) for FiLM:
 * scale (1 + a), shift (1 + a) + b. H, W: of the maps. */
typedef struct {
  const float* statistics[2];
  int64_t stride[2], channels[2];
  int64_t batch, height, width;
  int64_t groups;
  double eps;
  const float *weight, *bias; /* [C] or null */
  fastddpm_row modulation;
  float* norm; /* [B, 3, S] */
} fastddpm_norm;

enum { FASTDDPM_RESAMPLE_NONE = 0, FASTDDPM_RESAMPLE_HALVE = 1, FASTDDPM_RESAMPLE_DOUBLE = 2 };

/* A map written as it is read: normalised, joined, halved (mean of 2x2) or doubled, summed.
 * H, W: of the output. */
typedef struct {
  fastddpm_input x;
  fastddpm_output y;
  int64_t batch, height, width;
  int64_t resample;
} fastddpm_pointwise;

/* Between [B, C, P] (torch's own order, P = H W pixels) and maps: to = from * factor + offset,
 * divided by its sample's number, the divisor, if there is one. */
typedef struct {
  float* to;
  const float* from;
  int64_t stride; /* of the map */
  int64_t batch, channels, pixels;
  int64_t into_map; /* 1: from is [B, C, P]; 0: to is */
  double factor, offset;
  fastddpm_row divisor; /* of one number */
} fastddpm_layout;

/* One reverse step in place, as fastddpm_ancestral_step; [B, N] in torch's order. */
typedef struct {
  float* x;
  float* x_0; /* or null */
  const float* model_output;
  const float* noise; /* or null: drawn from *seed, indices and timesteps */
  const float* table; /* [steps, FASTDDPM_STEP_COLUMNS] */
  int64_t batch, elements;
  int64_t prediction, variance;
  double clip;
  const uint64_t* seed;
  const int64_t* indices;
  const int64_t* timesteps; /* [steps] */
  int64_t* first_nonfinite; /* or null; becomes max(itself, step) if an output is not finite */
} fastddpm_step;

/* function(context, step), called by the thread that runs the program while its others wait: what
 * no instruction computes. function: a fastddpm_function. */
typedef void (*fastddpm_function)(void* context, int64_t step);
typedef struct {
  void* function;
  void* context;
} fastddpm_call;

enum {
  FASTDDPM_OP_CONV3X3 = 0,
  FASTDDPM_OP_CONVOLUTION,
  FASTDDPM_OP_ATTENTION,
  FASTDDPM_OP_STATISTICS,
  FASTDDPM_OP_NORM,
  FASTDDPM_OP_POINTWISE,
  FASTDDPM_OP_LAYOUT,
  FASTDDPM_OP_STEP,
  FASTDDPM_OP_CALL,
  FASTDDPM_OPS
};

typedef struct {
  int64_t op;
  const void* arguments; /* the struct of that op; copied */
} fastddpm_instruction;

typedef struct fastddpm_program fastddpm_program;

/* Packed weights. FLOAT32: reordered. FLOAT16: the same in half precision, each output channel
 * scaled. TRANSFORMED (3x3 only): Winograd's 36 numbers for 9, four times the memory; faster for
 * many pixels, but for those of a large doubled map, whose other packings save products instead
 * and differ in last bits. The layout belongs to the instruction set that is in use, and a program
 * is made for that one. */
enum {
  FASTDDPM_PACKING_FLOAT32 = 0,
  FASTDDPM_PACKING_FLOAT16 = 1,
  FASTDDPM_PACKING_TRANSFORMED = 2
};

/* Bytes of packed weights, or -1 for arguments that make no sense. */
FASTDDPM_API int64_t fastddpm_packed_conv3x3_bytes(int64_t out_channels, int64_t in_channels,
                                                   int64_t packing);
FASTDDPM_API int64_t fastddpm_packed_convolution_bytes(int64_t out_channels, int64_t in_channels,
                                                       int64_t kernel, int64_t packing);
/* weight: float32 [out, in, kernel, kernel] as torch has it. packed: of as many bytes, aligned
 * to 64. */
FASTDDPM_API int32_t fastddpm_pack_conv3x3(void* packed, const float* weight, int64_t out_channels,
                                           int64_t in_channels, int64_t packing);
FASTDDPM_API int32_t fastddpm_pack_convolution(void* packed, const float* weight,
                                               int64_t out_channels, int64_t in_channels,
                                               int64_t kernel, int64_t packing);

/* A program of at least one instruction for the instruction set in use and so many threads; null
 * with *status set if it cannot be made: FASTDDPM_INVALID_ARGUMENT also for an op that there is
 * not, no arguments, or an attention that is to write statistics. It allocates all that it needs;
 * running it allocates nothing. One thread runs it at a time. */
FASTDDPM_API fastddpm_program* fastddpm_program_create(const fastddpm_instruction* code,
                                                       int64_t count, int32_t threads,
                                                       int32_t* status);
FASTDDPM_API void fastddpm_program_destroy(fastddpm_program* program);
FASTDDPM_API int64_t fastddpm_program_scratch_bytes(const fastddpm_program* program);

/* Replay the program for the steps *index, *index - 1, ... (rows of the tables); *index counts
 * down. At most `steps` of them, and none is begun after `seconds` have passed, but for the first.
 * Returns how many were taken, so that the caller can look for an interrupt and go on. The child of
 * a fork() gets threads of its own at the first call; -1 if there are none to be had. */
FASTDDPM_API int64_t fastddpm_program_run(fastddpm_program* program, int64_t* index, int64_t steps,
                                          double seconds);

/* The same for one step; seconds [count] += the time of each instruction. */
FASTDDPM_API int64_t fastddpm_program_profile(fastddpm_program* program, int64_t* index,
                                              double* seconds);

#ifdef __cplusplus
}
#endif

#endif
