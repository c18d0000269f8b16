"""The Triton kernels of group_norm_silu in Triton's interpreter: numbers, gradients, determinism.

The bar everywhere: our error against float64 is at most twice torch's own in the same dtype.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from op_backends import needs_interpreter, same_bits
from test_ops_group_norm import formula, gradients, packed, random_seeds
from torch import Tensor

from fastddpm import ops
from fastddpm.kernels.group_norm_silu import tiling
from fastddpm.kernels.group_norm_silu.cases import CASES, Case
from fastddpm.kernels.group_norm_silu.tiling import (
    MOST_CHUNKS,
    MOST_WARPS,
    one_pass_tile,
    split_tile,
    without_padding,
)

pytestmark = [
    needs_interpreter,
    pytest.mark.usefixtures("fresh_memory_is_nan", "casts_round_to_nearest"),
]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES_2D = [case for case in CASES if len(case.shape) == 4]
BY_NAME = {case.name: case for case in CASES}
NONEMPTY = [case for case in CASES_2D if case.shape[0]]
# numpy adds a column's rows one after the other, a GPU as a tree: of n equal rows, a sum may be
# wrong by n instead of log n units. Half-precision results do not show it.
SLACK = {torch.float32: 2e-6, torch.bfloat16: 0.0, torch.float16: 0.0}

each_case = pytest.mark.parametrize("case", NONEMPTY, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def run(case: Case, tensors: dict[str, Tensor], backend: str = "triton") -> tuple[Tensor, Tensor]:
    return ops.group_norm_silu(**tensors, **case.settings(), backend=backend)


def assert_at_most_twice(
    name: str, ours: Tensor, torchs: Tensor, exact: Tensor, slack: float = 0.0
) -> None:
    assert ours.shape == exact.shape
    error, allowed = ((t.double() - exact).abs().max().item() for t in (ours, torchs))
    allowed = 2 * allowed + slack * exact.abs().max().item()
    assert error <= allowed, f"{name}: {error:.2e}, allowed {allowed:.2e}"


@each_dtype
@each_case
def test_twice_torchs_error_at_most(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    y, total = run(case, tensors)
    exact, exact_total = formula(case, tensors)
    torchs, torchs_total = run(case, packed(tensors), "reference")
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert_at_most_twice("y", y, torchs, exact, SLACK[dtype])
    if case.keep_total:
        assert_at_most_twice("total", total, torchs_total, exact_total)
    else:
        assert total.numel() == 0


@each_dtype
@each_case
def test_gradients_with_twice_torchs_error_at_most(case: Case, dtype: torch.dtype) -> None:
    tensors, seeds = case.tensors(dtype), random_seeds(case, dtype)
    exact = gradients(case, tensors, lambda t: formula(case, t), seeds)
    ours = gradients(case, tensors, lambda t: run(case, t), seeds)
    torchs = gradients(case, packed(tensors), lambda t: run(case, t, "reference"), seeds)
    for name, gradient in ours.items():
        assert gradient.dtype == tensors[name].dtype
        assert_at_most_twice(name, gradient, torchs[name], exact[name], SLACK[dtype])


def test_an_empty_batch() -> None:
    case = BY_NAME["empty_batch"]
    tensors = {name: t.requires_grad_() for name, t in case.tensors(torch.float32).items()}
    y, total = run(case, tensors)
    assert y.shape == total.shape == case.shape
    (y.sum() + total.sum()).backward()
    assert torch.equal(tensors["weight"].grad, torch.zeros(8))


@pytest.mark.parametrize("name", ["threes", "split_dropped", "mnist_28_joined"])
@pytest.mark.parametrize("change", [torch.float64, None])
def test_parameters_may_have_other_dtypes(name: str, change: torch.dtype | None) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(torch.bfloat16)
    small = itertools.cycle([torch.float16, torch.float32, torch.bfloat16])
    for key in ("weight", "bias", "row", "scale", "shift"):
        if key in tensors:
            tensors[key] = tensors[key].to(change or next(small))
    if change is not None:
        with pytest.raises(ValueError, match=r"weight is torch\.float64"):
            run(case, tensors)
        return
    y, _ = run(case, tensors)
    exact, _ = formula(case, tensors)
    torchs, _ = run(case, packed(tensors), "reference")
    assert y.dtype == torch.bfloat16
    assert_at_most_twice("y", y, torchs, exact)


@pytest.mark.parametrize("name", ["threes", "cifar_16_joined", "split_dropped"])
def test_what_is_not_a_number_stays_in_its_groups(name: str) -> None:
    case = BY_NAME[name]
    tensors = case.tensors(torch.float32)
    tensors["x"][-1, 13, 2, 2] = float("nan")
    bad = run(case, tensors)[0].isnan()
    size = case.channels // case.num_groups
    first = 13 // size * size
    assert bad[-1, first : first + size].all()
    assert bad.sum() == size * torch.Size(case.shape[2:]).numel()


@pytest.mark.parametrize("name", ["split_40", "split_tail", "split_dropped"])
def test_chunks_of_many_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on maps of very many tiles: a program merges the tiles of its chunk one by one."""
    monkeypatch.setattr(tiling, "MOST_CHUNKS", {1: 2, 2: 2})
    test_twice_torchs_error_at_most(BY_NAME[name], torch.float32)
    test_gradients_with_twice_torchs_error_at_most(BY_NAME[name], torch.float32)


