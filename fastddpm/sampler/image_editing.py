"""What a sampler does with images: the ODE backwards, and chains that begin or end at them.

img2img    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) z, then the steps t, ..., 0      SDEdit, Meng et al. 2022
invert     x_0 to the x_T that DDIM leads back from                   methods.py
inpaint    what is not known of x_0                                   repaint.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.noise import Purpose
from fastddpm.sampler import arguments
from fastddpm.sampler.arguments import Array, Indices, Labels, integer, positive
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.noise_source import CallerNoise, GivenNoise, NoiseSource
from fastddpm.sampler.recipe import Options, Recipe
from fastddpm.sampler.runs import Progress, Runs, chosen_samples, expect_as_many

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Editing:
    """The part of ``fastddpm.Sampler`` that takes images."""

    _runs: Runs

    def invert(
        self,
        images: Tensor | Array,
        *,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """x_T that DDIM without noise leads back to the images: its ODE run the other way.

        images: float [B, C, H, W] in [-1, 1]. Other arguments and errors as in ``sample``; x_0 is
        not bounded, unless ``clip`` says so.

        Returns float32 [B, C, H, W], for ``sample(x_T=..., method="ddim")`` with the same steps.
        """
        x = self._runs.images("images", images)
        method = options.setdefault("method", "ddim-inverse")
        if method != "ddim-inverse":
            raise ValueError(f"invert runs method 'ddim-inverse', not {method!r}")
        recipe = Recipe.of(self._runs.diffusion, options)
        call = self._runs.call(recipe, options, torch.arange(len(x)), 0, None, labels)
        begin = self._runs.begin_at(call, x)
        return self._runs.decode(call, begin, call.chain.num_steps - 1, batch_size, progress)

    def img2img(
        self,
        images: Tensor | Array,
        t: int,
        seed: int = 0,
        *,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """New images from these: noised to step t, then drawn by the steps t, ..., 0 (SDEdit).

        images: float [B, C, H, W] in [-1, 1]. t: 0 to T-1 of the whole chain; with fewer steps the
        last one that is not beyond it. indices: of the images, 0, ..., B-1 by default. noise: asked
        for as in ``sample``, first for the images'. Other arguments and errors as in ``sample``.
        """
        x_0, t = self._runs.images("images", images), integer("t", t)
        last = self._runs.diffusion.num_steps - 1
        if not 0 <= t <= last:
            raise ValueError(f"t is a step of the whole chain, 0 to {last}; got {t}")
        chosen = chosen_samples(None if indices is not None else len(x_0), indices, noise)
        recipe = Recipe.of(self._runs.diffusion, options)
        call = self._runs.call(recipe, options, chosen, seed, noise, labels)
        expect_as_many("images", x_0, chosen)
        if recipe.method == "ddim-inverse":
            raise ValueError("img2img draws by the steps t, ..., 0, not by method 'ddim-inverse'")
        level = level_of(call.chain, recipe.timesteps, t)

        def begin(source: NoiseSource, batch: slice) -> Tensor:
            given = (level, source, call.seed, chosen[batch])
            return noised(call.chain, x_0[batch], *given)

        start = call.chain.method.start(level)
        return self._runs.decode(call, begin, start, batch_size, progress)

    def inpaint(
        self,
        images: Tensor | Array,
        known: Tensor | Array,
        seed: int = 0,
        *,
        jump_length: int = 10,
        resamplings: int = 10,
        indices: Indices | None = None,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Tensor:
        """The images with what is not known of them drawn anew (RePaint; see repaint.py).

        images: float [B, C, H, W] in [-1, 1]. known: bool, or 0 and 1, of a shape that broadcasts
        to that; what is not known may hold anything, NaN too. jump_length, resamplings: j and r of
        the paper, whose 250 ``steps`` they belong to; resamplings=1 never goes back. The network is
        called about resamplings times as often as the chain has steps. ``noise`` is called with as
        many steps. The method is "ancestral", with a fixed variance. Other arguments and errors as
        in ``sample``.
        """
        x_0 = self._runs.images("images", images)
        chosen = chosen_samples(None if indices is not None else len(x_0), indices, noise)
        expect_as_many("images", x_0, chosen)
        jumps = positive("jump_length", jump_length), positive("resamplings", resamplings)
        own = Recipe.of(self._runs.diffusion, options)
        if own.method != "ancestral" or own.variance is not None:
            raise ValueError("inpaint walks the ancestral chain, with the diffusion's own variance")
        call = self._runs.call(replace(own, jumps=jumps), options, chosen, seed, noise, labels)
        mask = arguments.mask("known", known, x_0)
        if not (x_0.isfinite() | ~mask).all():
            raise ValueError("images must be finite where they are known")
        conditions = replace(call.conditions, images=x_0, mask=mask)
        call = replace(call, conditions=conditions)
        begin = self._runs.begin_at(call, None)
        return self._runs.decode(call, begin, call.chain.num_steps - 1, batch_size, progress)


def level_of(chain: Chain, timesteps: tuple[int, ...] | None, t: int) -> int:
    """The level at which a chain over these timesteps begins for t of the whole chain: the last one
    not beyond it. ValueError if there is none."""
    steps = range(chain.diffusion.num_steps) if timesteps is None else timesteps
    found = sum(step <= t for step in steps) - 1
    if t < 0 or found < 0 or (timesteps is None and t > steps[-1]):
        raise ValueError(
            f"t must be a step index, and the chain visits {steps[0]} to {steps[-1]}; got {t}"
        )
    return found


def noised(
    chain: Chain, images: Tensor, level: int, source: NoiseSource, seed: int, indices: Tensor
) -> Tensor:
    """x_t of images [B, C, H, W] at a level. The noise is the source's own if it is a
    caller's, asked for as that of x_T is; else the counter's, under FORWARD."""
    steps = torch.full((len(images),), level, dtype=torch.int64, device=images.device)
    if isinstance(source, GivenNoise):
        z = source.initial(chain.num_steps)
    else:
        step = int(chain.diffusion.schedule.timesteps[level])
        z = ops.normal(
            seed,
            indices.to(images.device),
            step,
            tuple(images.shape[1:]),
            Purpose.FORWARD,
            backend=chain.place.engine.backend,
        )
    return chain.diffusion.q_sample(images, steps, z)
