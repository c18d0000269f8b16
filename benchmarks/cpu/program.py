"""The program of a chain's step as the CPU engine has captured it, for those who look inside."""

from __future__ import annotations

import torch

import fastddpm
from benchmarks.cpu.contenders import Setup
from fastddpm.engine import CpuOptions, Plan, Runner, Selection
from fastddpm.engine.cpu_program import CpuPrograms, CpuRunner
from fastddpm.engine.plan import Step
from fastddpm.engine.selection import Engine
from fastddpm.sampler.chain import Chain
from fastddpm.sampler.place import Place


class Capture:
    """An engine's ``prepare`` that keeps what it has made."""

    def __init__(self, options: CpuOptions) -> None:
        self._programs = CpuPrograms(options)
        self.runner: CpuRunner | None = None

    def __call__(self, step: Step, plan: Plan) -> Runner:
        runner = self._programs.prepare(step, plan)
        assert isinstance(runner, CpuRunner)
        self.runner = runner
        return runner


def captured(setup: Setup, weights: str = "float32", memory: str = "small") -> CpuRunner:
    """The runner of a chain's steps, after one chain of a single step."""
    unet, diffusion = fastddpm.from_pretrained(setup.folder)
    capture = Capture(CpuOptions(setup.threads, weights, memory))
    engine = Selection((Engine("cpu", "the program", capture),), "auto", {})
    chain = Chain(unet, diffusion, Place(engine, torch.device("cpu")))
    config = unet.config
    assert config.size is not None
    shape = (config.in_channels, *config.size)
    source = chain.counter_noise(0, torch.arange(setup.batch), shape)
    chain.decode(source.initial(chain.num_steps), source, 0)
    assert capture.runner is not None
    return capture.runner
