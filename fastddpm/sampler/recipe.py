"""What kind of chain a call asks for: its options, checked, and the table of steps they come to."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypedDict

from torch import Tensor

from fastddpm import timesteps
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import methods, repaint
from fastddpm.sampler.analytic import with_analytic_variance
from fastddpm.sampler.arguments import integer, is_number, number
from fastddpm.sampler.edited_estimate import Edit, rows_for_edits
from fastddpm.sampler.langevin import STEP_SIZE, langevin
from fastddpm.sampler.measured import Measured
from fastddpm.sampler.methods import METHODS, NETWORK_AT, Method
from fastddpm.sampler.threshold import Threshold

# Imagen's, without its own maximum.
DYNAMIC = Threshold(0.995, math.inf)

Clip: TypeAlias = float | Literal["dynamic"] | Threshold | None


class Options(TypedDict, total=False):
    """How a chain is run; all have a default.

    steps:    how many, spread over the diffusion's T by ``spacing``; or OpenAI's sections,
              "10,15,20" or "ddim50"; or a list of them, 0 to T-1. By default all T.
    spacing:  "linspace" (the default), "leading", "trailing" or "quad".
    method:   "ancestral" (the default), "ddim", "dpm-solver++", "ddim-inverse" or "langevin"; see
              methods.py.
    eta:      of "ddim": 0 adds no noise (the default), 1 the ancestral step's.
    corrections: of "langevin": its steps at each level, each of which calls the network; 1 by
              default, and with 0 the chain is the ancestral one.
    step_size: of "langevin": η_t/β_t of them, above 0 and at most 1; ½ by default. See langevin.py.
    variance: of "ancestral" and "ddim": what was measured of the model on data (``measure``), for
              the analytic variance; see analytic.py. By default the diffusion's.
    clip:     bound of |x_0|, or None; "dynamic" or a ``Threshold``: dynamic thresholding. By
              default the diffusion's.
    guidance: w of classifier-free guidance; needs labels. See guidance.py. By default none: one
              row a sample.
    null_label: the class that stands for none; by default the network's last one.
    on_x_0:   a function of torch, x_0 [B, C, H, W] -> x_0, applied to every step's estimate after
              its bound; the step goes on from what it returns. It must treat each row by itself:
              B rows are one batch of those that ``batch_size`` or engine "cpu" make, not the n
              images. With guidance each image is there twice, first all rows of the classes, then
              the same again for the null class. Where an engine captures, a shorter last batch is
              filled up with rows that are dropped. It is captured with the step: what changes from
              call to call it reads from tensors that it holds.
    network_at: of "ddim-inverse": at which of a step's two timesteps the network is called, "next"
              (the default) or "current"; see methods.py.
    """

    steps: int | str | Sequence[int] | Tensor
    spacing: str
    method: str
    eta: float
    corrections: int
    step_size: float
    variance: Measured
    clip: Clip
    guidance: float
    null_label: int
    on_x_0: Edit
    network_at: str


@dataclass(frozen=True)
class Recipe:
    """A chain's kind: calls with equal ones share what is prepared.

    timesteps: positions in the diffusion's chain; None: all. bound: "own", or another bound of x_0.
    jumps: RePaint's jump_length and resamplings.
    """

    method: str = "ancestral"
    timesteps: tuple[int, ...] | None = None
    eta: float = 0.0
    variance: Measured | None = None
    bound: float | Threshold | Literal["own"] | None = "own"
    on_x_0: Edit | None = None
    guided: bool = False
    jumps: tuple[int, int] | None = None
    network_at: str = "next"
    corrections: int = 1
    step_size: float = STEP_SIZE

    @classmethod
    def of(cls, diffusion: GaussianDiffusion, options: Options) -> Recipe:
        """The recipe of a call's options; ValueError for those that do not fit together."""
        unknown = set(options) - set(Options.__annotations__)
        if unknown:
            raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
        method = options.get("method", "ancestral")
        if method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}; got {method!r}")
        recipe = cls(
            method,
            _positions(diffusion, options),
            _eta(method, options),
            _measured(method, options),
            _bound(options),
            _function(options),
            options.get("guidance") is not None,
            network_at=_network_at(method, options),
            corrections=_corrections(method, options),
            step_size=_step_size(method, options),
        )
        if method == "ddim-inverse" and recipe.network_at == "next" and recipe._bounds_or_edits:
            raise ValueError(
                "a step is undone without a bound of x_0 or a function of it: expected clip=None "
                "and no on_x_0=, or network_at='current'"
            )
        return recipe

    def diffusion(self, whole: GaussianDiffusion) -> GaussianDiffusion:
        """The diffusion over the timesteps that are kept."""
        if self.timesteps is None:
            return whole
        return whole.respace(whole.schedule.timesteps[list(self.timesteps)])

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What x_0 goes through, in order."""
        bound = (self.bound,) if isinstance(self.bound, Threshold) else ()
        return (*bound, *(() if self.on_x_0 is None else (self.on_x_0,)))

    @property
    def _bounds_or_edits(self) -> bool:
        """Whether the caller wants x_0 other than the step has it."""
        return self.bound not in ("own", None) or self.on_x_0 is not None

    def steps(self, diffusion: GaussianDiffusion) -> tuple[Method, Tensor | None]:
        """The table of steps of the diffusion over its timesteps, and what is known at each of
        them where a part of the image is."""
        clip = diffusion.clip if self.bound == "own" else self.bound
        clip = None if isinstance(clip, Threshold) else clip
        assert not isinstance(clip, str)
        if self.jumps is not None:
            return repaint.repaint(diffusion, clip, *self.jumps)
        return self._method(diffusion, clip), None

    def _method(self, diffusion: GaussianDiffusion, clip: float | None) -> Method:
        if self.method == "dpm-solver++":
            return methods.dpm_solver(diffusion, clip)
        if self.method == "ddim-inverse":
            # Undoing a step leaves no place for a bound; x_0's own is meant for drawing.
            bounded = None if self.bound == "own" else clip
            return methods.inverse(diffusion, bounded, self.network_at)
        if self.method == "ddim":
            method = methods.ddim(diffusion, clip, self.eta)
        elif self.method == "langevin":
            method = langevin(diffusion, clip, self.corrections, self.step_size)
        else:
            method = methods.ancestral(diffusion, clip)
        if self.variance is not None:
            eta = self.eta if self.method == "ddim" else 1.0
            return with_analytic_variance(diffusion, method, eta, self.variance)
        if self.edits:
            rows = rows_for_edits(diffusion, method)
            return replace(method, rows=rows, prediction="epsilon")
        return method


# The diffusion's own chain.
OWN = Recipe()


def _positions(diffusion: GaussianDiffusion, options: Options) -> tuple[int, ...] | None:
    steps, spacing = options.get("steps"), options.get("spacing", "linspace")
    if steps is None:
        if "spacing" in options:
            raise ValueError("spacing spreads fewer steps: give steps=")
        return None
    kept = timesteps.chosen(diffusion.num_steps, steps, spacing)
    return tuple(kept.tolist()) if len(kept) < diffusion.num_steps else None


def _eta(method: str, options: Options) -> float:
    eta = number("eta", options.get("eta", 0.0))
    if not 0 <= eta <= 1 or (eta and method != "ddim"):
        raise ValueError(f"eta is a number in [0, 1] for method 'ddim', got {eta} for {method}")
    return eta


def _corrections(method: str, options: Options) -> int:
    corrections = integer("corrections", options.get("corrections", 1))
    if corrections < 0 or ("corrections" in options and method != "langevin"):
        raise ValueError(
            f"corrections are 0 or more, of method 'langevin'; got {corrections} for {method!r}"
        )
    return corrections


def _step_size(method: str, options: Options) -> float:
    size = number("step_size", options.get("step_size", STEP_SIZE))
    if not 0 < size <= 1 or ("step_size" in options and method != "langevin"):
        raise ValueError(
            f"step_size is above 0 and at most 1, of method 'langevin'; got {size} for {method!r}"
        )
    return size


def _measured(method: str, options: Options) -> Measured | None:
    measured = options.get("variance")
    if measured is not None and not isinstance(measured, Measured):
        raise ValueError(f"variance is what Sampler.measure returned, got {reprlib.repr(measured)}")
    if measured is not None and method not in ("ancestral", "ddim"):
        raise ValueError(f"the analytic variance is one of ancestral and ddim, not {method}")
    return measured


def _function(options: Options) -> Edit | None:
    edit = options.get("on_x_0")
    # Chains are kept by what they are made of, so all of that has a hash.
    if edit is not None and not (callable(edit) and isinstance(edit, Hashable)):
        raise ValueError(f"on_x_0 is a hashable function of x_0, got {reprlib.repr(edit)}")
    return edit


def _network_at(method: str, options: Options) -> str:
    chosen = options.get("network_at", "next")
    if "network_at" in options and method != "ddim-inverse":
        raise ValueError(f"network_at is for method 'ddim-inverse', not {method!r}")
    if chosen not in NETWORK_AT:
        raise ValueError(f"network_at is one of {', '.join(NETWORK_AT)}; got {chosen!r}")
    return chosen


def _bound(options: Options) -> float | Threshold | Literal["own"] | None:
    if "clip" not in options:
        return "own"
    clip: Any = options["clip"]
    if clip is None or isinstance(clip, Threshold):
        return clip
    if isinstance(clip, str) and clip == "dynamic":
        return DYNAMIC
    if is_number(clip) and clip > 0:
        return float(clip)
    raise ValueError(f"clip is a number above 0, None, 'dynamic' or a Threshold; got {clip!r}")
