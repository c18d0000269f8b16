"""What a user may choose of the CPU engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastddpm.ops.program_abi import Packing

WEIGHTS = ("float32", "float16")
MEMORY = ("small", "speed")
# Where transformed weights are faster to read than to transform: 3 to 5 % with many images.
_TRANSFORMED_PIXELS, _TRANSFORMED_CHANNELS = 256, 256


@dataclass(frozen=True)
class CpuOptions:
    """Settings of the CPU engine.

    threads: at least 1; None: as many as torch uses (``torch.get_num_threads()``).
    weights: "float16" keeps the weights of convolutions in half precision: half the bytes, which
             bound a batch of one, for an error of about 2e-3 in the network's output.
    memory:  "speed" keeps those of 3x3 convolutions as they are multiplied, four times as many
             bytes, where that is faster: on maps of 16x16 and more, not enlarged, and up to 256
             channels, whose weights fit a core's cache; "small" transforms all where they are read.

    Raises ValueError for anything else, and for float16 weights with memory "speed".
    """

    threads: int | None = None
    weights: str = "float32"
    memory: str = "small"

    def __post_init__(self) -> None:
        threads = self.threads
        if threads is not None and (
            isinstance(threads, bool) or not isinstance(threads, int) or threads < 1
        ):
            raise ValueError(f"threads must be an integer of at least 1, or None; got {threads!r}")
        for name, choices in (("weights", WEIGHTS), ("memory", MEMORY)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if self.weights == "float16" and self.memory == "speed":
            raise ValueError(
                "memory='speed' keeps transformed weights, which have no float16 form: choose "
                "weights='float16' or memory='speed'"
            )

    @property
    def team(self) -> int:
        """How many threads run a program."""
        return self.threads or torch.get_num_threads()

    @property
    def packing(self) -> Packing:
        """Of a convolution's weights."""
        return Packing.FLOAT16 if self.weights == "float16" else Packing.FLOAT32

    def packing_3x3(self, channels: int, pixels: int, *, doubled: bool) -> Packing:
        """Of a 3x3 convolution's weights, for its input channels, the pixels of its map and whether
        that is doubled: large ones are convolved phase by phase then, by sums of these weights."""
        large = pixels >= _TRANSFORMED_PIXELS and not doubled
        transformed = large and channels <= _TRANSFORMED_CHANNELS
        return Packing.TRANSFORMED if self.memory == "speed" and transformed else self.packing
