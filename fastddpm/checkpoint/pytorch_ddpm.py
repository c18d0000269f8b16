"""Networks of w86763777/pytorch-ddpm: ckpt.pt, and flagfile.txt beside it.

It is Ho's network but for the time embedding, whose table [T, d] is stored and has
sin and cos in turns, with exponents k/(d/2); GroupNorm's ε of 1e-5; and padding on both sides.
Its sampler clips x̂_0 only after the mean is taken, so the chain itself is not clipped; and its
betas are float32 numbers, widened.

Source: w86763777/pytorch-ddpm, model.py, diffusion.py and main.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastddpm.checkpoint.conform import brief, conform
from fastddpm.checkpoint.limits import check_steps
from fastddpm.checkpoint.ports import PYTORCH_DDPM, read_network, size
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet
from fastddpm.unet.embedding import sinusoidal_embedding

FLAGFILE = "flagfile.txt"
TABLE = "time_embedding.timembedding.0.weight"
FIRST_LINEAR = "time_embedding.timembedding.1.weight"
PREDICTIONS = {"epsilon": "epsilon", "xstart": "sample", "xprev": "previous_sample"}
VARIANCES = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
# Angles up to T in float32: their rounding is T · 2^-24, times what libraries differ by.
_TABLE_ERROR = 1e-3


@dataclass(frozen=True)
class Flags:
    """main.py's flags that say what is computed; T None: the rows of the stored table."""

    T: int | None = None
    beta_1: float = 1e-4
    beta_T: float = 0.02
    mean_type: str = "epsilon"
    var_type: str = "fixedlarge"
    img_size: int | None = None
    dropout: float = 0.0


def read_pytorch_ddpm(
    state: Mapping[str, Tensor], path: Path, kwargs: Mapping[str, Any] | None
) -> tuple[UNet, GaussianDiffusion]:
    """The network and process of a state dict read from `path`.

    kwargs: flags of main.py; None: those of flagfile.txt beside the file, or its defaults.

    Raises:
        ValueError: the state dict does not fit itself or the flags.
    """
    source = "kwargs"
    if kwargs is None:
        source = str(path.parent / FLAGFILE)
        kwargs = _read_flagfile(path.parent / FLAGFILE)
    unknown = kwargs.keys() - {field.name for field in fields(Flags)}
    if unknown:
        raise ValueError(f"{source}: unknown flags {', '.join(sorted(unknown))}")
    flags = conform(Flags, kwargs, source)
    network = dict(state)
    steps = _check_table(network, str(path))
    del network[TABLE]
    if flags.T not in (None, steps):
        raise ValueError(f"{source}: T={flags.T} does not fit the {steps} rows of {TABLE}")
    # [sin, cos, sin, cos, ...] -> [sin, ..., cos, ...]
    rows = network[FIRST_LINEAR]
    network[FIRST_LINEAR] = torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1)
    unet = read_network(PYTORCH_DDPM, network, str(path), flags.img_size, flags.dropout)
    return unet, flagged_process(flags, steps, source)


def _check_table(state: Mapping[str, Tensor], source: str) -> int:
    """The number of rows of the stored time embedding, which must be the sinusoidal one."""
    try:
        size(state, FIRST_LINEAR, 1)
        steps, width = size(state, TABLE), size(state, TABLE, 1)
    except ValueError as error:
        raise ValueError(f"{source} ({PYTORCH_DDPM.name}): {error}") from error
    check_steps(steps, f"{source}: {TABLE}")
    found = state[TABLE].float()
    expected = embedding_table(steps, width) if width % 2 == 0 else found[:, :0]
    if expected.shape != found.shape or not torch.allclose(
        found, expected, rtol=0, atol=_TABLE_ERROR
    ):
        raise ValueError(f"{source}: expected the sinusoidal table of its code in {TABLE}")
    return steps


def embedding_table(steps: int, width: int) -> Tensor:
    """[steps, width], float32: sin and cos of every angle in turns."""
    return in_turns(sinusoidal_embedding(torch.arange(steps), width, freq_shift=0.0))


def in_turns(halves: Tensor) -> Tensor:
    """[N, width]: columns [sin, ..., cos, ...] -> [sin, cos, sin, cos, ...]"""
    return halves.reshape(len(halves), 2, -1).mT.flatten(1)


def _read_flagfile(path: Path) -> dict[str, Any]:
    """The flags that this module reads, out of lines --name=value."""
    if not path.is_file():
        return {}
    read: dict[str, Any] = {}
    types = {"T": int, "beta_1": float, "beta_T": float, "img_size": int, "dropout": float}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, is_set, value = line.strip().removeprefix("--").partition("=")
        if not is_set or name not in Flags.__dataclass_fields__:
            continue
        try:
            read[name] = types.get(name, str)(value)
        except ValueError:
            raise ValueError(f"{path}: {name}: expected a number, found {brief(value)}") from None
    return read


def flagged_process(flags: Flags, steps: int, source: str) -> GaussianDiffusion:
    """The process of these flags. Raises ValueError for a value that its code does not have."""
    for name, known in (("mean_type", PREDICTIONS), ("var_type", VARIANCES)):
        value = getattr(flags, name)
        if value not in known:
            raise ValueError(f"{source}: {name}: expected {', '.join(known)}, found {value!r}")
    if not (0 < flags.beta_1 <= 1 and 0 < flags.beta_T <= 1):
        found = f"{flags.beta_1} and {flags.beta_T}"
        raise ValueError(f"{source}: beta_1 and beta_T: expected numbers in (0, 1], found {found}")
    betas = torch.linspace(flags.beta_1, flags.beta_T, steps, dtype=torch.float32)
    return GaussianDiffusion(
        NoiseSchedule.from_betas(betas.double()),
        prediction=PREDICTIONS[flags.mean_type],
        variance=VARIANCES[flags.var_type],
        clip=None,
    )
