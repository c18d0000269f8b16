"""The variational bound of one model on images, every term of it (Ho et al. 2020, equation 5).

    -log p(x_0) <= prior + Σ_t vb_t      prior = KL(q(x_T|x_0) ‖ N(0, I))
                                         vb_t  = KL(q(x_{t-1}|x_t,x_0) ‖ p(x_{t-1}|x_t))
                                         vb_0  = -log p(x_0|x_1), the discretised decoder

Terms of different timesteps are independent given the image, unlike the steps of a chain.  So a
network runs on rows, pairs of an image and a timestep: one image at T timesteps is as fast a batch
as T images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastddpm.diffusion import GaussianDiffusion
from fastddpm.engine import CpuOptions
from fastddpm.evaluation import noised
from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.noised import Noised
from fastddpm.evaluation.pairs import Pairs, all_pairs, drawn_pairs
from fastddpm.evaluation.terms import Decoder, Terms
from fastddpm.gaussian import CDFS
from fastddpm.sampler import arguments
from fastddpm.sampler.arguments import Array, Indices, Labels, integer, positive
from fastddpm.sampler.call import NetworkCall
from fastddpm.sampler.model import Model, isolated, sample_shape
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise
from fastddpm.sampler.place import Place
from fastddpm.sampler.runs import Progress

# Rows that run at once where nobody says how many.
ROWS_AT_ONCE = 64
# How far beyond [-1, 1] images may lie where nothing clips x̂_0.
FAR = 9.0


class Bound:
    """The bound of ``model`` under ``diffusion``, prepared once for call after call.

    model, engine, device, dtype, tf32, threads, weights, memory: as ``fastddpm.Sampler``'s.
    decoder:    "tanh", as Ho's and OpenAI's code has it, or "erf", exact: see ``gaussian``.
    batch_size: the most rows (pairs of an image and a timestep) to run at once; None: 64. Engine
                "cpu" runs at most 32768 pixels at once in any case.

    x̂_0 is clipped as the diffusion says. Raises ValueError as a Sampler does.
    """

    def __init__(
        self,
        model: Model,
        diffusion: GaussianDiffusion,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        decoder: Decoder = "tanh",
        batch_size: int | None = None,
        tf32: bool = False,
        threads: int | None = None,
        weights: str = "float32",
        memory: str = "small",
    ) -> None:
        if decoder not in CDFS:
            raise ValueError(f"decoder is one of {', '.join(CDFS)}; got {decoder!r}")
        cpu = CpuOptions(threads, weights, memory)
        self._place = Place.of(model, diffusion, engine, device, dtype, cpu, tf32)
        self._network = NetworkCall(model, self._place)
        self._terms = Terms(diffusion, decoder)
        self._batch_size = positive(
            "batch_size", ROWS_AT_ONCE if batch_size is None else batch_size
        )
        self.model = model
        self.diffusion = diffusion

    def __call__(
        self,
        images: Tensor | Array,
        seed: int = 0,
        *,
        indices: Indices | None = None,
        labels: Labels | None = None,
        noise: CallerNoise | None = None,
        timesteps: int | None = None,
        progress: Progress | None = None,
    ) -> BitsPerDim:
        """The terms of every image; see ``fastddpm.evaluation.bits_per_dim``."""
        x_0 = self._images(images)
        seed, count, steps = integer("seed", seed), len(x_0), self.diffusion.num_steps
        chosen = arguments.sample_indices(count if indices is None else None, indices)
        if len(chosen) != count:
            raise ValueError(f"expected an index for each of {count} images, got {len(chosen)}")
        if timesteps is None:
            pairs = all_pairs(count, steps)
        else:
            pairs = drawn_pairs(seed, chosen, steps, positive("timesteps", timesteps))
        make_noisy = self._noised(seed, chosen, noise, (count, *x_0.shape[1:]), indices, timesteps)
        rows = None
        if labels is not None:
            rows = arguments.label_rows(labels, count, self.model, torch.device("cpu"))
        with isolated(self._place.device, tf32=self._place.tf32):
            vb, mse = self._run(x_0, rows, pairs, make_noisy, progress)
            prior = self.diffusion.prior_bpd(_floating(x_0).cpu().double())
        total = prior.index_add(0, pairs.image, pairs.weight * vb)
        columns = (_columns(pairs, v, count, steps) for v in (vb, mse))
        dtype = torch.float64 if x_0.dtype == torch.float64 else torch.float32
        return BitsPerDim(*(v.to(dtype) for v in (total, prior, *columns)))

    def _run(
        self,
        x_0: Tensor,
        labels: Tensor | None,
        pairs: Pairs,
        make_noisy: Noised,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """vb and mse of every pair, float64 on the host."""
        total, size = len(pairs.t), self._rows_at_once(len(pairs.t), x_0.shape[1:])
        # What is captured for full batches runs the last one, too.
        padded = self._place.engine.captures and total > size
        vb, mse = torch.empty(2, total, dtype=torch.float64).unbind()
        for begin in range(0, total, size):
            end = min(begin + size, total)
            rows = torch.arange(begin, begin + size if padded else end).clamp(max=total - 1)
            image, t = pairs.image[rows], pairs.t[rows]
            x = _floating(x_0[image.to(x_0.device)]).to(self._place.device)
            x_t = make_noisy(x, t, image)
            there = self.diffusion.model_timesteps(t.to(x.device))
            of_rows = None if labels is None else labels[image]
            # Weights that changed without torch's notice are looked for once a call.
            output = self._network(x_t, there, of_rows, reread=begin == 0)
            found = self._terms(output, x, x_t, t)
            vb[begin:end], mse[begin:end] = (v[: end - begin] for v in found)
            self._check_finite(vb[begin:end], mse[begin:end], t[: end - begin])
            if progress is not None:
                progress(end, total)
        return vb, mse

    def _rows_at_once(self, total: int, shape: torch.Size) -> int:
        """A multiple of what the engine takes at once: its program runs full but for the last."""
        size = min(self._batch_size, max(total, 1))
        at_once = self._place.engine.batch(size, shape)
        return max(size // at_once, 1) * at_once

    def _images(self, images: Tensor | Array) -> Tensor:
        """As they are, [B, C, H, W]: bytes, or floating in the range of x_0."""
        x_0 = torch.as_tensor(images) if isinstance(images, np.ndarray) else images
        if not isinstance(x_0, Tensor) or x_0.dtype != torch.uint8:
            x_0 = arguments.images("images", x_0)
            if self.diffusion.clip is None:
                # Data need no bound then, as of a Gaussian; bytes' levels are told all the same.
                arguments.within("images", x_0, 1.0, tolerance=FAR)
            else:
                arguments.within("images", x_0, self.diffusion.clip)
        shape = sample_shape(self.model)
        if x_0.ndim < 3 or (shape is not None and tuple(x_0.shape[1:]) != shape):
            expected = "[B, C, H, W]" if shape is None else f"a batch of {list(shape)}"
            raise ValueError(f"images must be {expected}, got {list(x_0.shape)}")
        return x_0

    def _noised(
        self,
        seed: int,
        chosen: Tensor,
        noise: CallerNoise | None,
        drawn: tuple[int, ...],
        indices: Indices | None,
        timesteps: int | None,
    ) -> Noised:
        if noise is None:
            return noised.by_counter(self.diffusion, seed, chosen, self._place.engine.backend)
        if indices is not None or timesteps is not None:
            raise ValueError("noise= replaces the counter, which indices= and timesteps= draw from")
        return noised.by_caller(self.diffusion, GivenNoise(noise, drawn, self._place.device))

    def _check_finite(self, vb: Tensor, mse: Tensor, t: Tensor) -> None:
        wrong = ~(vb.isfinite() & mse.isfinite())
        if wrong.any():
            step = int(t[wrong][0])
            original = int(self.diffusion.schedule.timesteps[step])
            raise FloatingPointError(
                f"NaN or Inf in the bound at timestep {original} (step index {step})"
            )


def _floating(images: Tensor) -> Tensor:
    """Bytes as x = u/127.5 - 1; others in float64 or float32."""
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    return images if images.dtype == torch.float64 else images.float()


def _columns(pairs: Pairs, values: Tensor, count: int, steps: int) -> Tensor:
    """[B, T], NaN where a term was not computed."""
    table = torch.full((count, steps), torch.nan, dtype=values.dtype)
    table[pairs.image, pairs.t] = values
    return table
