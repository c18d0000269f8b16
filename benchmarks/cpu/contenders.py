"""Who is compared: our engine and torch's own here, what reads ONNX in onnx_rivals.py.

A contender is prepared for one network, batch and number of threads, and is then a call
(x [B, C, H, W], t [B]) -> output [B, C', H, W] in the caller's memory. Which one, and for what, is
told to a worker (turns.py) as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks.worker import name_of, named

OURS = "fastddpm"
# An output's relative error against float64, at most; the second for weights in half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2

# What torch imports when a step is recorded.
RECORDING = ("torch._dynamo",)

# The output is whatever numpy can read.
Call = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Setup:
    """folder: of the network (networks.write); exported files are kept there, too."""

    folder: Path
    batch: int
    threads: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Setup:
        return cls(**given | {"folder": Path(given["folder"])})


@dataclass(frozen=True)
class Contender:
    """One setting of one library.

    name:    the library; of its settings the fastest counts.
    make:    prepares it, as make(setup, **options), in any process: a function of a module's own.
             Raises ImportError where the library is not installed.
    modules: what ``make`` imports, for the memory that imports alone take.
    path:    a folder that comes first where its process imports from.
    """

    name: str
    setting: str
    make: Callable[..., Call]
    options: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    tolerance: float = TOLERANCE
    path: str = ""

    def call(self, setup: Setup) -> Call:
        """Prepares it, in this process."""
        return self.make(setup, **self.options)

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def label(self) -> str:
        """Name and setting."""
        return f"{self.name} ({self.setting})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"make": name_of(self.make)}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Contender:
        return cls(**given | {"make": named(given["make"])})


def accelerated(setup: Setup, **options: Any) -> Call:
    """Our CPU engine, called as a user of ``accelerate`` calls it."""
    unet, _ = fastddpm.from_pretrained(setup.folder)
    call: Call = fastddpm.accelerate(unet, "cpu", threads=setup.threads, **options)
    return call


def torch_eager(setup: Setup, source: str, name: str) -> Call:
    """diffusers' network or ours under plain torch, in the memory format of that name."""
    form = FORMS[name]
    network = networks_of(setup)[source]()
    network.to(memory_format=form)  # type: ignore[call-overload]

    @torch.inference_mode()
    def call(x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = network(x.contiguous(memory_format=form), t)
        return y

    return call


class Diffusers(torch.nn.Module):
    """diffusers' network as (x, t) -> tensor."""

    def __init__(self, folder: Path) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.unet = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.unet(x, t, return_dict=False)[0]
        return y


def networks_of(setup: Setup) -> dict[str, Callable[[], torch.nn.Module]]:
    """The same network as diffusers and as we write it, each made when it is called for."""
    return {
        "diffusers": lambda: Diffusers(setup.folder).eval(),
        OURS: lambda: fastddpm.from_pretrained(setup.folder)[0],
    }


MEMORIES = ("small", "speed")
SOURCES = ("diffusers", OURS)
FORMS = {"torch": torch.contiguous_format, "torch channels_last": torch.channels_last}


def all_contenders() -> list[Contender]:
    """Ours first, then every setting of every rival."""
    from benchmarks.cpu import onnx_rivals

    own = [
        Contender(OURS, f"memory={memory}", accelerated, {"memory": memory}, RECORDING)
        for memory in MEMORIES
    ]
    # Weights in half precision are never kept transformed (memory="speed").
    options = {"weights": "float16"}
    half = (accelerated, options, RECORDING, HALF_TOLERANCE)
    own.append(Contender(f"{OURS} float16", "weights=float16", *half))
    eager = [
        Contender(
            name,
            f"network of {source}",
            torch_eager,
            {"source": source, "name": name},
            ("diffusers",) if source == "diffusers" else (),
        )
        for name in FORMS
        for source in SOURCES
    ]
    return own + eager + onnx_rivals.contenders()
