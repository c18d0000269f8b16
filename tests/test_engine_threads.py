"""Python threads that use one engine at a time: right numbers or a clear error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
import torch
from cpu_program.steps import CPU, needs_library, sampler
from torch import Tensor
from unet_networks import images, network

import fastddpm
from fastddpm.engine import Plan, eager
from fastddpm.engine.cpu.native import NativeProgram
from fastddpm.engine.cpu.packed import PackedWeights
from fastddpm.sampler.call import NetworkCall

SECONDS = 20.0


class Waiting:
    """A step that waits inside its first call until it is let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        if not self.inside.is_set():
            self.inside.set()
            assert self.go.wait(SECONDS)
        return x + 1


def test_a_runner_that_is_taking_steps_refuses_other_threads() -> None:
    """Else they would put another state and index in its place."""
    step = Waiting()
    runner = eager.prepare(step, Plan((2, 3), 4, CPU))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(runner, torch.zeros(2, 3))
        assert step.inside.wait(SECONDS)
        try:
            for call in (runner, runner.iterate):
                with pytest.raises(RuntimeError, match="in another thread"):
                    call(torch.ones(2, 3))
        finally:
            step.go.set()
        assert torch.equal(first.result(SECONDS), torch.full((2, 3), 4.0))
    assert torch.equal(runner(torch.ones(2, 3)), torch.full((2, 3), 5.0))


def alone(method: Callable[..., Any], at_work: list[int], together: list[int]) -> Any:
    """The method, slowed down; it notes how many calls of all such methods are in there at once."""

    def watched(*arguments: Any, **keywords: Any) -> Any:
        at_work.append(1)
        together.append(len(at_work))
        try:
            time.sleep(0.005)
            return method(*arguments, **keywords)
        finally:
            at_work.pop()

    return watched


@needs_library
def test_nobody_packs_weights_that_a_program_is_reading() -> None:
    """Chains of one sampler in several threads: each begins with packing."""
    chain, seeds = sampler(network()), range(4)
    expected = [chain.sample(2, seed) for seed in seeds]
    at_work: list[int] = []
    together: list[int] = []
    run = alone(NativeProgram.run, at_work, together)
    pack = alone(PackedWeights._pack, at_work, together)
    with (
        mock.patch.object(NativeProgram, "run", run),
        mock.patch.object(PackedWeights, "_pack", pack),
        ThreadPoolExecutor(len(seeds)) as pool,
    ):
        got = list(pool.map(lambda seed: chain.sample(2, seed), seeds))
    assert max(together) == 1 and len(together) > len(seeds)
    assert all(map(torch.equal, got, expected))


@needs_library
@torch.no_grad()
def test_calls_of_an_accelerated_network_take_turns() -> None:
    """All at one size, each with its own input, in one program; the weights change in between."""
    unet = network()
    fast = fastddpm.accelerate(unet, "cpu", threads=1)
    inputs, t = [images(unet) + k for k in range(6)], torch.tensor([400, 7])
    for scale in (1, 2):
        unet.conv_out.weight.mul_(scale)
        expected = [fast(x, t) for x in inputs]
        unet.conv_out.weight.mul_(1)  # Counted: the first call that sees it takes it over.
        at_work: list[int] = []
        together: list[int] = []
        run = alone(NativeProgram.run, at_work, together)
        with (
            mock.patch.object(NativeProgram, "run", run),
            mock.patch.object(NetworkCall, "_prepare", side_effect=AssertionError("another")),
            ThreadPoolExecutor(len(inputs)) as pool,
        ):
            got = list(pool.map(lambda x: fast(x, t), inputs))
        assert together == [1] * len(inputs)
        assert all(map(torch.equal, got, expected))
