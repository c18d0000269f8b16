"""The compiled code of conv3x3: run as three kinds of GPU run it, and what it takes of them.

The executor fails a kernel that reads outside of its tensors, misaligned, or what a copy has yet to
bring, leaves a result unwritten or races; here its numbers are held to torch's own error. On sm_100
larger tiles are products in tensor memory (tcgen05), which it does not know: their code is not run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from ptx import SMS, Fault, compile_all, execute_compiled, figures, resources
from ptx.calls import CONVOLUTIONS, DEVICES, Call
from ptx.launches import emulated, recorded
from torch.nn.functional import conv2d

from fastddpm import ops
from fastddpm.kernels.common.launch import Launch
from fastddpm.kernels.conv3x3 import triton_kernel
from fastddpm.kernels.conv3x3.triton_kernel import TILES, Device, Tile

SMALL = [tile for tile in TILES if tile.pixels < 64]
LARGE = [tile for tile in TILES if tile.pixels >= 64]


def named(tile: Tile) -> str:
    return f"{tile.pixels}x{tile.outputs}"


class Case(NamedTuple):
    """A tile of that many pixels and outputs, and a convolution whose pixels do not fill tiles."""

    tile: tuple[int, int]
    inputs: int
    outputs: int
    dtype: torch.dtype = torch.bfloat16
    shape: tuple[int, int, int] = (3, 7, 9)

    def __str__(self) -> str:
        kind = str(self.dtype).split(".")[1]
        return f"{self.tile}-{self.inputs}-{self.outputs}-{kind}"


# With one step of a tap and with three, and two sums side by side where 64 divides the inputs.
CASES = (
    Case((16, 16), 32, 48),
    Case((16, 16), 256, 48, torch.float16),
    Case((16, 16), 32, 16, shape=(1, 1, 1)),
    Case((16, 32), 96, 32, torch.float16),
    Case((16, 32), 192, 64),
    Case((32, 32), 96, 64),
)


def use(monkeypatch: pytest.MonkeyPatch, tile: Tile, sm: int) -> None:
    """Let every convolution have this tile, and be for this GPU, which takes any."""
    multiprocessors, shared_bytes, _ = DEVICES[sm]
    monkeypatch.setattr(triton_kernel, "TILES", (tile,))
    monkeypatch.setattr(Device, "of", lambda x: Device(multiprocessors, shared_bytes))


def factors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """x and weight; an output has a variance of about 1."""
    torch.manual_seed(0)
    batch, height, width = case.shape
    x = torch.randn(batch, height, width, case.inputs)
    weight = torch.randn(case.outputs, 3, 3, case.inputs) / (9 * case.inputs) ** 0.5
    return x.to(case.dtype).movedim(-1, 1), weight.to(case.dtype).movedim(-1, 1)


def check(case: Case, sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most twice torch's own error, and what sums in float32 lose by the way.

    In what order tensor cores sum is not specified: errors of so many sums add up as a random walk.
    """
    (tile,) = [t for t in TILES if (t.pixels, t.outputs) == case.tile]
    use(monkeypatch, tile, sm)
    x, weight = factors(case)
    with emulated(sm) as runs:
        y = ops.conv3x3(x, weight, backend="triton")
    (run,) = runs
    products = "wgmma" if sm == 90 and tile in LARGE else "mma"
    assert run.instructions[products] and run.instructions["cp"]
    exact = conv2d(x.double(), weight.double(), padding=1)
    sizes = conv2d(x.double().abs(), weight.double().abs(), padding=1)
    torchs = (conv2d(x, weight, padding=1) - exact).abs().max()
    sums = 2**-24 * (9 * case.inputs) ** 0.5 * sizes
    assert y.dtype == case.dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert ((y - exact).abs() <= 2 * torchs + sums).all()


@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_tiles(case: Case, sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, sm, monkeypatch)


WITHOUT_TENSOR_MEMORY = (80, 90)


@pytest.mark.parametrize("sm", WITHOUT_TENSOR_MEMORY)
def test_a_large_tile(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Case((64, 32), 96, 32), sm, monkeypatch)


WAITS = re.compile(
    r"(bar\.sync|cp\.async\.wait_group|fence\.proxy\.async|wgmma\.(fence|commit|wait))[^;]*;"
)


