"""NoiseSchedule: from betas to every table of the forward process, in float64.

    q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)          α_t = 1 - β_t,  ᾱ_t = Π_{s≤t} α_s
    q(x_t | x_0)     = N(√ᾱ_t x_0, (1-ᾱ_t) I)              SNR_t = ᾱ_t / (1-ᾱ_t)
    q(x_{t-1} | x_t, x_0) = N(μ̃_t, β̃_t I)
        μ̃_t = √ᾱ_{t-1} β_t/(1-ᾱ_t) x_0 + √α_t (1-ᾱ_{t-1})/(1-ᾱ_t) x_t
        β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Ho, Jain, Abbeel 2020, equations 2, 4, 6 and 7.  Index 0 of a table is the first, least noisy step
(the paper's t = 1), where ᾱ_{t-1} = 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Values: TypeAlias = Tensor | Sequence[float] | np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The betas of T steps and the original timestep of each.

    betas: float64 [T], each in (0, 1].  A beta of 1 makes ᾱ zero from there on (no signal left).
    timesteps: int64 [T], strictly ascending; the index that each step had in the schedule which
    the network was trained with; none given means 0..T-1.

    Raises ValueError for betas outside (0, 1] or timesteps that do not fit them.
    """

    betas: Tensor
    # None until __post_init__ fills in 0..T-1.
    timesteps: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64).detach().cpu().clone()
        given = self.timesteps
        timesteps = torch.arange(betas.numel()) if given is None else _integers(given).clone()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"expected betas of shape [T], got {list(betas.shape)}")
        wrong = ~((betas > 0) & (betas <= 1))
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise ValueError(f"expected every beta in (0, 1], got {float(betas[i])!r} at step {i}")
        if timesteps.shape != betas.shape:
            raise ValueError(
                f"expected one timestep for each of {len(betas)} betas, got {len(timesteps)}"
            )
        if timesteps[0] < 0 or (timesteps.diff() <= 0).any():
            raise ValueError(f"expected ascending timesteps from 0, got {_brief(timesteps)}")
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "timesteps", timesteps)

    def __len__(self) -> int:
        return len(self.betas)

    def __repr__(self) -> str:
        ends = f"betas {float(self.betas[0]):.4g} to {float(self.betas[-1]):.4g}"
        return f"NoiseSchedule({len(self)} steps, {ends}, timesteps {_brief(self.timesteps)})"

    # ---- making one

    @classmethod
    def linear(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """β from start to end in equal steps, whatever T (Ho; diffusers; LDM's "sqrt_linear")."""
        return cls.from_betas(_line(beta_start, beta_end, T))

    @classmethod
    def openai_linear(cls, T: int = 1000) -> NoiseSchedule:
        """β from .1/T to 20/T: `linear` with both ends scaled by 1000/T (OpenAI, lucidrains)."""
        return cls.from_betas(_line(0.1 / _positive(T), 20 / T, T))

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """√β in equal steps (diffusers; Ho's "quad"; LDM's "linear")."""
        return cls.from_betas(_line(math.sqrt(beta_start), math.sqrt(beta_end), T) ** 2)

    quad = scaled_linear

    @classmethod
    def sqrt(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """β² in equal steps between the ends given: β = √linspace(start, end) (LDM)."""
        return cls.from_betas(_line(beta_start, beta_end, T).sqrt())

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """ᾱ(u) = cos²((u+s)/(1+s) π/2), u = t/T, β ≤ max_beta (Nichol & Dhariwal 2021, eq. 17)."""
        return cls._from_alpha_bar(
            T, lambda u: ((u + s) / (1 + s) * math.pi / 2).cos() ** 2, max_beta
        )

    @classmethod
    def laplace(cls, T: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """ᾱ = √(SNR/(1+SNR)) with log SNR Laplace-distributed in u (Hang et al. 2024)."""

        def alpha_bar(u: Tensor) -> Tensor:
            middle = 0.5 - u
            # 1 at u = .5 too, where torch.sign would give 0
            sign = torch.where(middle < 0, -1.0, 1.0)
            return torch.sigmoid(-0.5 * sign * torch.log(1 - 2 * middle.abs() + 1e-6)).sqrt()

        return cls._from_alpha_bar(T, alpha_bar, max_beta)

    @classmethod
    def sigmoid(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """β a logistic curve over [-6, 6] between its ends (diffusers, from GeoDiff)."""
        return cls.from_betas(
            torch.sigmoid(_line(-6.0, 6.0, T)) * (beta_end - beta_start) + beta_start
        )

    @classmethod
    def sigmoid_alpha_bar(
        cls,
        T: int = 1000,
        start: float = -3,
        end: float = 3,
        tau: float = 1,
        max_beta: float = 0.999,
    ) -> NoiseSchedule:
        """ᾱ a falling logistic curve from 1 to 0 (lucidrains; Jabri et al. 2022)."""

        def alpha_bar(u: Tensor) -> Tensor:
            low, high = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
            return (high - torch.sigmoid((u * (end - start) + start) / tau)) / (high - low)

        return cls._from_alpha_bar(T, alpha_bar, max_beta)

    @classmethod
    def warmup10(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """`linear` over the first tenth of the steps, then constant (Ho)."""
        return cls.from_betas(_warmup(T, 0.1, beta_start, beta_end))

    @classmethod
    def warmup50(
        cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """`linear` over the first half of the steps, then constant (Ho)."""
        return cls.from_betas(_warmup(T, 0.5, beta_start, beta_end))

    @classmethod
    def const(cls, T: int = 1000, beta_end: float = 0.02) -> NoiseSchedule:
        """The same β at every step (Ho)."""
        return cls.from_betas(_line(beta_end, beta_end, T))

    @classmethod
    def jsd(cls, T: int = 1000) -> NoiseSchedule:
        """β = 1/T, 1/(T-1), ..., 1 (Ho; Sohl-Dickstein et al. 2015): the last ᾱ is 0."""
        return cls.from_betas(1 / _line(float(T), 1.0, T))

    @classmethod
    def from_betas(
        cls, betas: Values, timesteps: Tensor | Sequence[int] | None = None
    ) -> NoiseSchedule:
        """Any betas in (0, 1], with the original timesteps of a respaced set if it is one."""
        steps = None if timesteps is None else _integers(timesteps)
        return cls(torch.as_tensor(betas, dtype=torch.float64), steps)  # type: ignore[arg-type]

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Values, timesteps: Tensor | Sequence[int] | None = None
    ) -> NoiseSchedule:
        """The betas whose products are the ᾱ given: β_t = 1 - ᾱ_t/ᾱ_{t-1}; ᾱ in [0, 1), falling."""
        alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64).cpu()
        return cls.from_betas(1 - alphas_cumprod / _shifted(alphas_cumprod), timesteps)

    @classmethod
    def named(cls, name: str, T: int = 1000, **settings: float) -> NoiseSchedule:
        """A schedule by name (`SCHEDULES`), with the settings that its constructor takes.

        Raises ValueError for an unknown name or setting; the message lists the choices.
        """
        if name not in SCHEDULES:
            raise ValueError(f"expected a schedule in {', '.join(SCHEDULES)}, got {name!r}")
        make = SCHEDULES[name]
        known = [p for p in inspect.signature(make).parameters if p != "T"]
        for setting in settings:
            if setting not in known:
                choices = ", ".join(known) or "no setting"
                raise ValueError(f"schedule {name!r} takes {choices}, got {setting!r}")
        return make(T, **settings)

    @classmethod
    def _from_alpha_bar(
        cls, T: int, alpha_bar: Callable[[Tensor], Tensor], max_beta: float
    ) -> NoiseSchedule:
        values = alpha_bar(_line(0.0, float(_positive(T)), T + 1) / T)
        return cls.from_betas((1 - values[1:] / values[:-1]).clamp(max=max_beta))

    # ---- changing one

    def respace(self, timesteps: Tensor | Sequence[int]) -> NoiseSchedule:
        """The shorter chain through the timesteps given, which keep their ᾱ: β_i = 1 - ᾱ_i/ᾱ_{i-1}.

        timesteps: original indices, each one of `self.timesteps`, in any order.
        Raises ValueError if one is missing there or comes twice.
        """
        chosen = _integers(timesteps).sort().values
        if len(chosen) == 0:
            raise ValueError("expected at least one timestep, got none")
        if (chosen.diff() == 0).any():
            raise ValueError(f"expected distinct timesteps, got {_brief(chosen)}")
        steps = torch.searchsorted(self.timesteps, chosen).clamp(max=len(self) - 1)
        missing = chosen[self.timesteps[steps] != chosen]
        if len(missing):
            have = _brief(self.timesteps)
            raise ValueError(f"expected timesteps out of {have}, got {_brief(missing)}")
        if len(chosen) == len(self):
            return self
        return self.from_alphas_cumprod(self.alphas_cumprod[steps], chosen)

    def rescale_zero_terminal_snr(self) -> NoiseSchedule:
        """√ᾱ shifted and scaled to end at 0 and start as before (Lin et al. 2023, algorithm 1).

        The network must then predict "sample" or "v_prediction": at ᾱ = 0 ε says nothing of x_0.
        Raises ValueError for a single step, which cannot start and end at different values.
        """
        root = self.sqrt_alphas_cumprod
        if len(self) < 2:
            raise ValueError("expected at least 2 steps to rescale to zero terminal SNR, got 1")
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return self.from_alphas_cumprod(root**2, self.timesteps)

    # ---- tables, each float64 [T]

    @cached_property
    def alphas(self) -> Tensor:
        """α_t = 1 - β_t."""
        return 1 - self.betas

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t, the share of the signal's variance left after step t."""
        return self.alphas.cumprod(0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """ᾱ_{t-1}; 1 at index 0."""
        return _shifted(self.alphas_cumprod)

    @cached_property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """√ᾱ_t: signal in x_t."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        """√(1-ᾱ_t): noise in x_t."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def log_one_minus_alphas_cumprod(self) -> Tensor:
        """log(1-ᾱ_t): log-variance of q(x_t | x_0)."""
        return (1 - self.alphas_cumprod).log()

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Tensor:
        """√(1/ᾱ_t); inf where ᾱ_t = 0."""
        return self.alphas_cumprod.reciprocal().sqrt()

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Tensor:
        """√(1/ᾱ_t - 1); inf where ᾱ_t = 0."""
        return (self.alphas_cumprod.reciprocal() - 1).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """ᾱ_t/(1-ᾱ_t)."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Tensor:
        """β̃_t; 0 at index 0, where x_0 is known."""
        return (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod) * self.betas

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """log β̃_t with the second entry at index 0 also (Ho, OpenAI), since log 0 is of no use.

        A chain of one step has no second entry; it takes log β_0, the upper bound.
        """
        if len(self) == 1:
            return self.betas.log()
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """√ᾱ_{t-1} β_t/(1-ᾱ_t): x_0's part of μ̃."""
        return self.alphas_cumprod_prev.sqrt() * self.betas / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """√α_t (1-ᾱ_{t-1})/(1-ᾱ_t): x_t's part of μ̃."""
        return self.alphas.sqrt() * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)


SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "openai_linear": NoiseSchedule.openai_linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "quad": NoiseSchedule.scaled_linear,
    "sqrt_linear": NoiseSchedule.linear,
    "sqrt": NoiseSchedule.sqrt,
    "cosine": NoiseSchedule.cosine,
    "squaredcos_cap_v2": NoiseSchedule.cosine,
    "laplace": NoiseSchedule.laplace,
    "sigmoid": NoiseSchedule.sigmoid,
    "sigmoid_alpha_bar": NoiseSchedule.sigmoid_alpha_bar,
    "warmup10": NoiseSchedule.warmup10,
    "warmup50": NoiseSchedule.warmup50,
    "const": NoiseSchedule.const,
    "jsd": NoiseSchedule.jsd,
}


def _positive(T: int) -> int:
    if T < 1:
        raise ValueError(f"expected at least 1 step, got T = {T}")
    return T


def _line(start: float, end: float, n: int) -> Tensor:
    """n float64 values in equal steps from start to end."""
    return torch.linspace(start, end, _positive(n), dtype=torch.float64)


def _warmup(T: int, share: float, beta_start: float, beta_end: float) -> Tensor:
    rising = int(_positive(T) * share)
    flat = torch.full((T - rising,), beta_end, dtype=torch.float64)
    return torch.cat([_line(beta_start, beta_end, rising), flat]) if rising else flat


def _shifted(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ one step earlier: 1, ᾱ_0, ..., ᾱ_{T-2}."""
    return torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])


def _integers(timesteps: Tensor | Sequence[int]) -> Tensor:
    """Timesteps as a one-dimensional int64 tensor on the CPU."""
    if not isinstance(timesteps, Tensor | Iterable):
        raise ValueError(
            f"expected a list of timesteps (fastddpm.timesteps makes some), got {timesteps!r}"
        )
    steps = torch.as_tensor(timesteps if isinstance(timesteps, Tensor) else list(timesteps))
    integer = not (steps.is_floating_point() or steps.is_complex() or steps.dtype == torch.bool)
    if steps.ndim != 1 or (steps.numel() and not integer):
        raise ValueError(
            f"expected a list of integer timesteps, got {steps.dtype} of shape {list(steps.shape)}"
        )
    return steps.detach().to("cpu", torch.int64)


def _brief(timesteps: Tensor) -> str:
    """The list, or its ends if it is long."""
    steps = timesteps.tolist()
    return str(steps) if len(steps) <= 8 else f"[{steps[0]}, {steps[1]}, ..., {steps[-1]}]"
