"""fused_multiply_add of plain torch against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from op_backends import same_bits
from torch import Tensor

from fastddpm.kernels.common.fused import fused_multiply_add


def rounded_once(a: float, b: float, c: float) -> float:
    """a b + c, rounded to the nearest float32, ties to even, by exact arithmetic."""
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(toward)) for toward in (-math.inf, math.inf)]

    def rank(value: np.float32) -> tuple[Fraction, int]:
        return abs(Fraction(float(value)) - exact), int(value.view(np.uint32)) & 1

    return float(min((near, *around), key=rank))


def random_bits(count: int, lowest: int, highest: int, generator: torch.Generator) -> Tensor:
    """float32 of every mantissa and sign with exponents in [lowest, highest]."""
    mantissa = torch.randint(0, 1 << 23, (count,), generator=generator)
    exponent = torch.randint(lowest + 127, highest + 128, (count,), generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator) << 31
    return (mantissa | exponent << 23 | sign).to(torch.int32).view(torch.float32)


def test_rounds_once() -> None:
    generator = torch.Generator().manual_seed(0)
    for lowest, highest in ((-3, 3), (-30, 30), (-75, -60)):
        a, b = (random_bits(3000, lowest, highest, generator) for _ in range(2))
        c = random_bits(3000, max(2 * lowest, -126), 2 * highest, generator)
        c[:1000] = -(a * b)[:1000]  # what is left is the product's own rounding
        own = fused_multiply_add(a, b, c).tolist()
        assert own == [
            rounded_once(*one) for one in zip(*(v.tolist() for v in (a, b, c)), strict=True)
        ]


def test_rounds_once_where_float64_rounds_to_a_tie() -> None:
    """a b is 2^-70 below half a last bit of c: float64 rounds the sum to the tie, and then up."""
    last = 2.0**-23
    a, b, c = torch.tensor([[1 + last], [(1 - last) * 2.0**-24], [1 + last]])
    assert (a.double() * b.double() + c.double()).float().item() == 1 + 2 * last
    assert fused_multiply_add(a, b, c).item() == 1 + last
    assert rounded_once(a.item(), b.item(), c.item()) == 1 + last


def test_infinity_and_nan() -> None:
    a = torch.tensor([math.inf, -math.inf, math.nan, 3e38, 1.0, math.inf])
    b = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 0.0])
    c = torch.tensor([0.0, 1.0, 0.0, 0.0, math.inf, 0.0])
    expected = torch.tensor([math.inf, -math.inf, math.nan, math.inf, math.inf, math.nan])
    own = fused_multiply_add(a, b, c)
    torch.testing.assert_close(own, expected, rtol=0, atol=0, equal_nan=True)


def test_signs_of_zero() -> None:
    a, c = torch.tensor([-0.0, -0.0, 0.0, 1.0]), torch.tensor([-0.0, 0.0, -0.0, -1.0])
    own = fused_multiply_add(a, torch.ones(4), c)
    assert same_bits(own, torch.tensor([-0.0, 0.0, 0.0, 0.0]))


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(50, generator=generator).requires_grad_() for _ in range(3))
    own = torch.autograd.grad(fused_multiply_add(a, b, c).sum(), (a, b, c))
    for gradient, expected in zip(own, (b, a, torch.ones(50)), strict=True):
        assert torch.equal(gradient, expected)
