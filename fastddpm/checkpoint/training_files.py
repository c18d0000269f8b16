"""What training scripts save in one torch file, and which of its parts is the network.

    pesser                the state dict alone
    ermongroup            [network, optimizer, epoch, step, averages]
    pytorch-ddpm          {"net_model", "ema_model", "optim", "sched", "step", "x_T"}
    lucidrains            {"model", "ema", "opt", "step", "scaler", "version"}
    others                {"state_dict" or "model_state_dict", ...}

Names may carry what the network was wrapped in: "module." (DataParallel), "_orig_mod."
(torch.compile), "model." and "ema_model." (lucidrains, whose diffusion holds the network and its
own tables beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

# (weights, their averages) by the keys of a dict.
PARTS = (
    ("net_model", "ema_model"),
    ("model", "ema"),
    ("state_dict", "ema_state_dict"),
    ("model_state_dict", "ema_state_dict"),
)
# The places of the same in ermongroup's list.
NETWORK, AVERAGES = 0, 4
_WRAPPERS = ("module.", "_orig_mod.")


class Contents(NamedTuple):
    """A network's state dict, and the tables of the diffusion that was saved around it."""

    network: dict[str, Tensor]
    process: dict[str, Tensor]


def unpack(value: Any, source: str, *, ema: bool) -> Contents:
    """The network in what a torch file holds.

    ema: its averages where there are any, else the weights; False: the weights.

    Raises:
        ValueError: nothing in it is a state dict, or the weights asked for are not there.
    """
    weights, averages = _parts(value, source)
    state = averages if ema and averages is not None else weights
    if state is None:
        raise ValueError(f"{source}: expected weights beside their averages, found averages only")
    if any(key.startswith("ema_model.") for key in state):
        # ema_pytorch keeps a copy of the weights, and its own counters, beside the averages.
        state = {
            key.removeprefix("ema_model."): value
            for key, value in state.items()
            if key.startswith("ema_model.")
        }
    return _unwrapped(state)


def _parts(value: Any, source: str) -> tuple[dict[str, Tensor] | None, dict[str, Tensor] | None]:
    """(weights, averages), of which one may be missing."""
    if is_state_dict(value):
        return dict(value), None
    keys: tuple[Any, Any] | None = None
    if isinstance(value, (list, tuple)) and value:
        keys, value = (NETWORK, AVERAGES), dict(enumerate(value))
    elif isinstance(value, Mapping):
        keys = next((pair for pair in PARTS if pair[0] in value or pair[1] in value), None)
    if keys is None:
        raise ValueError(f"{source}: {_what_came(value)}")
    found = [value.get(key) for key in keys]
    for key, part in zip(keys, found, strict=True):
        if part is not None and not is_state_dict(part):
            raise ValueError(
                f"{source}: expected a state dict of tensors under {key!r}, found "
                f"{type(part).__name__}"
            )
    if found == [None, None]:
        raise ValueError(f"{source}: {_what_came(value)}")
    weights, averages = (None if part is None else dict(part) for part in found)
    return weights, averages


def is_state_dict(value: Any) -> bool:
    """Whether `value` is a non-empty mapping of names to tensors."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _what_came(value: Any) -> str:
    known = ", ".join(dict.fromkeys(pair[0] for pair in PARTS))
    expected = f"expected a state dict, or one under {known}, or ermongroup's list"
    kind = type(value).__name__
    if not isinstance(value, Mapping) or not value:
        is_empty = isinstance(value, (list, tuple, Mapping)) and not value
        return f"{expected}; found {'an empty ' if is_empty else ''}{kind}"
    names = ", ".join(str(key)[:40] for key in list(value)[:5])
    return f"{expected}; found a dict with other values under {names}"


def _unwrapped(state: dict[str, Tensor]) -> Contents:
    for prefix in (*_WRAPPERS, *_WRAPPERS):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    inner = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    if not inner:
        return Contents(state, {})
    outer = {key: value for key, value in state.items() if not key.startswith("model.")}
    if any("." in key for key in outer):
        # Not a wrapper's own tables: a network with a module that is called "model".
        return Contents(state, {})
    return Contents(_unwrapped(inner).network, outer)
