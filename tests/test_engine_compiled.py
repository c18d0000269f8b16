"""The compiled engine, with Inductor on the CPU: same chain, no copies, clear refusals."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
import torch
from engine_steps import NUM_STEPS, Carrying, Counting, InPlace, affine
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm import GaussianDiffusion, NoiseSchedule, ops
from fastddpm.engine import CannotPrepare, Plan, Step, compiled, eager

SHAPE = (2, 3)
PLAN = Plan(SHAPE, NUM_STEPS, torch.device("cpu"))
X = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])


@pytest.mark.parametrize(
    "make",
    [lambda: affine, InPlace, lambda: Carrying(SHAPE)],
    ids=["affine", "in place", "carrying"],
)
def test_a_compiled_chain_is_the_plain_one(make: Callable[[], Step]) -> None:
    runner, plain = compiled.prepare(make(), PLAN), eager.prepare(make(), PLAN)
    for start, steps in ((None, None), (5, 3), (None, 0)):
        torch.testing.assert_close(runner(X, start, steps), plain(X, start, steps))
    for (i, x), (expected_i, expected) in zip(runner.iterate(X), plain.iterate(X), strict=True):
        assert i == expected_i
        torch.testing.assert_close(x, expected)


class DiffusionStep:
    """The sampler's step on a small network: everything that it writes lies in its own tensors."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        diffusion = GaussianDiffusion(NoiseSchedule.linear(NUM_STEPS))
        self.body, self.head = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.rows = torch.randn(NUM_STEPS, 8)
        self.table = diffusion.step_table().float()
        self.noise = ops.Draw.of(7, torch.arange(shape[0]), diffusion.schedule.timesteps)
        self.x_0 = torch.zeros(shape)
        self.input = torch.zeros(shape[0], 4, *shape[2:])
        self.first_nonfinite = torch.full((1,), -1)

    def begin(self, x: Tensor) -> None:
        self.input[:, :3].copy_(x)

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        row = self.rows.index_select(0, i)[:, :, None, None]
        ops.ancestral_step_(
            x,
            self.head(F.silu(self.body(self.input) + row)),
            self.noise,
            self.table,
            i,
            prediction="epsilon",
            variance="fixed_small",
            clip=1.0,
            x_0=self.x_0,
            network_input=self.input,
            first_nonfinite=self.first_nonfinite,
        )
        return x


def test_what_the_step_writes_is_written_in_place_without_a_copy() -> None:
    """State, x_0, network input and flag reach the kernel as they came in."""
    from torch._inductor.utils import run_and_get_code

    shape = (2, 3, 8, 8)
    plan = Plan(shape, NUM_STEPS, torch.device("cpu"))
    # Code that Inductor has in its cache is not shown.
    with torch._inductor.config.patch(force_disable_caches=True):
        runner, sources = run_and_get_code(compiled.prepare, DiffusionStep(shape), plan)
    (code,) = sources
    (arguments,) = re.findall(r"fastddpm\.ancestral_step_\.default\((.*)\)", code)
    x, output, *_, x_0, network_input, flag, _ = arguments.split(", ")
    for written in (x, x_0, network_input, flag):
        assert re.fullmatch(r"arg\d+_1", written), arguments
    assert re.fullmatch(r"buf\d+", output)
    assert not re.search(r"auto_functionalized|\.copy_\(|\.clone\(|aten\.(clone|copy)", code)

    x_T = torch.randn(shape)
    torch.testing.assert_close(runner(x_T), eager.prepare(DiffusionStep(shape), plan)(x_T))


@pytest.fixture
def dynamo_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inductor, where Dynamo is the subject: faster."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_many_runners_of_one_step_compile(dynamo_only: None) -> None:
    """torch.compile keeps at most eight versions of one function."""
    for batch in range(1, 12):
        plan = Plan((batch,), NUM_STEPS, PLAN.device)
        x = torch.arange(1.0, batch + 1)
        assert torch.equal(compiled.prepare(InPlace(), plan)(x), eager.prepare(InPlace(), plan)(x))


def test_a_step_that_counts_in_python_is_refused(dynamo_only: None) -> None:
    with pytest.raises(CannotPrepare, match=r"anew every time.*\.t ==.*through the index i"):
        compiled.prepare(Counting(), PLAN)


class Settling:
    """Makes what it keeps in its first calls: compiled anew at the second, and then never."""

    calls = 0

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        self.calls = min(self.calls + 1, 2)
        return x + i


def test_a_step_may_settle_at_its_second_call(dynamo_only: None) -> None:
    runner = compiled.prepare(Settling(), PLAN)
    assert torch.equal(runner(X), X + sum(range(NUM_STEPS)))


def breaking(x: Tensor, i: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x


def branching(x: Tensor, i: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize("step", [breaking, branching])
def test_a_step_that_cannot_be_compiled_whole_is_refused(dynamo_only: None, step: Step) -> None:
    with pytest.raises(CannotPrepare) as caught:
        compiled.prepare(step, PLAN)
    message = str(caught.value)
    assert message.startswith("torch.compile cannot take this step whole: ")
    assert f'test_engine_compiled.py", line {step.__code__.co_firstlineno + 1}' in message  # type: ignore[attr-defined]
    assert message.endswith("engine='reference' runs it as it is")


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_the_errors_of_a_step_are_its_own(dynamo_only: None, error: type[Exception]) -> None:
    def step(x: Tensor, i: Tensor) -> Tensor:
        raise error("of the step")

    with pytest.raises(error, match="of the step") as caught:
        compiled.prepare(step, PLAN)
    assert not isinstance(caught.value, CannotPrepare)


def test_a_missing_compiler_is_named() -> None:
    import torch._inductor.config as config

    without = config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
    with without, pytest.raises(CannotPrepare, match="InvalidCxxCompiler"):
        compiled.prepare(lambda x, i: x * 3.125 + i, PLAN)


def test_the_mode_is_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compile(function: Step, **options: object) -> Step:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    compiled.prepare(affine, PLAN)
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": None}]
    assert compiled.CUDA_MODE == "max-autotune-no-cudagraphs"
