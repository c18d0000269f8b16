"""Networks of Ho's family: TensorFlow checkpoints, and pesser's and ermongroup's torch files.

    model/down_0/block_1/conv1/W                           the weights
    model/down_0/block_1/conv1/W/ExponentialMovingAverage  their average, which Ho's samples are of
    model/down_0/block_1/conv1/W/Adam, global_step, ...    not the network's

TensorFlow's layouts: convolutions [height, width, in, out], matrices ("dense", "nin") [in, out].

Source: hojonathanho/diffusion, nn.py and models/unet.py; pesser's scripts/convert.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastddpm.checkpoint.files import read_json
from fastddpm.checkpoint.ho_settings import ho_process, read_ho_settings
from fastddpm.checkpoint.ports import PESSER, read_network
from fastddpm.checkpoint.tensor_bundle import TensorBundle
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.unet import UNet

KWARGS = "kwargs.json"
AVERAGE = "/ExponentialMovingAverage"
_FIRST = "/temb/dense0/W"
_LEAVES = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
_NUMBERED = re.compile(r"(down|up|block|attn)_(\d+)")


def read_ho(
    state: Mapping[str, Tensor], path: Path, kwargs: Mapping[str, Any] | None
) -> tuple[UNet, GaussianDiffusion]:
    """The network and process of a state dict with pesser's names, read from `path`.

    kwargs: Ho's settings (`ho_settings`); None: those of kwargs.json beside the file, or none.

    Raises:
        ValueError: the state dict does not fit itself or the settings.
    """
    source = "kwargs"
    if kwargs is None:
        beside = path.parent / KWARGS
        source, kwargs = (str(beside), read_json(beside)) if beside.is_file() else (str(path), {})
    settings = read_ho_settings(kwargs, source)
    # ermongroup's "bayesian" networks carry a learned log-variance that its code never reads.
    network = {key: value for key, value in state.items() if key != "logvar"}
    unet = read_network(PESSER, network, str(path), settings.resolution, settings.dropout)
    return unet, ho_process(settings, unet.config, source)


def read_ho_bundle(prefix: Path, *, ema: bool) -> dict[str, Tensor]:
    """The weights of one of Ho's TensorFlow checkpoints, with pesser's names and torch's layout.

    ema: their averages, or the weights themselves.

    Raises:
        ValueError: the checkpoint is damaged, of another network, or has no averages.
    """
    bundle = TensorBundle(prefix)
    firsts = [name for name in bundle.entries if name.endswith(_FIRST)]
    if len(firsts) != 1:
        some = ", ".join(list(bundle.entries)[:3]) or "nothing"
        raise ValueError(
            f"{bundle.index}: expected one network of Ho's, with a variable model{_FIRST}, "
            f"found {len(firsts)} among {some}, ..."
        )
    scope = firsts[0].removesuffix(_FIRST) + "/"
    plain = [n for n in bundle.entries if n.startswith(scope) and n.rpartition("/")[2] in _LEAVES]
    suffix = AVERAGE if ema else ""
    names = {name + suffix: _torch_name(name.removeprefix(scope)) for name in plain}
    missing = [name for name in names if name not in bundle.entries]
    if missing:
        raise ValueError(
            f"{bundle.index}: {len(missing)} of {len(names)} weights have no average, the first "
            f"is {missing[0]}; ema=False takes the weights themselves"
        )
    return {names[name]: _torch_layout(value) for name, value in bundle.read(names).items()}


def _torch_name(name: str) -> str:
    """down_0/block_1/conv1/W -> down.0.block.1.conv1.weight; mid/block_1/... keep their number."""
    *modules, leaf = name.split("/")
    if modules[0] != "mid":
        modules = [_NUMBERED.sub(r"\1.\2", module) for module in modules]
    modules = [re.sub(r"^dense(\d)$", r"dense.\1", module) for module in modules]
    return ".".join((*modules, _LEAVES[leaf]))


def _torch_layout(value: Tensor) -> Tensor:
    if value.ndim == 4:
        return value.permute(3, 2, 0, 1)
    return value.T if value.ndim == 2 else value
