"""What the fast schedulers have in common: the tables of their steps, made once and made anew when
an attribute that they depend on is another, as diffusers reads its attributes in every step.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastddpm.checkpoint.schedulers import read_betas
from fastddpm.integrations.visited import END, UNLISTED, Visited
from fastddpm.sampler.threshold import Threshold
from fastddpm.step_rows import form_of

COMPATIBILITIES = ("diffusers", "exact")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
# The attributes that a step depends on, as diffusers reads them in every step.
_FOLLOWED = (
    "_internal_dict",
    "timesteps",
    "num_inference_steps",
    "custom_timesteps",
    "alphas_cumprod",
    "final_alpha_cumprod",
)


def with_compatibility(init: Callable[..., None]) -> Callable[..., None]:
    """A scheduler's constructor with one keyword more, kept in its config like the others."""

    @functools.wraps(init)
    def extended(self: Any, *arguments: Any, **settings: Any) -> None:
        chosen = {k: settings.pop(k) for k in ("compatibility",) if k in settings}
        compatibility = chosen.get("compatibility", "diffusers")
        if compatibility not in COMPATIBILITIES:
            raise ValueError(
                f"expected a compatibility in {COMPATIBILITIES}, got {compatibility!r}"
            )
        init(self, *arguments, **settings)
        if not chosen:
            # As diffusers marks a default, so that another class made of this config leaves it out.
            defaults = [*self.config.get("_use_default_values", ()), "compatibility"]
            chosen = {"_use_default_values": defaults}
        self.register_to_config(**chosen | {"compatibility": compatibility})
        self._begin()

    signature = inspect.signature(init)
    keyword = inspect.Parameter(
        "compatibility", inspect.Parameter.KEYWORD_ONLY, default="diffusers", annotation=str
    )
    parameters = [*signature.parameters.values(), keyword]
    extended.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return extended


class FollowingTables:
    """What the two have in common: tables that follow the scheduler's attributes."""

    config: Any
    _internal_dict: Any
    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    timesteps: Tensor
    num_inference_steps: int | None
    custom_timesteps: bool

    def _begin(self) -> None:
        """Attributes in float64 if they are to be exact, and nothing made of them yet."""
        if self._exact:
            self.betas = read_betas(self.config, type(self).__name__)
            self.alphas = 1 - self.betas
            self.alphas_cumprod = self.alphas.cumprod(0)
        self._made: tuple[tuple[Any, ...], Any] = ((), None)
        self._levels_made: tuple[Tensor | None, dict[Any, tuple[Tensor, Tensor]]] = (None, {})
        self._visited = Visited(self.timesteps)

    @property
    def _exact(self) -> bool:
        return bool(self.config.compatibility == "exact")

    # ---- timesteps

    def _visit(self, device: str | torch.device | None, count: int | None) -> None:
        """Note the timesteps that were set while they are on the host, then move them.

        count: that were asked for, which an exact chain has; None for a list of the caller's.
        """
        if self._exact:
            self.timesteps = self.timesteps[:count]
        listed = self.timesteps.tolist()
        self.timesteps = self.timesteps.to(device)
        self._visited = Visited(self.timesteps, listed)

    def _visits(self) -> Visited:
        """The list of timesteps, also if somebody has given another."""
        if self._visited.timesteps is not self.timesteps:
            self._visited = Visited(self.timesteps)
        return self._visited

    def _current(self) -> Any:
        """What is made of the attributes as they are now."""
        key = tuple(map(self.__dict__.get, _FOLLOWED))
        made, value = self._made
        if not (made and all(map(operator.is_, made, key))):
            # Made in inference mode it could not be used where gradients are.
            with torch.inference_mode(False):
                value = self._make()
            self._made = (key, value)
        return value

    def _make(self) -> Any:
        raise NotImplementedError

    def _estimate(self) -> dict[str, Any]:
        """How x_0 is found and bounded."""
        config = self.config
        if config.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"prediction_type given as {config.prediction_type} must be one of `epsilon`, "
                f"`sample` or `v_prediction` for the {type(self).__name__}."
            )
        form = {"prediction": form_of(config.prediction_type)}
        if config.thresholding:
            settings = (config.dynamic_thresholding_ratio, config.sample_max_value)
            return form | {"threshold": Threshold(*settings, rounded_rank=not self._exact)}
        return form | {"clip": config.clip_sample_range if config.clip_sample else None}

    def _levels_at(self, after: list[int], final: Tensor) -> tuple[Tensor, Tensor]:
        """ᾱ [T], and ᾱ at the timestep that follows each: ``final`` at the end, NaN if unlisted.

        Raises ValueError for ε at ᾱ = 0, which says nothing of x_0, if tables are to be exact.
        """
        now, following = self.alphas_cumprod.cpu(), torch.tensor(after)
        then = now[following.clamp(min=0)]
        then = then.where(following != END, final.cpu().to(now.dtype))
        then = then.where(following != UNLISTED, torch.nan)
        blind = (now == 0) & (following != UNLISTED)
        if self._exact and self.config.prediction_type == "epsilon" and blind.any():
            raise ValueError(
                "expected prediction_type sample or v_prediction with zero terminal SNR: "
                f"at timestep {int(blind.nonzero()[0])} epsilon says nothing of x_0"
            )
        return now, then

    # ---- noise to a level

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ x_0 + √(1-ᾱ) noise, ᾱ of each sample's timestep."""
        signal, spread = self._levels(original_samples, timesteps)
        return signal * original_samples + spread * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = √ᾱ noise - √(1-ᾱ) x_0."""
        signal, spread = self._levels(sample, timesteps)
        return signal * noise - spread * sample

    def _levels(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        if self._levels_made[0] is not self.alphas_cumprod:
            self._levels_made = (self.alphas_cumprod, {})
        key, made = (like.device, like.dtype), self._levels_made[1]
        if key not in made:
            with torch.inference_mode(False):
                alphas_cumprod = self.alphas_cumprod.to(like.device)
                if not self._exact:
                    alphas_cumprod = alphas_cumprod.to(like.dtype)
                pair = alphas_cumprod**0.5, (1 - alphas_cumprod) ** 0.5
                made[key] = pair[0].to(like.dtype), pair[1].to(like.dtype)
        t = timesteps.to(like.device)
        signal, spread = (level[t].reshape(-1, *[1] * (like.ndim - 1)) for level in made[key])
        return signal, spread
