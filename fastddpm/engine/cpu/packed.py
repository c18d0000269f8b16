"""The weights as the kernels read them, shared by all programs of an engine.

What is packed is a copy: torch's count of the writes to the original tells when it is stale.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fastddpm.engine.cpu.memory import Blocks
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.ops.library import cpu_library
from fastddpm.ops.program_abi import Packing

# From the tensors of a layer, one float32 weight [out, in, k, k] or vector.
Build = Callable[..., Tensor]


@dataclass(eq=False)
class Packed:
    """One layer's packed weights, or a vector that is computed from several.

    outputs: channels of its output, or numbers of the vector.
    """

    kind: str
    sources: tuple[Tensor, ...]
    build: Build
    packing: Packing
    outputs: int
    memory: Tensor
    marks: tuple[Hashable, ...] | None = None

    @property
    def address(self) -> int:
        return self.memory.data_ptr()


class PackedWeights:
    """All that the programs of one engine have packed, for the instruction set that was in use when
    this was made. A layer's goes with the last of them.

    options: of the engine.
    lock: held by who packs, and by who runs a program that reads what is packed.
    """

    def __init__(self, options: CpuOptions) -> None:
        self._isa = cpu_library().isa
        self.options = options
        self.lock = threading.RLock()
        self._blocks = Blocks()
        self._kept: WeakValueDictionary[Hashable, Packed] = WeakValueDictionary()

    @property
    def bytes(self) -> int:
        """Bytes of all that is packed now."""
        return sum(packed.memory.numel() for packed in self._kept.values())

    def of(
        self, kind: str, sources: Sequence[Tensor], build: Build, packing: Packing | None = None
    ) -> Packed:
        """The packed form of build(*sources): of a weight [out, in, k, k] for the instruction
        "conv3x3" or "convolution", or of a "vector", which stays as it is.

        packing: None: that of the options.
        """
        sources = tuple(sources)
        places = tuple(map(_place, sources))
        packing = self.options.packing if packing is None else packing
        key = kind, build, packing, places
        with self.lock:
            packed = self._kept.get(key)
            # Where one tensor has moved away, another may have come to lie.
            if packed is None or tuple(map(_place, packed.sources)) != places:
                made = _built(build, sources)
                memory = self._blocks.take(self._bytes(kind, made, packing))
                packed = self._kept[key] = Packed(kind, sources, build, packing, len(made), memory)
            self.refresh([packed])
        return packed

    def refresh(self, used: Sequence[Packed], *, reread: bool = False) -> None:
        """Pack again those whose weights were written since.

        reread: all of them; torch does not count the writes through ``parameter.data``.
        """
        with self.lock:
            for packed in used:
                marks = tuple(_mark(source) for source in packed.sources)
                if reread or marks != packed.marks:
                    self._pack(packed)
                    packed.marks = marks

    def _bytes(self, kind: str, made: Tensor, packing: Packing) -> int:
        if kind == "vector":
            return made.numel() * made.element_size()
        count = getattr(cpu_library().handle, f"fastddpm_packed_{kind}_bytes")
        return int(count(*_sizes(kind, made), packing))

    def _pack(self, packed: Packed) -> None:
        made, kind = _built(packed.build, packed.sources), packed.kind
        if kind == "vector":
            ctypes.memmove(packed.address, made.data_ptr(), packed.memory.numel())
            return
        if cpu_library().isa != self._isa:
            raise RuntimeError(
                f"this engine has packed weights for {self._isa}, but the library now uses "
                f"{cpu_library().isa}: make another"
            )
        sizes = (*_sizes(kind, made), packed.packing)
        cpu_library().call(f"fastddpm_pack_{kind}", packed.address, made.data_ptr(), *sizes)


def _sizes(kind: str, weight: Tensor) -> tuple[int, ...]:
    return tuple(weight.shape[:2] if kind == "conv3x3" else weight.shape[:3])


@torch.no_grad()
def _built(build: Build, sources: Sequence[Tensor]) -> Tensor:
    return build(*(source.detach() for source in sources)).to(torch.float32).contiguous()


def _place(tensor: Tensor) -> Hashable:
    """What tells a tensor's memory from another's, while both live."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _mark(tensor: Tensor) -> Hashable:
    """What changes when a tensor is written; torch counts that but in inference mode."""
    return _place(tensor), None if tensor.is_inference() else tensor._version
