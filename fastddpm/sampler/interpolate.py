"""Interpolation between images in the latent space of the chain (Ho et al. 2020, section 4.3).

    x_t  ~ q(x_t | a),  x'_t ~ q(x_t | b)          the stochastic encoder, independent noises
    xbar = (1 - lambda) x_t + lambda x'_t,   decoded by the reverse steps t, ..., 0

The noise of encoder and decoder is the same for every lambda (the paper); the released code draws
it anew for each, which ``resample_noise=True`` reproduces. With a smaller t less of the images is
lost, with a larger t the results vary more: several t are decoded in one batch, and what a t leads
to does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.noise import Purpose
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.conditions import NO_CONDITIONS, Conditions
from fastddpm.sampler.joining import Joining, decode
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise, NoiseSource

# Sample indices of the decoding chains, beyond those of any sample: with sample 0's own noise a
# chain of the same seed would lead back to sample 0 whatever is mixed.
FIRST_ROW = 1 << 62


def interpolate(
    chain: Chain,
    shape: tuple[int, ...],
    a: Tensor,
    b: Tensor,
    levels: Sequence[int],
    lambdas: Sequence[float],
    seed: int,
    *,
    resample_noise: bool = False,
    noise: CallerNoise | None = None,
    conditions: Conditions = NO_CONDITIONS,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """Decode mixtures of a and b, all t and lambdas in one batch.

    shape:          (C, H, W) of a sample.
    a, b:           float [C, H, W], or [B, C, H, W] for B pairs, in [-1, 1].
    levels:         K step indices t, 0 to T-1, at which the images are mixed.
    lambdas:        L weights of b; 0 is a and 1 is b, each encoded and decoded; beyond [0, 1]
                    extrapolates.
    resample_noise: draw new noise for each lambda. Draw r (the pair's number; with resampling
                    lambda's number * B + the pair's) uses the counter's sample indices 2r and 2r+1
                    under INTERPOLATION for the two encoders, and FIRST_ROW + r under REVERSE
                    for the chain.
    noise:          ``fn(step, shape)`` instead of the seed: called with step = T for a's encoder
                    and again for b's, then once for each step t, ..., 0 (the last unused). shape is
                    [B, C, H, W], or [L*B, C, H, W], lambda by lambda, with resample_noise. For one
                    t alone.
    conditions:     labels, one for each of the L * B rows of a t, if there are any.
    after_step:     called after each of the max(t) + 1 steps; None: nobody is.

    Returns float32 [K, L, C, H, W] or [K, L, B, C, H, W]. Raises ValueError as ``Sampler.sample``
    does.
    """
    pairs = _checked(chain, shape, a, b, levels)
    if noise is not None and len(levels) > 1:
        raise ValueError(f"noise= draws for one t, got {len(levels)}")
    if not len(pairs[0]):
        return pairs[0].new_empty((len(levels), len(lambdas), *pairs[0].shape))
    draws = pairs[0].shape[0] * (len(lambdas) if resample_noise else 1)
    encoders, source = _noise(chain, shape, seed, noise, draws)

    def at(t: int) -> Joining:
        return Joining(t, lambda _: _mix(chain, pairs, encoders(t), t, lambdas))

    falling = sorted(range(len(levels)), key=lambda position: -levels[position])
    decoded = decode(
        *(chain, shape, [at(levels[position]) for position in falling], source),
        conditions=conditions.repeated(len(levels)),
        after_step=after_step,
    )
    order = torch.tensor(
        [falling.index(position) for position in range(len(levels))], device=decoded.device
    )
    images = decoded.reshape(len(levels), len(lambdas), *pairs[0].shape)[order]
    return images[:, :, 0] if a.ndim == len(shape) else images


def _checked(
    chain: Chain, shape: tuple[int, ...], a: Tensor, b: Tensor, levels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """a and b as float32 [B, C, H, W] on the device; ValueError if something does not fit."""
    sample = len(shape)
    single_or_batch = a.ndim in (sample, sample + 1) and tuple(a.shape[-sample:]) == shape
    if a.shape != b.shape or not single_or_batch:
        raise ValueError(
            f"a and b must both have the sample's shape {list(shape)}, or be batches of it; "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    for t in levels:
        if not 0 <= t < chain.num_steps:
            raise ValueError(f"t must be a step index from 0 to {chain.num_steps - 1}, got {t}")
    first, second = (v.to(chain.place.device, torch.float32) for v in (a, b))
    return (first[None], second[None]) if a.ndim == sample else (first, second)


def _noise(
    chain: Chain, shape: tuple[int, ...], seed: int, noise: CallerNoise | None, draws: int
) -> tuple[Callable[[int], tuple[Tensor, Tensor]], Callable[[int], NoiseSource]]:
    """The two encoders' noise of a t, [draws, C, H, W] each, and that of the chain's first rows,
    ``draws`` by ``draws``."""
    if noise is not None:
        given = GivenNoise(noise, (draws, *shape), chain.place.device)
        return lambda t: (given.draw(chain.num_steps), given.draw(chain.num_steps)), lambda _: given
    rows = torch.arange(draws, dtype=torch.int64, device=chain.place.device)

    def encoders(t: int) -> tuple[Tensor, Tensor]:
        step = int(chain.diffusion.schedule.timesteps[t])
        first, second = (
            ops.normal(
                *(seed, 2 * rows + which, step, shape, Purpose.INTERPOLATION),
                backend=chain.place.engine.backend,
            )
            for which in (0, 1)
        )
        return first, second

    def source(count: int) -> NoiseSource:
        return chain.counter_noise(seed, FIRST_ROW + rows.repeat(count // draws), shape)

    return encoders, source


def _mix(
    chain: Chain,
    pairs: tuple[Tensor, Tensor],
    noises: tuple[Tensor, Tensor],
    t: int,
    lambdas: Sequence[float],
) -> Tensor:
    """(1 - lambda) x_t + lambda x'_t for every lambda: [L * B, C, H, W]."""
    encoded = []
    for images, z in zip(pairs, noises, strict=True):
        x_0 = images.repeat(z.shape[0] // images.shape[0], *[1] * (images.ndim - 1))
        steps = torch.full((z.shape[0],), t, dtype=torch.int64, device=chain.place.device)
        encoded.append(chain.diffusion.q_sample(x_0, steps, z))
    # [1, B, ...] with noise shared by all lambdas, [L, B, ...] with resampling
    x_a, x_b = (e.reshape(-1, *pairs[0].shape) for e in encoded)
    weight = torch.tensor(list(lambdas), dtype=torch.float32, device=chain.place.device)
    weight = weight.reshape(-1, *[1] * pairs[0].ndim)
    return ((1 - weight) * x_a + weight * x_b).flatten(0, 1)
