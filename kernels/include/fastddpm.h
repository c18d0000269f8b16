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
#define FASTDDPM_ABI_VERSION 1

enum {
  FASTDDPM_OK = 0,
  FASTDDPM_INVALID_ARGUMENT = 1, /* a null pointer, a negative size, an unknown code */
  FASTDDPM_ROW_OUT_OF_RANGE = 2, /* the row index lies outside of the step table */
  FASTDDPM_UNKNOWN_ISA = 3       /* not in fastddpm_isa_list() */
};

/* What the model's output stands for, and where the variance of a step comes from. */
enum { FASTDDPM_PREDICTION_OTHER = 0, FASTDDPM_PREDICTION_PREVIOUS_SAMPLE = 1 };
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

FASTDDPM_API int32_t fastddpm_abi_version(void);
FASTDDPM_API const char* fastddpm_error_message(int32_t status);

/* The instruction set in use (at load: the best that this CPU has), all that this library holds and
 * this CPU can run, worst first and separated by spaces, and a change of set. Results do not
 * depend on it, except for the exponential's last bits. Not while another call runs. */
FASTDDPM_API const char* fastddpm_isa_name(void);
FASTDDPM_API const char* fastddpm_isa_list(void);
FASTDDPM_API int32_t fastddpm_use_isa(const char* name);

/* out [B, N] = standard normal noise; fastddpm/noise.py is the specification.
 * indices [B]: sample indices. steps: [1] or [B] timesteps, step_count says which.
 * threads: at most so many; the result does not depend on it. */
FASTDDPM_API int32_t fastddpm_normal(float* out, const int64_t* indices, int64_t batch,
                                     int64_t elements, uint64_t seed, const int64_t* steps,
                                     int64_t step_count, int32_t purpose, int32_t threads);

/* One reverse step, x_prev [B, N] and x_0 [B, N] (may be null) from x [B, N]; x_prev may be x.
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

#ifdef __cplusplus
}
#endif

#endif
