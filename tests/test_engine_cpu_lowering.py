"""From a step to instructions: what they compute, shown by the interpreter in float64, and how few
they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from cpu_program.interpreter import Memory, run
from cpu_program.steps import CPU, NETWORKS, call_step, error, exactly, lowered, needs_library
from torch import Tensor
from torch.nn import functional as F
from unet_networks import VARIANTS, conditions, images, network

from fastddpm import GaussianDiffusion, NoiseSchedule, ops
from fastddpm.engine import CannotPrepare
from fastddpm.engine.cpu.lowering import Lowered
from fastddpm.ops.program_abi import Conv3x3, Convolution, Pointwise, Resample
from fastddpm.sampler.reverse_step import ReverseStep, StepTables
from fastddpm.sampler.unet_network import PlainNetwork
from fastddpm.unet import UNet

pytestmark = needs_library


def off(unet: UNet, x: Tensor, t: Tensor, labels: Tensor | None) -> float:
    """How far the interpreter of its program, in float64, is from the network on the same
    embedding of times and labels."""
    state, step = x.clone(), call_step(unet, x, t, labels)
    program = lowered(step, state)
    memory = Memory(program, state, step.output)
    run(program, memory, 0)
    got = memory.at(step.output.data_ptr(), step.output.shape, step.output.stride())
    return error(got, exactly(unet, x, t, labels, step._embedding))


def kinds(program: Lowered) -> Counter[str]:
    return Counter(type(arguments).__name__ for arguments in program.code)


class TestNumbers:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_program_computes_what_the_network_does(self, name: str) -> None:
        unet = network(**NETWORKS[name])
        x, (t, labels) = images(unet), conditions(unet)
        assert off(unet, x, t, labels) < 1e-13

    @pytest.mark.parametrize("name", ["ho", "openai", "pool"])
    def test_maps_need_not_be_square(self, name: str) -> None:
        unet, t = network(**VARIANTS[name]), torch.tensor([3, 700, 11])
        x = torch.randn(3, 3, 8, 12)
        assert off(unet, x, t, None) < 1e-13

    @pytest.mark.parametrize("name", ["ho", "openai", "conditional"])
    def test_weights_may_be_channels_last(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        given = (images(unet), *conditions(unet))
        plain = kinds(lowered(call_step(unet, *given), images(unet)))
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert kinds(lowered(call_step(unet, *given), images(unet))) == plain
        assert off(unet, *given) < 1e-13

    @pytest.mark.parametrize("variance", ["fixed_large", "learned", "learned_range"])
    @pytest.mark.parametrize("name", ["ho", "conditional", "fourier", "gray_centred"])
    def test_a_step_of_a_chain(self, name: str, variance: str) -> None:
        outputs = 1 if name == "gray_centred" else 3
        doubled = outputs * (1 if variance == "fixed_large" else 2)
        unet = network(**VARIANTS[name] | {"out_channels": doubled})
        diffusion = GaussianDiffusion(NoiseSchedule.linear(4, 0.1, 0.3), variance=variance)
        ours, theirs = (chain_step(unet, diffusion) for _ in range(2))
        program = lowered(ours, state := images(unet), 4)
        memory = Memory(program, state)
        x = state.clone()
        for i in (3, 2, 1, 0):
            run(program, memory, i)
            memory.write_back()
            with torch.no_grad():
                theirs(x, torch.tensor([i]))
            close = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": name == "fourier" and i == 0}
            torch.testing.assert_close(state, x, **close)
            torch.testing.assert_close(ours.x_0, theirs.x_0, **close)
        assert "Step" in kinds(program)


@torch.no_grad()
def chain_step(unet: UNet, diffusion: GaussianDiffusion) -> ReverseStep:
    x, labels = images(unet), conditions(unet)[1]
    tables = StepTables.of(diffusion, CPU)
    draw = ops.Draw.of(5, torch.tensor([4, 9]), tables.timesteps)
    plain = PlainNetwork(unet, CPU, tables.network_t)
    made = {"labels": labels, "x_0": torch.zeros_like(x)}
    return ReverseStep(plain, diffusion, tables, tuple(x.shape), draw, **made)


class TestFusions:
    def test_the_ho_network(self) -> None:
        unet = network(**VARIANTS["ho"])
        program = lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))
        convolutions = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d)]
        attentions = 4
        count = kinds(program)
        # Queries and values of an attention are one product; its output one with the values. The
        # time rows of all blocks are one.
        assert count["Conv3x3"] + count["Convolution"] == len(convolutions) + attentions + 1
        # Keys are a map of their own; no sum, no concatenation and no padding is.
        assert count["Pointwise"] == count["Attention"] == attentions
        # x, the embedding and the output.
        assert count["Layout"] == 3
        doubled = [a for a in program.code if isinstance(a, Conv3x3) and a.doubled]
        assert len(doubled) == 1
        joined = [a for a in program.code if isinstance(a, Conv3x3) and a.x.channels[1]]
        assert len(joined) == 4
        one_sided = [a for a in program.code if isinstance(a, Convolution) and a.stride == 2]
        assert [(a.padding, a.height, a.input_height) for a in one_sided] == [(0, 4, 8)]

    def test_many_heads_are_three_instructions(self) -> None:
        unet = network()
        program = lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))
        convolutions = [m for m in unet.modules() if isinstance(m, torch.nn.Conv2d)]
        count = kinds(program)
        # Two products for each of 4 attentions, one for all time rows.
        assert count["Conv3x3"] + count["Convolution"] == len(convolutions) + 2 * 4 + 1
        assert count["Pointwise"] == 0

    def test_statistics_are_written_by_those_who_write_the_map(self) -> None:
        unet = network(**VARIANTS["openai"])
        program = lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))
        assert kinds(program)["Statistics"] == 0
        assert kinds(program)["Norm"] > 10

    def test_a_step_of_a_labelled_network_has_one_product_for_all_rows(self) -> None:
        unet = network(**VARIANTS["conditional"])
        diffusion = GaussianDiffusion(NoiseSchedule.linear(4))
        labelled = kinds(lowered(chain_step(unet, diffusion), images(unet), 4))
        unet = network()
        plain = kinds(lowered(chain_step(unet, diffusion), images(unet), 4))
        assert labelled - plain == Counter(Convolution=1, Pointwise=1, Layout=1)

    def test_halves_of_a_block_are_maps_of_their_own(self) -> None:
        unet = network(**VARIANTS["openai"])
        program = lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))
        resampled = [a.resample for a in program.code if isinstance(a, Pointwise)]
        assert resampled == [Resample.HALVE, Resample.HALVE, Resample.DOUBLE]


class Layer:
    """A step around one function of its weights and the state, [2, 16, 4, 4]."""

    def __init__(self, function: Any) -> None:
        torch.manual_seed(0)
        self.square = torch.randn(16, 16, 3, 3)
        self.wide = torch.randn(16, 48, 3, 3)
        self.point = torch.randn(16, 32, 1, 1)
        self.scale = torch.rand(16)
        self.image = torch.randn(1, 16, 4, 4)
        self._function = function

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        result: Tensor = self._function(self, x)
        return result

    def exactly(self, x: Tensor) -> Tensor:
        """The result in float64."""
        double = Layer(self._function)
        for name, value in vars(self).items():
            setattr(double, name, value.double() if isinstance(value, Tensor) else value)
        return double(x.double(), torch.zeros(1))


def convolved(m: Layer, x: Tensor) -> Tensor:
    return F.conv2d(x, m.square, padding=1)


def read_twice(m: Layer, x: Tensor) -> Tensor:
    """Neither sum may go into what makes y."""
    y = convolved(m, x)
    return (y + x) + F.silu(y)


def added_to_itself(m: Layer, x: Tensor) -> Tensor:
    y = convolved(m, x)
    return y + y


class TestOrders:
    """Orders of layers that no U-Net of ours has."""

    @pytest.mark.parametrize(
        "function",
        [
            lambda m, x: x * 1.0,
            lambda m, x: (x * 2 - 1) * 3 + 0.5,
            lambda m, x: F.silu(F.silu(x)),
            lambda m, x: F.silu(F.interpolate(F.avg_pool2d(F.silu(x), 2), scale_factor=2.0)),
            lambda m, x: F.avg_pool2d(F.interpolate(F.silu(x), scale_factor=2.0), 2),
            lambda m, x: F.group_norm(F.silu(F.group_norm(x, 4, m.scale)), 2, None, m.scale),
            lambda m, x: F.group_norm(F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0), 2),
            lambda m, x: convolved(m, x) / 2 + x,
            lambda m, x: (convolved(m, x) + x) / 3 / 2,
            lambda m, x: (convolved(m, x) + x) + convolved(m, F.silu(x)),
            lambda m, x: x + F.silu(x),
            read_twice,
            added_to_itself,
            lambda m, x: F.conv2d(F.pad(F.silu(x), (0, 2, 0, 2)), m.square),
            lambda m, x: F.conv2d(torch.cat([x, F.silu(x), x], 1), m.wide, padding=1),
            lambda m, x: F.conv2d(torch.cat([F.silu(x), x], 1), m.point),
            lambda m, x: convolved(m, F.group_norm(x, 4) + m.scale.view(1, 16, 1, 1)),
        ],
    )
    def test_are_computed(self, function: Any) -> None:
        step, x = Layer(function), torch.randn(2, 16, 4, 4)
        program = lowered(step, state := x.clone())
        memory = Memory(program, state)
        run(program, memory, 0)
        got = memory.at(state.data_ptr(), x.shape, x.stride())
        torch.testing.assert_close(got, step.exactly(x), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(
        ("function", "why"),
        [
            (lambda m, x: F.mish(x), r"aten\.mish\.default at .*lowering\.py:\d+"),
            (lambda m, x: convolved(m, x.tanh()), r"aten\.convolution.*reads what aten\.tanh"),
            (lambda m, x: x + x.mean(), r"aten\.mean"),
            (lambda m, x: F.conv2d(x, m.square * 2, padding=1), "Constant is not multiplied"),
            (lambda m, x: x + m.scale[:1].view(1, 1, 1, 1), "row of 1 numbers"),
            (lambda m, x: x + convolved(m, x[:1]), "no row"),
            (lambda m, x: convolved(m, x) + m.image, "different shapes"),
            (lambda m, x: F.conv2d(x, m.square, padding=1, dilation=1, groups=1) * 2, "multiplied"),
            (lambda m, x: F.conv2d(x, m.square[:, :8], padding=1, groups=2), "grouped"),
            (lambda m, x: F.pad(x, (1, 0, 1, 0))[..., :4, :4], "below and to the right only"),
            (lambda m, x: x.add_(1), r"aten\.add_\.Tensor.*no instruction"),
            (lambda m, x: F.interpolate(x, scale_factor=3.0)[..., :4, :4], "enlarged by two"),
            (lambda m, x: F.group_norm(x, 4) * (1 + m.scale.view(1, 16, 1, 1)), "side by side"),
            (lambda m, x: x / m.scale.view(1, 16, 1, 1), "one number"),
            (lambda m, x: x if x.sum() > 0 else -x, "reads values of tensors"),
        ],
    )
    def test_are_refused_by_name(self, function: Any, why: str) -> None:
        with pytest.raises(CannotPrepare, match=why):
            lowered(Layer(function), torch.randn(2, 16, 4, 4))

    def test_what_is_read_twice_is_computed_once(self) -> None:
        program = lowered(Layer(read_twice), torch.randn(2, 16, 4, 4))
        assert kinds(program) == Counter(Layout=2, Conv3x3=1, Pointwise=3)

    def test_what_nobody_reads_is_not_refused(self) -> None:
        def function(m: Layer, x: Tensor) -> Tensor:
            x.tanh()
            return convolved(m, x)

        assert kinds(lowered(Layer(function), torch.randn(2, 16, 4, 4)))["Conv3x3"] == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("mish", r"aten\.mish\.default at .*\.py:\d+"),
            ("1d", r"aten\.convolution\.default at .*weights \[8, 3, 3\]"),
            ("3d", r"aten\.convolution\.default at .*weights \[8, 3, 3, 3, 3\]"),
        ],
    )
    def test_of_networks(self, name: str, why: str) -> None:
        unet = network(**VARIANTS[name])
        with pytest.raises(CannotPrepare, match=why):
            lowered(call_step(unet, images(unet), *conditions(unet)), images(unet))

    def test_of_half_precision(self) -> None:
        unet = network().bfloat16()
        rows, t = unet.time_rows(torch.tensor([3, 700])).detach(), torch.tensor([3, 700])

        def step(x: Tensor, i: Tensor) -> Tensor:
            return unet.denoise(x.bfloat16(), rows, t).float()

        with pytest.raises(CannotPrepare, match=r"reads what aten\._to_copy"):
            lowered(step, images(unet))

    def test_of_tables_that_are_too_short_or_read_elsewhere(self) -> None:
        table, other = torch.randn(3, 16), torch.zeros(1, dtype=torch.int64)

        def step(index: Any) -> Any:
            def add_row(x: Tensor, i: Tensor) -> Tensor:
                row = ops.table_row(table, i if index is None else index)
                return x + row.expand(2, -1)[:, :, None, None]

            return add_row

        x = torch.randn(2, 16, 4, 4)
        lowered(step(None), x, num_steps=3)
        with pytest.raises(CannotPrepare, match="3 rows serves no 4 steps"):
            lowered(step(None), x, num_steps=4)
        with pytest.raises(CannotPrepare, match="step's index"):
            lowered(step(other), x, num_steps=3)

    def test_of_a_state_as_it_was_before_it_was_written(self) -> None:
        unet = network()
        step = chain_step(unet, GaussianDiffusion(NoiseSchedule.linear(4)))

        def late(x: Tensor, i: Tensor) -> Tensor:
            doubled = 2 * x
            step(x, i)
            return F.silu(doubled)

        with pytest.raises(CannotPrepare, match="as it was before it was written"):
            lowered(late, images(unet), 4)

    def test_mistakes_of_the_step_go_through(self) -> None:
        unet = network()
        step = call_step(unet, images(unet), *conditions(unet))
        with pytest.raises(ValueError, match=r"x must have shape \[B, 3"):
            lowered(step, torch.randn(2, 4, 8, 8))
        with pytest.raises(ValueError, match="returns a state like the one it gets"):
            lowered(lambda x, i: x[:1], torch.randn(2, 4, 8, 8))
