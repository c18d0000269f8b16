"""group_norm_silu: the reference against the formula, the registered op against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.kernels.group_norm_silu.cases import CASES, Case

by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SMALL = (
    Case("plain", (2, 8, 4, 6), 4),
    Case("row", (2, 8, 4, 6), 4, "each", keep_total=False),
    Case("all", (2, 8, 4, 6), 3, "shared", True, joined=4, film=True),
    Case("all_dropped", (2, 8, 4, 6), 3, "each", True, 4, True, None, keep_total=False),
    Case("residual_dropped", (2, 8, 4, 6), 2, None, True, keep_total=False),
    Case("volume", (1, 4, 2, 3, 4), 2, "each"),
)
small = pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in torch's own layout, where its group_norm takes the variance in two passes.

    On channels_last maps torch's takes E[x²] − E[x]² on a CPU, and loses it far from zero.
    """
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def formula(case: Case, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """y and total in float64, straight from the definition."""
    t = {name: tensor.double() for name, tensor in t.items()}
    total = t["x"]
    spread = (..., *[None] * (total.dim() - 2))
    if "row" in t:
        total = total + t["row"].expand(total.shape[:2])[spread]
    if "residual" in t:
        total = total + t["residual"]
    if "skip" in t:
        total = torch.cat([total, t["skip"]], dim=1)
    size = case.channels // case.num_groups
    parts = []
    for group in total.split(size, dim=1):
        rest = list(range(1, total.dim()))
        mean = group.mean(rest, keepdim=True)
        variance = ((group - mean) ** 2).mean(rest, keepdim=True)
        parts.append((group - mean) / (variance + 1e-6).sqrt())
    y = torch.cat(parts, dim=1) * t["weight"][spread] + t["bias"][spread]
    if "scale" in t:
        y = y * (1 + t["scale"][spread]) + t["shift"][spread]
    return y / (1 + torch.exp(-y)) if case.activation == "silu" else y, total


def registered_arguments(case: Case, tensors: dict[str, Tensor], backend: str) -> tuple[Any, ...]:
    optional = [tensors.get(name) for name in ("row", "residual", "skip", "scale", "shift")]
    settings = (case.activation == "silu", case.keep_total and case.sums, backend)
    own = (tensors["x"], tensors["weight"], tensors["bias"], case.num_groups, 1e-6)
    return (*own, *optional, *settings)


def gradients(
    case: Case, tensors: dict[str, Tensor], op: Any, seeds: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Of (y·seed).sum() + (total·seed).sum(), for every tensor."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y, total = op(leaves)
    loss = (y * seeds[0].to(y.dtype)).sum()
    if case.keep_total and case.sums:
        loss = loss + (total * seeds[1].to(y.dtype)).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def random_seeds(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    batch, _, *spatial = case.shape
    shape = (batch, *spatial, case.channels)
    first, second = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return first.movedim(-1, 1), second.movedim(-1, 1)


class TestReference:
    @by_name
    def test_is_the_formula(self, case: Case) -> None:
        tensors = packed(case.tensors(torch.float32))
        y, total = ops.group_norm_silu(**tensors, **case.settings())
        exact, exact_total = formula(case, tensors)
        assert y.dtype == torch.float32 and y.shape == exact.shape
        # Near a thousand a float32 carries 6e-5, in units of the standard deviation.
        atol = 2e-5 + 1e-6 * abs(case.mean)
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=atol)
        if case.keep_total:
            torch.testing.assert_close(total.double(), exact_total, rtol=1e-6, atol=1e-6)
        else:
            assert total.numel() == 0

    def test_total_is_x_itself_where_nothing_is_added(self) -> None:
        tensors = SMALL[0].tensors(torch.float32)
        for backend in ("auto", "reference"):
            _, total = ops.group_norm_silu(**tensors, **SMALL[0].settings(), backend=backend)
            assert total is tensors["x"]


class TestRegisteredOp:
    @small
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.preserve_format])
    @pytest.mark.parametrize("grad", [False, True])
    def test_opcheck(self, case: Case, layout: torch.memory_format, grad: bool) -> None:
        tensors = {
            name: tensor.clone(memory_format=layout).requires_grad_(grad)
            for name, tensor in case.tensors(torch.float32).items()
        }
        arguments = registered_arguments(case, tensors, "reference")
        torch.library.opcheck(torch.ops.fastddpm.group_norm_silu.default, arguments)

    @pytest.mark.parametrize("needs", [(True, True), (True, False), (False, False)])
    def test_opcheck_of_the_derivative(self, needs: tuple[bool, bool]) -> None:
        case = SMALL[0]
        t = case.tensors(torch.float32)
        x, row = t["x"], torch.randn(2, 8)
        mean, rstd = torch.randn(2, 4), torch.rand(2, 4)
        arguments = (*(x, x + 1, x, row, t["weight"], t["bias"], None, None, mean, rstd), True)
        torch.library.opcheck(
            torch.ops.fastddpm.group_norm_silu_backward.default, (*arguments, *needs, "reference")
        )

    @small
    def test_derivative_is_that_of_the_formula(self, case: Case) -> None:
        tensors = {name: t.double() for name, t in case.tensors(torch.float32).items()}
        seeds = random_seeds(case)

        def registered(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.ops.fastddpm.group_norm_silu(*registered_arguments(case, t, "auto"))[:2]

        actual = gradients(case, tensors, registered, seeds)
        expected = gradients(case, tensors, lambda t: formula(case, t), seeds)
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-9, msg=name)

    @pytest.mark.parametrize("name", ["x", "row", "residual", "skip", "weight", "scale", "shift"])
    def test_each_gradient_alone(self, name: str) -> None:
        case = SMALL[2]
        tensors = {name: t.double() for name, t in case.tensors(torch.float32).items()}
        expected = gradients(case, tensors, lambda t: formula(case, t), random_seeds(case))
        tensors[name] = tensors[name].detach().clone().requires_grad_()
        y, total, *_ = torch.ops.fastddpm.group_norm_silu(
            *registered_arguments(case, tensors, "auto")
        )
        seeds = random_seeds(case)
        ((y * seeds[0]).sum() + (total * seeds[1]).sum()).backward()
        torch.testing.assert_close(tensors[name].grad, expected[name], rtol=1e-9, atol=1e-9)

    def test_gradient_through_total_alone(self) -> None:
        case = SMALL[2]
        tensors = case.tensors(torch.float32)
        tensors["skip"].requires_grad_()
        total = torch.ops.fastddpm.group_norm_silu(*registered_arguments(case, tensors, "auto"))[1]
        total.sum().backward()
        assert torch.equal(tensors["skip"].grad, torch.ones_like(tensors["skip"]))


