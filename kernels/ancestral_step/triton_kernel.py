"""One reverse step on a GPU: noise, x_0, mean, x_{t-1} and the next network input in one pass.

Specification: reference.py, agreed with bit for bit; what it fuses is fused here, and nothing else.
NaN passes through the clamps, as in torch.clamp. Seed, sample indices, timesteps, table and row
are read from device memory, so one captured launch serves every step of every call.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastddpm.kernels.ancestral_step import reference
from fastddpm.kernels.ancestral_step.call import NETWORK_DTYPES, StepCall, is_channels_last
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.common.philox import normals, stream
from fastddpm.kernels.common.runs import load_image, load_pairs, store_image

REVERSE = tl.constexpr(1)  # Purpose.REVERSE of fastddpm/noise.py

X0_FROM_X = tl.constexpr(STEP_COLUMNS.index("x0_from_x"))
X0_FROM_OUTPUT = tl.constexpr(STEP_COLUMNS.index("x0_from_output"))
MEAN_FROM_X0 = tl.constexpr(STEP_COLUMNS.index("mean_from_x0"))
MEAN_FROM_X = tl.constexpr(STEP_COLUMNS.index("mean_from_x"))
MEAN_FROM_OUTPUT = tl.constexpr(STEP_COLUMNS.index("mean_from_output"))
SIGMA = tl.constexpr(STEP_COLUMNS.index("sigma"))
LOG_VARIANCE_MIN = tl.constexpr(STEP_COLUMNS.index("log_variance_min"))
LOG_VARIANCE_MAX = tl.constexpr(STEP_COLUMNS.index("log_variance_max"))
NOISE_GATE = tl.constexpr(STEP_COLUMNS.index("noise_gate"))

# Of the others one kernel serves all.
PREVIOUS_SAMPLE = tl.constexpr(1)
EPSILON_IN_X = tl.constexpr(2)
PREDICTION_CODES = {"previous_sample": 1, "epsilon_in_x": 2}

FIXED = tl.constexpr(0)
LEARNED = tl.constexpr(1)
LEARNED_RANGE = tl.constexpr(2)
VARIANCE_CODES = {"fixed_small": 0, "fixed_large": 0, "learned": 1, "learned_range": 2}

TWICE_EXP_HALF = tl.constexpr(reference.TWICE_EXP_HALF)
LOG_4_E = tl.constexpr(reference.LOG_4_E)
LN_4 = tl.constexpr(reference.LN_4)
ROUND = tl.constexpr(reference.ROUND)
ONE_BITS = tl.constexpr(reference.ONE_BITS)
LOWEST = tl.constexpr(reference.LOWEST)
LEAST_SIGMA = tl.constexpr(reference.LEAST_SIGMA)
HIGHEST = tl.constexpr(reference.HIGHEST)


@triton.jit
def ancestral_step_kernel(
    x_pointer,  # float32 [B, CHANNELS, PIXELS], updated in place
    output_pointer,  # [B, OUTPUTS, PIXELS] or [B, PIXELS, OUTPUTS]
    noise_pointer,  # float32 like x, or None
    seed_pointer,  # int64 [1]
    indices_pointer,  # int64 [B]
    timesteps_pointer,  # int64 [T]
    table_pointer,  # float32 [T, COLUMNS]
    i_pointer,  # int64 [1]
    x_0_pointer,  # float32 like x, or None
    input_pointer,  # [B, INPUTS, PIXELS] or [B, PIXELS, INPUTS], or None
    first_nonfinite_pointer,  # int64 [1], or None
    clip,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PIXELS: tl.constexpr,
    OUTPUT_LAST: tl.constexpr,
    OUTPUT_PAIRS: tl.constexpr,
    INPUT_LAST: tl.constexpr,
    PREDICTION: tl.constexpr,
    VARIANCE: tl.constexpr,
    CLIPS: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
):
    COUNT: tl.constexpr = CHANNELS * SPAN
    PROGRAMS: tl.constexpr = (PIXELS + ROWS * SPAN - 1) // (ROWS * SPAN)
    sample = (tl.program_id(0) // PROGRAMS).to(tl.int64)
    pixel = (tl.program_id(0) % PROGRAMS * ROWS + tl.arange(0, ROWS)) * SPAN
    inside = pixel < PIXELS
    state = sample * (CHANNELS * PIXELS)

    i = tl.load(i_pointer)
    row = load_row(table_pointer + i * COLUMNS)
    output_pointer += sample * (OUTPUTS * PIXELS)
    x = load_image(x_pointer + state, pixel, inside, CHANNELS, PIXELS, SPAN, False)
    if OUTPUT_PAIRS:
        output = load_pairs(output_pointer, pixel, inside, OUTPUTS, PIXELS, SPAN, OUTPUT_LAST)
    else:
        output = load_image(output_pointer, pixel, inside, OUTPUTS, PIXELS, SPAN, OUTPUT_LAST)
    if noise_pointer is not None:
        z = load_image(noise_pointer + state, pixel, inside, CHANNELS, PIXELS, SPAN, False)
    else:
        step, index = tl.load(timesteps_pointer + i), tl.load(indices_pointer + sample)
        key, counter = stream(tl.load(seed_pointer), index, step, REVERSE)
        z = draw(pixel, key, counter, CHANNELS, PIXELS, SPAN)

    x_prev = ()
    x_0 = ()
    largest = tl.zeros((ROWS,), tl.float32)  # NaN or infinity, once one was seen
    for k in tl.static_range(COUNT):
        out = output[k].to(tl.float32)
        sigma = row[SIGMA]
        if VARIANCE != FIXED:
            value = output[COUNT + k].to(tl.float32)
            largest = tl.maximum(largest, tl.abs(value), propagate_nan=tl.PropagateNan.ALL)
            sigma = learned_sigma(row, value, VARIANCE)
        mean, estimate = posterior(x[k], out, row, clip, PREDICTION, CLIPS)
        new = mean + sigma * z[k] if VARIANCE == FIXED else tl.fma(sigma, z[k], mean)
        largest = tl.maximum(largest, tl.abs(out), propagate_nan=tl.PropagateNan.ALL)
        largest = tl.maximum(largest, tl.abs(new), propagate_nan=tl.PropagateNan.ALL)
        x_prev += (new,)
        x_0 += (estimate,)

    store_image(x_pointer + state, x_prev, pixel, inside, CHANNELS, PIXELS, SPAN, False)
    if x_0_pointer is not None:
        store_image(x_0_pointer + state, x_0, pixel, inside, CHANNELS, PIXELS, SPAN, False)
    if input_pointer is not None:
        for _ in tl.static_range((INPUTS - CHANNELS) * SPAN):
            x_prev += (tl.zeros((ROWS,), tl.float32),)
        input_pointer += sample * (INPUTS * PIXELS)
        store_image(input_pointer, x_prev, pixel, inside, INPUTS, PIXELS, SPAN, INPUT_LAST)
    if first_nonfinite_pointer is not None:
        places = first_nonfinite_pointer + tl.zeros((ROWS,), tl.int32)
        tl.atomic_max(places, i, mask=inside & ~(largest < float("inf")), sem="relaxed")


@triton.jit
def load_row(pointer):
    """The columns of the step's row that a step reads, scalars."""
    row = ()
    for column in tl.static_range(NOISE_GATE + 1):
        row += (tl.load(pointer + column),)
    return row


