"""What the emulated device sees of the ops that run by themselves: names, memory, waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from capture import forbidden
from capture.recording import storage_of, tensors_of

if TYPE_CHECKING:
    from capture.device import Device

# Reads that torch does not dispatch for a tensor on the CPU.
HOST_READS = ("tolist", "numpy", "cpu", "__array__")


class SyncMode(TorchDispatchMode):
    """torch.cuda.set_sync_debug_mode("error")."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        why = forbidden.waits(func, args)
        if why is not None:
            raise_sync(f"{func}: {why}")
        return func(*args, **(kwargs or {}))


class DeviceMode(TorchDispatchMode):
    """Sees every op outside of replays and compiled steps: notes it, and the memory it makes."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._device.noting:
            self._device.note(func._schema.name)
        outputs = func(*args, **(kwargs or {}))
        known = {storage_of(tensor)._cdata for tensor in tensors_of((args, kwargs))}
        for storage in map(storage_of, tensors_of(outputs)):
            if storage._cdata not in known:
                self._device.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return outputs


def raise_sync(what: str) -> None:
    raise RuntimeError(f"called a synchronizing CUDA operation ({what})")


@contextmanager
def no_host_reads(refuse: Callable[[str], None]) -> Iterator[None]:
    """Tensor.tolist and its kin call ``refuse`` instead."""
    with ExitStack() as patches:
        for name in HOST_READS:
            patches.enter_context(
                mock.patch.object(
                    torch.Tensor, name, lambda *_, name=name: refuse(f"Tensor.{name}")
                )
            )
        yield
