"""conv3x3 on a GPU's tensor cores: registered op, Triton kernel, tiles, and the U-Net's use of it.

The kernel's PTX is executed by tests/test_ptx_conv3x3.py.
"""

from __future__ import annotations

import pytest
import torch
from op_backends import needs_interpreter
from torch import Tensor
from torch.nn import functional as F
from unet_networks import network

from fastddpm import ops
from fastddpm.kernels.conv3x3 import triton_kernel
from fastddpm.kernels.conv3x3.cases import ALONE, Case
from fastddpm.kernels.conv3x3.triton_kernel import TILES, Device, Tile, launch, tile_of
from fastddpm.ops.conv3x3 import CONV3X3, _not_worth_it
from fastddpm.unet.packed import PackedUNet

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan", "casts_round_to_nearest")

H100, A100, SMALL = Device(132, 232448), Device(108, 166912), Device(84, 101376)
B200 = Device(148, 232448, 10)
# What Triton's interpreter does in a second or two.
INTERPRETED = [case for case in ALONE if case.flops() < 1 << 26]


def tensors(case: Case, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    found = case.tensors(dtype)
    x, weight = (found[n].contiguous(memory_format=torch.channels_last) for n in ("x", "weight"))
    return x, weight


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", INTERPRETED, ids=lambda case: case.name)
def test_is_the_convolution_rounded_once(case: Case, dtype: torch.dtype) -> None:
    x, weight = tensors(case, dtype)
    found = ops.conv3x3(x, weight, backend="triton")
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), exact, rtol=eps, atol=4e-6)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)