@pytest.mark.parametrize(("tile", "sm"), [*((SMALL[-1], sm) for sm in SMS), (LARGE[-1], 90)])
def test_every_wait_and_barrier_of_the_pipeline_is_needed(
    tile: Tile, sm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's code is right; without one of them after the first wait, the executor fails it."""
    use(monkeypatch, tile, sm)
    with recorded() as launches:
        ops.conv3x3(*factors(Case((0, 0), 32, 32, shape=(1, 3, 5))), backend="triton")
    (code,) = compile_all(launches, [sm])
    first = code.ptx.index("cp.async.wait_group")
    needed = list(WAITS.finditer(code.ptx, first))
    assert len(needed) >= (10 if tile in LARGE else 6)
    execute_compiled(code, launches[0])
    for one in needed:
        ptx = code.ptx[: one.start()] + code.ptx[one.end() :]
        with pytest.raises(Fault, match=r"race|product|fence"):
            execute_compiled(dataclasses.replace(code, ptx=ptx), launches[0])


every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
every_depth = pytest.mark.parametrize("inputs", [32, 64, 96, 192, 256, 512])


@pytest.mark.nightly
@every_dtype
@every_depth
@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("tile", SMALL, ids=named)
def test_every_small_tile(
    tile: Tile, sm: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Case((tile.pixels, tile.outputs), inputs, 3 * tile.outputs, dtype), sm, monkeypatch)


@pytest.mark.nightly
@every_dtype
@every_depth
@pytest.mark.parametrize("sm", WITHOUT_TENSOR_MEMORY)
@pytest.mark.parametrize("tile", LARGE, ids=named)
def test_every_large_tile(
    tile: Tile, sm: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(Case((tile.pixels, tile.outputs), inputs, tile.outputs, dtype), sm, monkeypatch)


# ---- what the machine code takes

MOST_REGISTERS = 255
COPIES = re.compile(r"cp\.async\.\w+\.shared\.global\s*\[[^]]*\],\s*\[[^]]*\],\s*(\w+)")


@pytest.fixture(scope="module", params=SMS)
def code(request: pytest.FixtureRequest) -> Iterator[tuple[int, list[Launch]]]:
    """Every tile's launch for a GPU, with as many channels as any tile takes; compiled at once."""
    x, weight = factors(Case((0, 0), 512, 128, shape=(1, 8, 8)))
    y = torch.empty(1, 8, 8, len(weight), dtype=x.dtype).movedim(-1, 1)
    launches = []
    for tile in TILES:
        with pytest.MonkeyPatch.context() as patch:
            use(patch, tile, request.param)
            launches.append(triton_kernel.launch(x, weight, y))
    compile_all(launches, [request.param])
    yield request.param, launches


@pytest.mark.parametrize("index", range(len(TILES)), ids=[named(tile) for tile in TILES])
def test_bars(code: tuple[int, list[Launch]], index: int) -> None:
    sm, launches = code
    (compiled,) = compile_all([launches[index]], [sm])
    taken = resources(compiled)
    assert (taken.stack, taken.spills) == (0, 0)
    assert taken.registers <= MOST_REGISTERS
    assert taken.shared <= DEVICES[sm][1]
    # Every load is a copy of 16 bytes; every store as much as a thread has, up to 16 bytes.
    assert {int(size, 0) for size in COPIES.findall(compiled.ptx)} == {16}
    assert "ld.global" not in compiled.ptx and not taken.loads
    tile = TILES[index]
    held = tile.pixels * tile.outputs // (32 * tile.warps)
    assert set(taken.stores) == {min(128, 16 * held)}
    assert launches[index].constants["TILE_P"] == tile.pixels
    assert launches[index].constants["TILE_N"] == tile.outputs


def check_bars(call: Call, sm: int) -> None:
    launches, work = call.launches(sm)
    (kernel,) = figures(launches, sm, work.elements)
    assert (kernel.stack, kernel.spills) == (0, 0)
    assert kernel.registers <= MOST_REGISTERS and kernel.shared <= DEVICES[sm][1]
    assert kernel.load_bits == (128,)
    # A tile of pixels and a tile of outputs share no factor: each is read by so many programs.
    outputs, pixels = launches[0].grid
    x, weight, y = (tensor.nbytes for tensor in work.tensors)
    assert kernel.bytes_moved <= outputs * 3 * x + pixels * weight + y
    assert kernel.bytes_moved >= outputs * x + pixels * weight + y


@pytest.mark.parametrize("sm", SMS)
def test_bars_of_a_network(sm: int) -> None:
    check_bars(CONVOLUTIONS[-1], sm)


@pytest.mark.nightly
@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("call", CONVOLUTIONS, ids=lambda call: call.name)
def test_bars_of_every_layer(call: Call, sm: int) -> None:
    check_bars(call, sm)
