"""FastDDPMScheduler and FastDDIMScheduler: diffusers' schedulers with another ``step``.

They are diffusers' classes in all but the numbers of a step, which are computed once for every
timestep, and how it runs: one pass over memory, nothing that waits for the device. The noise is
diffusers' own, bit for bit, of any generator or list of generators.

``compatibility="diffusers"`` (the default) keeps what diffusers computes; ``"exact"`` mends it.
Each row is a test in tests/test_scheduler_quirks.py; T = 1000 linear betas.

    diffusers                              what it does to the numbers              exact
    float32 tables                         relative: 1-ᾱ 1.7e-4, β 5e-4; the        float64
                                           mean's share of x_t 1.1e-4
    noise where t > 0, also at the last    trailing, fixed_large: deviation .321,   none at the
    step                                   .076, .044, .023, .015 left in the       last step
                                           image after 10, 50, 100, 250, 500
                                           steps; fixed_small 1e-10
    fixed_large_log: √(log β)              NaN                                      √β
    fixed_small_log: _get_variance is σ    none: step does not take the root        the same
    learned: the output is σ²              output .5: σ .71; output -1: NaN         its logarithm:
                                                                                    1.28; .61
    DDIM goes to t - ⌊T/n⌋, not to the     trailing, 7 steps: 999 -> 857 for 856;   the list's next
    list's next                            linspace, 300: √ᾱ' off by up to 1.9e-3
    DDIM keeps ε where x_0 was bounded     first of 50 steps, ε and x_t normal:     ε of the
                                           x' off by its own size                   bounded x_0
    trailing lists t = -1 at the end       62 of the n up to 1000 (61, 103, ...):   n timesteps
                                           a step of ᾱ_999; IndexError here
    add_noise rounds ᾱ to the sample's     float16: deviation 0 at t = 0, not .01   rounds last
    dtype
    ᾱ = 0 with epsilon: divides by 0       x_0 is ± its bound                       ValueError
    a threshold's rank in float32          1.2e-4 of an element among 3072          float64

An argument given to DDIM's step as True or False is obeyed by both. Not kept: the rounding of every
single operation (in half precision the result is rounded once), and a move of ``alphas_cumprod``
to the device of what it was used with.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastddpm.integrations.affine_step import FIXED, GIVEN, LEARNED, LEARNED_RANGE, AffineStep
from fastddpm.integrations.scheduler_tables import FollowingTables, with_compatibility
from fastddpm.integrations.visited import END, UNLISTED
from fastddpm.ops import torch_normal
from fastddpm.ops.bound_step import CPU, plain
from fastddpm.step_rows import ancestral_rows, ddim_rows

_LEARNED = {"learned": GIVEN, "learned_range": LEARNED_RANGE}
_MENDED = {"fixed_small_log": "fixed_small", "fixed_large_log": "fixed_large"}


# Kept tables of DDIM, one for each eta.
_ETAS = 16

Generators = torch.Generator | list[torch.Generator] | None


class FastDDPMScheduler(FollowingTables, DDPMScheduler):  # type: ignore[misc]
    """DDPMScheduler, its arguments and ``compatibility``: "diffusers" or "exact", see above."""

    __init__ = with_compatibility(DDPMScheduler.__init__)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """A chain of that many steps, or through the descending timesteps given."""
        super().set_timesteps(num_inference_steps, None, timesteps)
        self._visit(device, num_inference_steps)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """x_{t-1} and x_0 from the network's output at x_t.

        Args:
            model_output: floating [B, C, *spatial], or [B, 2C, *spatial] if the variance is
                learned.
            timestep: t. A device tensor that is not an element of ``timesteps`` is never read: the
                noise is drawn at t = 0 too, where it is not added.
            sample: x_t, floating [B, C, *spatial].
            generator: of the noise, or one for each sample.
            return_dict: a DDPMSchedulerOutput, else a tuple of its two tensors.

        Raises:
            IndexError: a timestep that the chain does not visit (NaN, if only the device knows).
            ValueError: an unknown prediction_type, a learned variance that the output lacks.
        """
        affine, after, noisy = self._current()
        t = self._visits().number(timestep)
        row = _row(timestep, t, after)
        noise = None
        if t is None or noisy[t]:
            doubled = affine.variance != FIXED and model_output.shape[1] == 2 * sample.shape[1]
            shape = (len(model_output), *sample.shape[1:]) if doubled else model_output.shape
            noise = _drawn(shape, model_output, generator)
        x_prev, x_0 = affine(sample, model_output, row, noise)
        if not return_dict:
            return x_prev, x_0
        return DDPMSchedulerOutput(prev_sample=x_prev, pred_original_sample=x_0)

    def _make(self) -> tuple[AffineStep, list[int], list[bool]]:
        """The step, what follows each timestep, and whether noise is added there."""
        T, variance = len(self.alphas_cumprod), self.config.variance_type
        if self.custom_timesteps or self.num_inference_steps:
            after = self._visits().after(T)
        else:
            after = list(range(-1, T - 1))
        noisy = [following != END if self._exact else t > 0 for t, following in enumerate(after)]
        kind = _LEARNED.get(variance, FIXED)
        if self._exact:
            variance = _MENDED.get(variance, variance)
            kind = LEARNED if kind == GIVEN else kind
        levels = self._levels_at(after, torch.ones(()))
        rows = ancestral_rows(*levels, self.config.prediction_type, variance, torch.tensor(noisy))
        return AffineStep(rows, **self._estimate(), variance=kind), after, noisy


class FastDDIMScheduler(FollowingTables, DDIMScheduler):  # type: ignore[misc]
    """DDIMScheduler, its arguments and ``compatibility``: "diffusers" or "exact", see above."""

    __init__ = with_compatibility(DDIMScheduler.__init__)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """A chain of that many steps."""
        super().set_timesteps(num_inference_steps)
        self._visit(device, num_inference_steps)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """The sample at the next timestep and x_0, from the network's output at x_t.

        Args:
            model_output, sample: floating [B, C, *spatial].
            timestep: t.
            eta: 0 is deterministic, 1 is DDPM's noise.
            use_clipped_model_output: whether ε is derived anew from the bounded x_0. None: as the
                compatibility has it, False for "diffusers" and True for "exact".
            generator: of the noise, or one for each sample.
            variance_noise: the noise itself, [B, C, *spatial]; not both.
            return_dict: a DDIMSchedulerOutput, else a tuple of its two tensors.

        Raises:
            IndexError: a timestep that the chain does not visit (NaN, if only the device knows).
            ValueError: before `set_timesteps`; noise and a generator; an unknown prediction_type.
        """
        if self.num_inference_steps is None:
            raise ValueError(
                "Number of inference steps is 'None', you need to run 'set_timesteps' after "
                "creating the scheduler"
            )
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError("Cannot pass both generator and variance_noise: expected one of them")
        rederive = self._exact if use_clipped_model_output is None else use_clipped_model_output
        after, steps = self._current()
        key = (float(eta), bool(rederive))
        if key not in steps:
            if len(steps) == _ETAS:
                steps.clear()
            with torch.inference_mode(False):
                steps[key] = self._affine(after, *key)
        t = self._visits().number(timestep)
        row = _row(timestep, t, after)
        noise = None
        if eta > 0 and not (self._exact and t is not None and after[t] == END):
            given = variance_noise is not None
            noise = variance_noise if given else _drawn(model_output.shape, model_output, generator)
        x_prev, x_0 = steps[key](sample, model_output, row, noise)
        if not return_dict:
            return x_prev, x_0
        return DDIMSchedulerOutput(prev_sample=x_prev, pred_original_sample=x_0)

    def _begin(self) -> None:
        super()._begin()
        if self._exact:
            one = torch.ones((), dtype=torch.float64)
            self.final_alpha_cumprod = (
                one if self.config.set_alpha_to_one else self.alphas_cumprod[0]
            )

    def _make(self) -> tuple[list[int], dict[tuple[float, bool], AffineStep]]:
        """What follows each timestep, and the steps that have been asked for."""
        T = len(self.alphas_cumprod)
        if self._exact:
            return self._visits().after(T), {}
        assert self.num_inference_steps is not None
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return [max(t - stride, END) for t in range(T)], {}

    def _affine(self, after: list[int], eta: float, rederive: bool) -> AffineStep:
        now, then = self._levels_at(after, self.final_alpha_cumprod)
        etas = torch.full_like(now, eta)
        if self._exact:
            etas[torch.tensor(after) == END] = 0
        rows = ddim_rows(now, then, self.config.prediction_type, etas, rederive=rederive)
        return AffineStep(rows, **self._estimate())


def _row(timestep: int | Tensor, t: int | None, after: list[int]) -> int | Tensor:
    """The row of a step, on the host if t is known there."""
    if t is None:
        assert isinstance(timestep, Tensor)
        return timestep.reshape(1).to(torch.int64)
    if not (0 <= t < len(after) and after[t] != UNLISTED):
        raise IndexError(f"expected a timestep that the chain visits, got {t}: see set_timesteps")
    return t


def _drawn(shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    """Normal noise, as diffusers draws it."""
    given = generator if isinstance(generator, list) else [generator or torch.default_generator]
    here = [one for one in given if isinstance(one, torch.Generator) and one.device == CPU]
    if not here or len(here) != len(given) or not plain(like):
        drawn: Tensor = randn_tensor(shape, generator, like.device, like.dtype)
        return drawn
    if len(here) == 1:
        return torch_normal.randn(shape, here[0])
    return torch.cat([torch_normal.randn((1, *shape[1:]), here[b]) for b in range(shape[0])])