@needs_interpreter
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.pixels}x{tile.outputs}")
def test_every_tile(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few pixels, which a device of one multiprocessor would have it for."""
    monkeypatch.setattr(triton_kernel, "TILES", (tile,))
    outputs = 2 * tile.outputs if tile.outputs < 128 else 128
    x, weight = tensors(Case("tile", (1, outputs, 13, 11), 64 * tile.halves))
    found = ops.conv3x3(x, weight, backend="triton")
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    eps = torch.finfo(torch.float16).eps
    torch.testing.assert_close(found.double(), exact, rtol=eps, atol=4e-6)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_reference_is_torch(backend: str) -> None:
    x, weight = (t.float() for t in tensors(ALONE[-4]))
    found = ops.conv3x3(x, weight, backend=backend)
    assert torch.equal(found, F.conv2d(x, weight, padding=1))


def test_opcheck() -> None:
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(3, 4, 3, 3)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=memory_format).requires_grad_(), weight.requires_grad_()
        torch.library.opcheck(CONV3X3, (*given, "auto"))


def test_gradients() -> None:
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.conv3x3, (x, weight))


@pytest.mark.parametrize(
    ("x", "weight"),
    [((2, 3, 4), (5, 3, 3, 3)), ((2, 3, 4, 4), (5, 4, 3, 3)), ((1, 3, 4, 4), (5, 3, 1, 1))],
)
def test_shapes_that_do_not_agree(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected x"):
        ops.conv3x3(torch.zeros(x), torch.zeros(weight))


def test_dtypes_that_do_not_agree() -> None:
    with pytest.raises(ValueError, match=r"of one dtype, got torch\.float32 and torch\.float16"):
        ops.conv3x3(torch.zeros(1, 3, 4, 4), torch.zeros(5, 3, 3, 3).half())


@needs_interpreter
def test_what_the_kernel_cannot_run() -> None:
    x, weight = tensors(ALONE[-4])
    wrong = {
        "float32": (x.float(), weight.float()),
        "channels_last": (x, weight.contiguous()),
        "x is not channels_last": (x.contiguous(), weight),
        "multiples of 32": (
            x[:, :24].contiguous(memory_format=torch.channels_last),
            weight[:, :24],
        ),
    }
    for why, given in wrong.items():
        with pytest.raises(ValueError, match=why):
            ops.conv3x3(*given, backend="triton")


class TestTiles:
    def test_those_that_were_measured(self) -> None:
        """H100: a wave of programs of the largest tile that fills the multiprocessors."""
        found = {
            (pixels, inputs, outputs): tile_of(pixels, inputs, outputs, 2, H100)
            for pixels, inputs, outputs in (
                *((1024, 128, 128), (1024, 256, 256), (256, 256, 256), (64, 512, 256)),
                *((4096, 128, 128), (16384, 128, 128), (4096, 256, 256), (65536, 128, 128)),
            )
        }
        shapes = {key: tile and (tile.pixels, tile.outputs) for key, tile in found.items()}
        assert shapes == {
            (1024, 128, 128): (32, 32),
            (1024, 256, 256): (64, 32),
            (256, 256, 256): (16, 32),
            (64, 512, 256): (16, 16),
            (4096, 128, 128): (64, 64),
            (16384, 128, 128): (128, 128),
            (4096, 256, 256): (64, 128),
            (65536, 128, 128): None,
        }

    @pytest.mark.parametrize("device", [H100, A100, SMALL, B200])
    @pytest.mark.parametrize("inputs", [32, 64, 96, 128, 192, 320, 512, 1024])
    @pytest.mark.parametrize("outputs", [16, 48, 64, 128, 320, 512])
    def test_cover_and_fit(
        self, monkeypatch: pytest.MonkeyPatch, device: Device, inputs: int, outputs: int
    ) -> None:
        monkeypatch.setattr(Device, "of", classmethod(lambda cls, x: device))
        for batch, size in ((1, 1), (1, 7), (1, 32), (4, 28), (16, 32), (64, 64)):
            x, weight, y = (
                torch.empty(shape, dtype=torch.bfloat16, device="meta")
                for shape in (
                    (batch, inputs, size, size),
                    (outputs, inputs, 3, 3),
                    (batch, outputs, size, size),
                )
            )
            made = launch(x, weight, y)
            c = made.constants
            assert c["TILE_N"] * made.grid[0] == outputs
            assert 0 <= c["TILE_P"] * made.grid[1] - batch * size * size < c["TILE_P"]
            assert inputs % (c["TILE_C"] * c["HALVES"]) == 0 and c["TILE_C"] >= 16
            step = (c["TILE_P"] + c["TILE_N"]) * c["TILE_C"] * c["HALVES"] * 2
            assert made.num_stages >= 2
            assert made.num_stages * step <= device.shared_bytes - 1024

    def test_tensor_memory_is_left_alone(self) -> None:
        for pixels, outputs in ((64, 256), (1024, 128), (4096, 256), (1 << 20, 512)):
            tile = tile_of(pixels, 256, outputs, 2, B200)
            assert tile is None or tile.pixels <= 32

    def test_many_images_are_left_to_torch(self) -> None:
        assert _not_worth_it(*tensors(Case("few", (16, 32, 4, 4), 32))) == []
        assert _not_worth_it(*tensors(Case("many", (17, 32, 4, 4), 32)))

    def test_every_tile_has_a_case(self) -> None:
        taken = set()
        for case in ALONE:
            batch, outputs, height, width = case.shape
            tile = tile_of(batch * height * width, case.channels, outputs, 2, H100)
            if tile is not None:
                taken.add((tile.pixels, tile.outputs))
        assert taken == {(tile.pixels, tile.outputs) for tile in TILES}


@needs_interpreter
@torch.no_grad()
def test_the_network_uses_it_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = network(block_out_channels=(32, 32))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 9])
    packed = PackedUNet(unet, "cpu", torch.float16, channels_last=True)
    ran: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        triton_kernel, "launch", lambda x, w, y: ran.append(tuple(w.shape)) or launch(x, w, y)
    )
    with ops.using("triton"):
        found = packed(x.half(), t)
    assert len(ran) >= 8 and set(ran) <= {(32, 32, 3, 3), (32, 64, 3, 3)}
    assert (found.float() - unet(x, t)).abs().max() < 2e-2