@each_dtype
def test_silu_of_huge_values(dtype: torch.dtype) -> None:
    """σ underflows and overflows as torch's does: y is −0, tiny or z itself, never NaN."""
    x = torch.randn(1, 4, 4, 8).to(dtype).movedim(-1, 1)
    w, b = torch.ones(8) * 1e-3, torch.tensor([-3e4, -200.0, -90.0, -20.0, 0.0, 80.0, 3e4, 1e3])
    y, _ = ops.group_norm_silu(x, w, b, 2, 1e-6, backend="triton")
    z, _ = ops.group_norm_silu(x.double(), w.double(), b.double(), 2, 1e-6, activation=None)
    # The exponent −z·log₂e is rounded: of σ(−20), so far down, that is twenty units.
    rtol = (32 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    atol = max(1e-37, subnormal)
    torch.testing.assert_close(y.double(), z * torch.sigmoid(z), rtol=rtol, atol=atol)


class TestDeterminism:
    @pytest.mark.parametrize("name", ["mnist_7", "threes", "split_40"])
    def test_a_samples_bits_do_not_depend_on_its_batch(self, name: str) -> None:
        case = BY_NAME[name]._replace(shape=(3, *BY_NAME[name].shape[1:]), row="each")
        tensors, seeds = case.tensors(torch.bfloat16), random_seeds(case, torch.bfloat16)
        together = self._all(case, tensors, seeds)
        for i in range(3):
            alone = {
                key: t if key in ("weight", "bias") else t[i : i + 1] for key, t in tensors.items()
            }
            one = case._replace(shape=(1, *case.shape[1:]))
            own = self._all(one, alone, (seeds[0][i : i + 1], seeds[1][i : i + 1]))
            for key, value in own.items():
                if key not in ("weight", "bias"):
                    assert same_bits(value.contiguous(), together[key][i : i + 1].contiguous()), key

    @pytest.mark.parametrize("name", ["threes", "split_40"])
    def test_twice_the_same_bits(self, name: str) -> None:
        case = BY_NAME[name]
        tensors, seeds = case.tensors(torch.float32), random_seeds(case)
        first, second = (self._all(case, tensors, seeds) for _ in range(2))
        assert all(same_bits(first[key].contiguous(), second[key].contiguous()) for key in first)

    def _all(
        self, case: Case, tensors: dict[str, Tensor], seeds: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        y, total = run(case, tensors)
        found = gradients(case, tensors, lambda t: run(case, t), seeds)
        return {"y": y.detach(), "total": total.detach()[: len(y)], **found}


class TestNoMoreThanNeeded:
    """What nobody asked for is not computed."""

    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        from fastddpm.kernels.common.launch import Launch

        launched: list[Any] = []
        own = Launch.run
        monkeypatch.setattr(Launch, "run", lambda self: (launched.append(self), own(self)))
        return launched

    def test_total_is_written_where_it_is_wanted(self, launched: list[Any]) -> None:
        case = BY_NAME["mnist_7"]
        for keep in (True, False):
            run(case._replace(keep_total=keep), case.tensors(torch.float32))
            assert (launched.pop().arguments["total"] is not None) == keep

    def test_gradients_of_the_parameters_alone(self, launched: list[Any]) -> None:
        case = BY_NAME["mnist_7"]
        tensors = case.tensors(torch.float32)
        tensors["weight"].requires_grad_()
        run(case, tensors)[0].sum().backward()
        backward = launched[-1]
        assert backward.arguments["dx"] is None and len(backward.arguments["sums"]) == 2

    def test_one_pass_reads_once(self, launched: list[Any]) -> None:
        run(BY_NAME["cifar_16_joined"], BY_NAME["cifar_16_joined"].tensors(torch.bfloat16))
        assert [launch.name for launch in launched] == ["group_norm_silu_one_pass"]


WIDTHS = ((128, 32), (256, 32), (384, 32), (512, 32), (96, 8), (64, 8), (320, 32), (6, 1))


class TestTiling:
    @pytest.mark.parametrize("positions", [1, 16, 49, 64, 100, 784, 1024, 1025, 65536, 262144])
    def test_blocks_are_whole_groups_and_whole_vectors(self, positions: int) -> None:
        for widths, itemsize, live in itertools.product(WIDTHS, (2, 4), (1, 2)):
            self._check(positions, *widths, itemsize, live)

    def _check(self, positions: int, channels: int, groups: int, itemsize: int, live: int) -> None:
        size = channels // groups
        tile = one_pass_tile(positions, channels, groups, itemsize, live)
        if tile is None:
            tile, tiles, chunks = split_tile(positions, channels, groups, itemsize, live)
            assert 1 <= chunks <= MOST_CHUNKS[live]
            assert tile.positions * tiles * (chunks - 1) < positions
            assert tile.positions * tiles * chunks >= positions
        else:
            assert positions <= tile.positions <= 1024
        assert channels % tile.block == 0 and tile.block % size == 0
        assert tile.block == channels or tile.block * itemsize % 16 == 0
        assert tile.block <= tile.channels < 2 * tile.block
        assert tile.groups * size >= tile.block
        assert size % tile.fold == 0 and tile.fold * itemsize <= 16
        assert 1 <= tile.warps <= MOST_WARPS
        assert tile.positions * tile.channels <= tile.warps * 32 * 64

    def test_the_tiles_of_the_cifar_network(self) -> None:
        """Those that GPU code was read for: no padding, 64 values a thread, on small maps 32."""
        found = {
            (size, channels): one_pass_tile(size * size, channels, 32, 2)
            for size, channels in ((32, 128), (32, 256), (16, 256), (16, 512), (8, 512), (4, 512))
        }
        assert all(tile is not None for tile in found.values())
        shapes = {key: (t.positions, t.channels, t.warps) for key, t in found.items() if t}
        assert shapes == {
            (32, 128): (1024, 16, 8),
            (32, 256): (1024, 16, 8),
            (16, 256): (256, 32, 4),
            (16, 512): (256, 32, 4),
            (8, 512): (64, 64, 4),
            (4, 512): (16, 64, 1),
        }

    @pytest.mark.parametrize("channels", [192, 384, 768])
    @pytest.mark.parametrize("size", [8, 16, 64])
    def test_blocks_of_odd_groups_are_whole_sectors_where_they_fit(
        self, size: int, channels: int
    ) -> None:
        tile = one_pass_tile(size * size, channels, 32, 2)
        tile = tile or split_tile(size * size, channels, 32, 2)[0]
        assert (tile.block, tile.channels) == (48, 64)
        # 1024 positions of 48 channels would be more than 16 warps can hold: read twice.
        assert one_pass_tile(1024, channels, 32, 2) is None
        assert one_pass_tile(1024, channels, 32, 4) is not None

    def test_a_kernel_that_sums_nothing_cuts_groups_and_idles_no_lane(self) -> None:
        for channels, groups in (*WIDTHS, (192, 32), (768, 32), (960, 32), (24, 8), (40, 8)):
            size = channels // groups
            for positions, itemsize in itertools.product((1024, 4096, 65536), (2, 4)):
                tile, _, _ = split_tile(positions, channels, groups, itemsize)
                dense = without_padding(tile, channels, size, itemsize)
                assert channels % dense.block == 0
                assert dense == tile or dense.block == dense.channels >= 32 // itemsize
                assert dense.positions * dense.channels <= dense.warps * 32 * 64
                for first in range(0, channels, dense.block):
                    touched = (first + dense.block - 1) // size - first // size + 1
                    assert touched <= dense.groups
        tile, _, _ = split_tile(1024, 384, 32, 2)
        dense = without_padding(tile, 384, 12, 2)
        assert (tile.block, dense.block, dense.groups) == (48, 64, 8)