@triton.jit
def posterior(x, output, row, clip, PREDICTION: tl.constexpr, CLIPS: tl.constexpr):
    """(mean, x_0); every product and sum rounds by itself, in the reference's order."""
    if PREDICTION == EPSILON_IN_X:
        x_0 = row[X0_FROM_X] * (x + row[X0_FROM_OUTPUT] * output)
    else:
        x_0 = row[X0_FROM_X] * x + row[X0_FROM_OUTPUT] * output
    if CLIPS:
        x_0 = tl.clamp(x_0, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
    if PREDICTION == PREVIOUS_SAMPLE:
        mean = row[MEAN_FROM_OUTPUT] * output
    else:
        mean = row[MEAN_FROM_X0] * x_0 + row[MEAN_FROM_X] * x
    return mean, x_0


@triton.jit
def learned_sigma(row, value, VARIANCE: tl.constexpr):
    """The standard deviation from the variance half of the model's output."""
    v = value
    if VARIANCE == LEARNED_RANGE:
        low, high = row[LOG_VARIANCE_MIN], row[LOG_VARIANCE_MAX]
        v = tl.fma(value, (high - low) * 0.5, (high + low) * 0.5)
    highest = tl.where(row[NOISE_GATE] != 0, HIGHEST, LOWEST)
    v = tl.clamp(v, LOWEST, highest, propagate_nan=tl.PropagateNan.ALL)
    factor, power = exponential(v)
    return tl.fma(factor, power, -LEAST_SIGMA)


@triton.jit
def exponential(v):
    """exp(v / 2) as two factors; ex2.approx differs between GPUs and may be wrong by 2 ulp."""
    shifted = tl.fma(v, LOG_4_E, ROUND)
    r = tl.fma(shifted - ROUND, -LN_4, v)
    factor = tl.fma(r, TWICE_EXP_HALF[6], TWICE_EXP_HALF[5])
    for k in tl.static_range(2, 7):
        factor = tl.fma(factor, r, TWICE_EXP_HALF[6 - k])
    bits = (shifted.to(tl.int32, bitcast=True) << 23) + ONE_BITS
    return factor, bits.to(tl.float32, bitcast=True)


@triton.jit
def draw(pixel, key, counter, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, SPAN: tl.constexpr):
    """Normals for the columns of an image, whose element (c, p) is element c PIXELS + p."""
    z = ()
    for channel in tl.static_range(CHANNELS):
        element = pixel + channel * PIXELS
        if SPAN % 4 == 0:
            for k in tl.static_range(SPAN // 4):
                z += normals((element // 4 + k).to(tl.uint32), key, counter)
        else:
            z0, z1, z2, z3 = normals((element // 4).to(tl.uint32), key, counter)
            low = tl.where(element % 2 == 0, z0, z1)
            z += (tl.where(element % 4 < 2, low, tl.where(element % 2 == 0, z2, z3)),)
    return z


class Tiling(NamedTuple):
    """How the work is divided: the image's view, pixels a thread, rows a program."""

    channels: int
    pixels: int
    span: int
    rows: int


# Threads a program, and normals a thread. Many small programs spread one image over many
# multiprocessors, which is what counts at batch 1; two warps are the fewest that let every
# multiprocessor fill up at large batch. A thread's own start (addresses, row, stream: 100
# instructions) is shared by at least 8 normals.
THREADS = 64
NORMALS = 8
# Channels of any tensor whose columns still fit into a thread's 255 registers.
MAX_CHANNELS = 16
# Offsets inside a sample are int32.
MAX_ELEMENTS = 1 << 30


def tiling_of(call: StepCall) -> Tiling:
    """The view, span and rows of a call.

    Where every tensor is contiguous the channels do not matter: an image is one channel of all its
    elements. A span is the fewest pixels whose runs are whole 128-bit words in every tensor: 4 in
    float32, 8 where a half-precision run needs them. Where the pixels are no multiple of 4 the
    span is 1: every tensor is still read and written in order, but each thread draws four normals
    and keeps one.
    """
    channels, pixels = call.x.shape[1], math.prod(call.x.shape[2:])
    runs = [(call.x.element_size(), 1)]
    for tensor in (call.model_output, call.network_input):
        if tensor is not None:
            last = not tensor.is_contiguous()
            runs.append((tensor.element_size(), tensor.shape[1] if last else 1))
    padded = call.network_input is not None and call.network_input.shape[1] != channels
    if call.model_output.is_contiguous() and not padded and runs[-1][1] == 1:
        channels, pixels = 1, channels * pixels
    spans = [span for span in (4, 8) if pixels % span == 0] or [1]
    whole = [span for span in spans if all(span * size * n % 16 == 0 for size, n in runs)]
    span = whole[0] if whole else spans[0]
    most = THREADS * max(1, NORMALS // (channels * span))
    rows = max(32, min(most, triton.next_power_of_2(-(-pixels // span))))
    return Tiling(channels, pixels, span, rows)


def output_in_pairs(call: StepCall, span: int) -> bool:
    """Whether the model's output is bfloat16 that can be read as words of two numbers."""
    output = call.model_output
    run = span if output.is_contiguous() else output.shape[1]
    return output.dtype == torch.bfloat16 and run % 2 == 0 and output.data_ptr() % 4 == 0


def unsupported(call: StepCall) -> list[str]:
    """Why the kernel cannot run this call; empty if it can."""
    reasons = []
    output, given = call.model_output, call.network_input
    if output.dtype not in NETWORK_DTYPES:
        reasons.append(f"model_output is {output.dtype}, not float32, bfloat16 or float16")
    if not (output.is_contiguous() or is_channels_last(output)):
        reasons.append("model_output is neither contiguous nor channels last")
    for name in ("noise", "indices", "timesteps", "table"):
        tensor = call.tensors.get(name)
        if tensor is not None and not tensor.is_contiguous():
            reasons.append(f"{name} is not contiguous")
    widest = max(output.shape[1], 0 if given is None else given.shape[1])
    if widest * math.prod(call.x.shape[2:]) > MAX_ELEMENTS:
        reasons.append(f"a sample has more than {MAX_ELEMENTS} elements")
    if tiling_of(call).channels > 1 and widest > MAX_CHANNELS:
        reasons.append(f"more than {MAX_CHANNELS} channels that are not all contiguous")
    return reasons


def launch(call: StepCall) -> Launch:
    """One launch for the whole batch."""
    channels, pixels, span, rows = tiling_of(call)
    given = call.network_input
    return Launch(
        ancestral_step_kernel,
        grid=(len(call.x) * -(-pixels // (rows * span)),),
        arguments={
            "x_pointer": call.x,
            "output_pointer": call.model_output,
            "noise_pointer": call.noise,
            "seed_pointer": call.seed,
            "indices_pointer": call.indices,
            "timesteps_pointer": call.timesteps,
            "table_pointer": call.table,
            "i_pointer": call.i,
            "x_0_pointer": call.x_0,
            "input_pointer": given,
            "first_nonfinite_pointer": call.first_nonfinite,
            "clip": 0.0 if call.clip is None else float(call.clip),
        },
        constants={
            "COLUMNS": len(STEP_COLUMNS),
            "CHANNELS": channels,
            "OUTPUTS": channels * (2 if call.learns_variance else 1),
            "INPUTS": channels if given is None else given.shape[1] * channels // call.x.shape[1],
            "PIXELS": pixels,
            "OUTPUT_LAST": not call.model_output.is_contiguous(),
            "OUTPUT_PAIRS": output_in_pairs(call, span),
            "INPUT_LAST": given is not None and not given.is_contiguous(),
            "PREDICTION": PREDICTION_CODES.get(call.prediction, 0),
            "VARIANCE": VARIANCE_CODES[call.variance],
            "CLIPS": call.clip is not None,
            "SPAN": span,
            "ROWS": rows,
        },
        num_warps=min(rows, THREADS) // 32,
        exact=True,
        writes=("x_pointer", "x_0_pointer", "input_pointer", "first_nonfinite_pointer"),
    )
