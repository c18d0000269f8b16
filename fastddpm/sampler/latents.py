"""What a sampler does with states in the middle of its chain: it mixes them, and branches there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastddpm.sampler import arguments, branches, interpolate
from fastddpm.sampler.arguments import Array, Labels, integer, positive
from fastddpm.sampler.branches import Branches
from fastddpm.sampler.conditions import Conditions
from fastddpm.sampler.noise_source import CallerNoise
from fastddpm.sampler.recipe import OWN
from fastddpm.sampler.runs import Progress, Runs, counted


class Latents:
    """The part of ``fastddpm.Sampler`` that works on x_t. Everything runs as one batch, in which
    rows of a smaller t join when the chain comes by: see joining.py."""

    _runs: Runs

    def interpolate(
        self,
        a: Tensor | Array,
        b: Tensor | Array,
        t: int | Sequence[int] | Tensor | Array = 500,
        lambdas: Sequence[float] | Tensor | Array = (0.0, 0.25, 0.5, 0.75, 1.0),
        seed: int = 0,
        *,
        resample_noise: bool = False,
        noise: CallerNoise | None = None,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Images between a and b: [L, C, H, W], or [L, B, C, H, W] for batches of pairs; with a
        list of K steps as t, [K, ...].

        Encodes both to step t, mixes with each of the L weights in ``lambdas`` and decodes, with
        the same noise for every weight. See ``fastddpm.sampler.interpolate.interpolate`` for every
        argument. a and b are floating point; where the sampler knows no shape they are taken for
        pictures, [C, H, W] or [B, C, H, W].
        """
        image_a, image_b = (arguments.images("a and b", end) for end in (a, b))
        levels, several = arguments.step_indices("t", t)
        weights = arguments.weights(lambdas)
        shape = self._runs.shape_of(image_a)
        pairs = len(image_a) if image_a.ndim > len(shape) else 1
        rows = self._runs.labels(labels, len(weights) * pairs)
        images = interpolate.interpolate(
            self._runs.chain_of(OWN),
            shape,
            image_a,
            image_b,
            levels,
            weights,
            integer("seed", seed),
            resample_noise=resample_noise,
            noise=noise,
            conditions=Conditions(rows),
            after_step=counted(progress, max(levels) + 1),
        )
        return images if several else images[0]

    def branches(
        self,
        index: int = 0,
        t: int | Sequence[int] | Tensor | Array = (750, 500, 250),
        n: int = 8,
        seed: int = 0,
        *,
        labels: Labels | None = None,
        progress: Progress | None = None,
    ) -> Branches:
        """n images each from the states x_t of sample ``index``'s chain: they share what has been
        drawn by step t, and have noise of their own from there on. See branches.py.

        t: step indices, 0 to T-1; the state that step t begins with. labels: one class for all.
        The trunk is the image that ``sample(indices=[index])`` returns.

        Returns ``fastddpm.sampler.Branches``. Errors as in ``sample``.
        """
        levels, _ = arguments.step_indices("t", t)
        count = 1 + len(levels) * positive("n", n)
        chain = self._runs.chain_of(OWN)
        return branches.branches(
            chain,
            self._runs.shape,
            integer("index", index),
            levels,
            n,
            integer("seed", seed),
            Conditions(self._runs.labels(labels, count)),
            counted(progress, chain.num_steps),
        )
