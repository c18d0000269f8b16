"""fastddpm_attention: every instruction set against the specification in float64."""

from __future__ import annotations

import pytest
import torch
from cpu_instructions import NO_NUMBER, as_buffer, as_map, empty_map, from_map, row, run, writes
from op_backends import needs_library, same_bits
from torch import Tensor

from fastddpm.engine.cpu.native import NativeProgram
from fastddpm.kernels.attention.cases import CASES, NETWORK_CASES, Case
from fastddpm.kernels.attention.reference import attention
from fastddpm.ops.program_abi import ALIGN, Attention

pytestmark = needs_library
every_case = pytest.mark.parametrize("case", CASES + NETWORK_CASES, ids=lambda case: case.name)
ROUNDING = 2.0**-24


class Call:
    """A case's instruction, for some samples of its batch."""

    def __init__(
        self, case: Case, tensors: dict[str, Tensor], samples: slice = slice(None)
    ) -> None:
        q, k, v = (tensors[name][samples] for name in "qkv")
        if case.together and case.channels % ALIGN == 0:
            self.maps = [as_map(torch.cat([q, k, v], dim=-1))]
            addresses = [self.maps[0].address + 4 * part * case.channels for part in range(3)]
        else:
            self.maps = [as_map(t) for t in (q, k, v)]
            addresses = [made.address for made in self.maps]
        stride = self.maps[0].stride
        self.y = empty_map(q.shape[0], case.channels, case.tokens)
        self.bias = as_buffer(tensors["bias"]) if case.bias else None
        self.row = as_buffer(tensors["row"][samples]) if case.row else None
        self.residual = as_map(tensors["residual"][samples]) if case.residual else None
        self.arguments = Attention(
            *addresses,
            *[stride] * 3,
            y=writes(
                self.y,
                bias=self.bias,
                row=None if self.row is None else row(self.row, case.channels),
                residual=self.residual,
                divisor=case.divisor,
            ),
            batch=q.shape[0],
            tokens=case.tokens,
            heads=case.heads,
            head_dim=case.head_dim,
            scale=case.scale,
        )

    def output(self, threads: int = 1) -> Tensor:
        run(self.arguments, threads=threads)
        return from_map(self.y)


def reference(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    return attention(**tensors, heads=case.heads, scale=case.scale, divisor=case.divisor)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@every_case
def test_against_float64(case: Case, isa: str) -> None:
    tensors = case.tensors()
    expected = reference(case, {name: t.double() for name, t in tensors.items()})
    torchs = relative_error(reference(case, tensors), expected)
    found = Call(case, tensors).output()
    assert relative_error(found, expected) <= 2 * max(torchs, ROUNDING)


@every_case
def test_samples_do_not_depend_on_their_batch_or_on_threads(case: Case, isa: str) -> None:
    case = case._replace(batch=3)
    tensors = case.tensors()
    together = Call(case, tensors).output()
    for threads in (1, 2, 3, 40):
        for samples in (slice(0, 1), slice(1, 3), slice(0, 3)):
            found = Call(case, tensors, samples).output(threads)
            assert same_bits(found, together[samples])


def test_statistics_are_refused(isa: str) -> None:
    """The kernel writes none, and whoever reads them would read what lay there before."""
    call = Call(CASES[0], CASES[0].tensors())
    NativeProgram([call.arguments], 1)
    call.arguments.y.statistics = call.y.address
    with pytest.raises(RuntimeError, match="fastddpm_program_create: invalid"):
        NativeProgram([call.arguments], 1)


def test_huge_scores(isa: str) -> None:
    """exp(s) alone would overflow, exp(s - max) does not."""
    case = Case("huge", 1, 40, 1, 32, spread=1e4)
    tensors = case.tensors()
    found = Call(case, tensors).output()
    expected = reference(case, {name: t.double() for name, t in tensors.items()})
    assert relative_error(found, expected) < 1e-3


def test_equal_scores_give_the_mean(isa: str) -> None:
    case = Case("equal", 1, 37, 1, 20)
    tensors = case.tensors()
    tensors["k"] = tensors["k"][:, :1].expand(1, 37, 20)
    found = Call(case, tensors).output()
    torch.testing.assert_close(found, tensors["v"].mean(1, keepdim=True).expand(1, 37, 20))


@pytest.mark.parametrize("bits", [0x7FC00000, NO_NUMBER, 0x7F800000])  # NaN, another, infinity
def test_a_query_that_is_not_finite_shows_in_its_row(bits: int, isa: str) -> None:
    case = Case("nan", 2, 37, 2, 20)
    tensors = case.tensors()
    tensors["q"].view(torch.int32)[1, 5, 23] = bits  # of the second head
    found = Call(case, tensors).output()
    expected = torch.zeros(2, 37, 40, dtype=torch.bool)
    expected[1, 5, 20:] = True
    assert torch.equal(found.isnan(), expected)


def test_a_key_or_a_value_that_is_nan_shows_in_every_row(isa: str) -> None:
    case = Case("nan", 2, 37, 2, 20)
    for name, channels in (("k", slice(20, 40)), ("v", slice(23, 24))):
        tensors = case.tensors()
        tensors[name][1, 36, 23] = torch.nan
        found = Call(case, tensors).output()
        expected = torch.zeros(2, 37, 40, dtype=torch.bool)
        expected[1, :, channels] = True
        assert torch.equal(found.isnan(), expected)


def test_the_output_may_be_the_residual(isa: str) -> None:
    case = Case("in_place", 2, 37, 2, 20, residual=True)
    tensors = case.tensors()
    apart = Call(case, tensors).output()
    call = Call(case, tensors)
    assert call.residual is not None
    call.y.pixels.copy_(call.residual.pixels)
    call.arguments.y.residual = call.y.address
    assert same_bits(call.output(2), apart)


def test_keys_may_be_what_the_residual_is(isa: str) -> None:
    """One head folded: q = x A, k = x, v = x B, with the residual x."""
    case = Case("folded", 2, 37, 1, 40, residual=True)
    tensors = case.tensors()
    tensors["k"] = tensors["residual"]
    apart = Call(case, tensors).output()
    call = Call(case, tensors)
    assert call.residual is not None
    call.arguments.k = call.residual.address
    assert same_bits(call.output(2), apart)