class TestRefusals:
    def test_shapes_that_disagree(self) -> None:
        x, w = torch.zeros(2, 8, 4, 4), torch.ones(8)
        with pytest.raises(ValueError, match="multiple of num_groups=3"):
            ops.group_norm_silu(x, w, w, 3, 1e-6)
        with pytest.raises(ValueError, match=r"row must be \[2, 8\], got \[2, 4\]"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, row=torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"row must be \[8\], got \[4\]"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, row=torch.zeros(4))
        with pytest.raises(ValueError, match=r"weight must be \[12\], got \[8\]"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, skip=torch.zeros(2, 4, 4, 4))
        with pytest.raises(ValueError, match=r"residual must be \[2, 8, 4, 4\]"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, residual=torch.zeros(2, 8, 4, 5))
        with pytest.raises(ValueError, match="both or neither"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, scale=torch.zeros(2, 8))
        with pytest.raises(ValueError, match="activation must be 'silu' or None, got 'gelu'"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, activation="gelu")

    @pytest.mark.parametrize("backend", ["cpu", "cuda"])
    def test_backends_that_are_not_there(self, backend: str) -> None:
        x, w = torch.zeros(2, 8, 4, 4), torch.ones(8)
        with pytest.raises(ValueError, match="backend"):
            ops.group_norm_silu(x, w, w, 4, 1e-6, backend=backend)

    @pytest.mark.parametrize(
        ("x", "reason"),
        [
            (torch.zeros(2, 8, 4, 4), "x is not channels_last"),
            (torch.zeros(2, 8, 4), "x has 1 spatial dimensions"),
            (torch.zeros(2, 4, 4, 8).double().movedim(-1, 1), "x is torch.float64"),
            (torch.zeros(2, 0, 4, 8).movedim(-1, 1), "has no elements"),
            (torch.zeros(257)[1:].reshape(2, 4, 4, 8).movedim(-1, 1), "multiple of 16 bytes"),
        ],
    )
    def test_triton_says_why_not(self, x: Tensor, reason: str) -> None:
        w = torch.ones(8)
        with pytest.raises(ValueError, match=reason):
            ops.group_norm_silu(x, w, w, 4, 1e-6, backend="triton")

    def test_triton_takes_maps_of_one_dtype(self) -> None:
        case = SMALL[2]
        tensors = case.tensors(torch.float32)
        tensors["residual"] = tensors["residual"].bfloat16()
        with pytest.raises(ValueError, match=r"residual is torch.bfloat16, x is torch.float32"):
            ops.group_norm_silu(**tensors, **case.settings(), backend="triton")
