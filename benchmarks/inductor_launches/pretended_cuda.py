"""An H100 as far as Inductor's lowering looks: device properties, a Triton driver, a device guard.

Only for tracing with fake tensors and generating code; anything that would run still fails. A
process that has pretended must not compile for a real GPU afterwards: Inductor remembers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.fx_passes import fuse_attention, pad_mm
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._triton import has_triton

CAPABILITY = (9, 0)
PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    warp_size=32,
    total_memory=80 << 30,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


class PretendedInterface(device_interface.CudaInterface):
    """What Inductor asks a CUDA device."""

    class Worker(device_interface.CudaInterface.Worker):
        get_device_properties = staticmethod(lambda device=None: PROPERTIES)
        current_device = staticmethod(lambda: 0)

    is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    get_device_properties = staticmethod(lambda device=None: PROPERTIES)  # type: ignore[assignment]
    get_compute_capability = staticmethod(lambda device=None: 10 * CAPABILITY[0] + CAPABILITY[1])
    is_bf16_supported = staticmethod(lambda including_emulation=False: True)
    is_triton_capable = staticmethod(lambda device=None: True)
    raise_if_triton_unavailable = staticmethod(lambda device=None: None)
    exchange_device = staticmethod(lambda device: 0)
    maybe_exchange_device = staticmethod(lambda device: 0)
    synchronize = staticmethod(lambda device=None: None)


class PretendedDriver:
    """What Triton asks its driver."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> type[PretendedInterface]:
        return PretendedInterface


@contextmanager
def pretended_cuda(
    *, flash_attention: bool = True, cudnn_layouts: bool = True
) -> Iterator[FakeTensorMode]:
    """Inside, fake tensors may be on "cuda" and Inductor lowers for it. Yields their mode.

    flash_attention: attention is one flash kernel, as CUDA chooses for bfloat16 and float16;
    False: the plain products and softmax that a torch without CUDA falls back to.
    cudnn_layouts: convolutions of channels_last maps give such maps, as cuDNN's do; False:
    contiguous ones, as a torch without CUDA has it.
    """
    from triton.runtime import driver

    # Registers the real interfaces, once; ours are put over them.
    device_interface.get_interface_for_device("cpu")
    interfaces = {"cuda": PretendedInterface, "cuda:0": PretendedInterface}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(device_interface.device_interfaces, interfaces))
        # Triton's own driver is made when it is first asked for, and fails without a GPU.
        stack.enter_context(mock.patch.object(driver, "_active", PretendedDriver()))
        chosen = (_LAYOUTS if cudnn_layouts else ()) + (_ATTENTION if flash_attention else ())
        for owner, name, value in (*_ANSWERS, *_UNGUARDED, *_UNUSED_PASSES, *chosen):
            stack.enter_context(mock.patch.object(owner, name, value))
        # Folding runs parts of the graph, and the cache and its workers look for a device.
        stack.enter_context(
            config.patch(
                joint_graph_constant_folding=False, fx_graph_cache=False, compile_threads=1
            )
        )
        _forget()
        try:
            yield FakeTensorMode(allow_non_fake_inputs=True)
        finally:
            _forget()


def _forget() -> None:
    """What torch remembers of layouts and of Triton holds for what is pretended now, no longer."""
    FakeTensorMode.cache_clear()
    has_triton.cache_clear()


def _memory_format(x: Tensor, weight: Tensor, backend: Any) -> torch.memory_format:
    """A convolution's output format as cuDNN has it; a build without CUDA says contiguous."""
    last = torch.channels_last
    fits = x.dim() == 4 and any(
        tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous()
        for tensor in (x, weight)
    )
    return last if fits else torch.contiguous_format


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, *unused: Any, **options: Any) -> Tensor:
    assert not any(unused) and not any(options.values()), "plain attention only"
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out


def _contiguous(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    done = x.is_contiguous(memory_format=memory_format)
    return x if done else x.clone(memory_format=memory_format)


def _index(x: Tensor, key: Any) -> Tensor:
    """x[key] for None, ..., slices, integers and index tensors, by dispatched ops alone."""
    keys = key if isinstance(key, tuple) else (key,)
    taken = sum(k is not None and k is not Ellipsis for k in keys)
    dim, picks = 0, {}
    for k in keys:
        if k is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif k is Ellipsis:
            dim += x.dim() - dim - taken
        elif isinstance(k, int):
            x, taken = x.select(dim, k), taken - 1
        elif isinstance(k, slice):
            x = torch.ops.aten.slice.Tensor(x, dim, k.start, k.stop, k.step or 1)
            dim, taken = dim + 1, taken - 1
        else:
            picks[dim] = k
            dim, taken = dim + 1, taken - 1
    if not picks:
        return x
    indices = [picks.get(d) for d in range(max(picks) + 1)]
    picked: Tensor = torch.ops.aten.index.Tensor(x, indices)
    return picked


_ANSWERS = (
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "current_device", lambda: 0),
    (torch.cuda, "get_device_properties", lambda device=None: PROPERTIES),
    (torch.cuda, "get_device_capability", lambda device=None: CAPABILITY),
)
_LAYOUTS = ((torch._C, "_conv_determine_backend_memory_format", _memory_format),)
_ATTENTION = ((torch.nn.functional, "scaled_dot_product_attention", _flash_attention),)
# Methods whose C++ binding sets the device first, which a torch without CUDA cannot.
_UNGUARDED = ((Tensor, "__getitem__", _index), (Tensor, "contiguous", _contiguous))
# They compile patterns on the device. Neither applies: attention is called by its own name, and
# every size here is a multiple of eight.
_UNUSED_PASSES = (
    (fuse_attention, "_sfdp_init", lambda device=None: None),
    (pad_mm, "_pad_mm_init", lambda device=None: None),
)
