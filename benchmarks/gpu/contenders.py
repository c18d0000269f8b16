"""Whole chains of the same network with the same random weights: ours and diffusers'.

Each contender is a call that draws a batch of images by ``steps`` steps, on the GPU. ``prepare`` is
what a process of its own runs (benchmarks/worker.py): a contender, its chains and its profile.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.gpu import profiling
from benchmarks.inductor_launches.networks import CIFAR10
from benchmarks.worker import Prepared
from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler, UNet, timesteps
from fastddpm.engine import precision
from fastddpm.integrations.diffusers import DiffusersReader

DEVICE = "cuda"
OURS, EAGER = "fastddpm", "diffusers eager"
Draw = Callable[[], Tensor]


# Steps of a timed chain. What a chain itself costs (reading the weights anew: 3 ms) is spread over
# 1000 when a user draws; eager networks have nothing like it.
MOST_STEPS, FEWEST_STEPS = 200, 25
EAGER_STEPS = 20
# A bfloat16 image's step is 1.
COST = {"bfloat16": 1, "tf32": 2, "float32": 16}
STEPS_AT_COST = 6400


def steps_of(name: str, batch: int, dtype: str) -> int:
    """How many steps a timed chain has: fewer where a step takes long."""
    if name == EAGER:
        return EAGER_STEPS
    return min(max(STEPS_AT_COST // (COST[dtype] * batch), FEWEST_STEPS), MOST_STEPS)


def prepare(name: str, batch: int, dtype: str, rounds: int) -> Prepared:
    """A contender's memory and the seconds until its first chain was drawn; and its turns.

    A turn is milliseconds of a step; the one after ``rounds`` turns a profile.
    """
    steps, report = steps_of(name, batch, dtype), list[str]()
    torch.zeros(1, device=DEVICE)
    torch.cuda.synchronize()
    rival, begin = rival_network(), time.perf_counter()
    with precision_of(dtype):
        if name == OURS:
            sampler, draw = ours(rival, batch, dtype, steps)
        elif name == EAGER:
            draw = eager(rival, batch, dtype, steps)
        else:
            draw = compiled(rival, batch, dtype, steps, name.rpartition(" ")[2])
        draw()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        finite = bool(draw().isfinite().all())
    if name == OURS:
        report = sampler.explain().splitlines()
    found = {
        **{"seconds_to_first_chain": seconds, "steps": steps, "finite": finite, "ran": report},
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
    }
    turns = iter(range(rounds))

    def turn() -> Any:
        with precision_of(dtype):
            if next(turns, None) is None:
                return profiling.launches(draw, steps)
            draw()
            return timing.cuda_milliseconds(draw) / steps

    return found, turn


def compiled_name(mode: str) -> str:
    """The name of diffusers under torch.compile in this mode."""
    return f"diffusers compiled, channels_last, {mode}"


def dtype_of(name: str) -> torch.dtype:
    """The dtype of weights and activations under "float32", "tf32" or "bfloat16"."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def precision_of(name: str) -> AbstractContextManager[None]:
    """torch's settings under "float32", "tf32" or "bfloat16"."""
    return precision(tf32=name == "tf32")


def rival_network(seed: int = 0, config: dict[str, Any] = CIFAR10) -> nn.Module:
    """diffusers' network for google/ddpm-cifar10-32 with random weights, float32 on the CPU."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = UNet2DModel(**config)
    return network.eval().requires_grad_(False)


def our_network(rival: nn.Module) -> UNet:
    """The same network as a fastddpm.UNet."""
    return DiffusersReader(rival).unet(rival)


def ours(
    rival: nn.Module, batch: int, dtype: str, steps: int, engine: str = "cuda_graph"
) -> tuple[Sampler, Draw]:
    """A sampler on the GPU, and the call that draws with it; the first one prepares."""
    diffusion = GaussianDiffusion(NoiseSchedule.linear(1000), variance="fixed_large")
    sampler = Sampler(
        our_network(rival).to(DEVICE),
        diffusion.respace(timesteps.linspace(1000, steps)),
        engine=engine,
        device=DEVICE,
        dtype=dtype_of(dtype),
        tf32=dtype == "tf32",
    )
    return sampler, lambda: sampler.sample(batch, seed=0)


def eager(rival: nn.Module, batch: int, dtype: str, steps: int) -> Draw:
    """What diffusers' DDPMPipeline does."""
    return _diffusers(_placed(rival, dtype), batch, steps, torch.contiguous_format)


def compiled(rival: nn.Module, batch: int, dtype: str, steps: int, mode: str) -> Draw:
    """The same with the network in channels_last under torch.compile.

    Its timesteps lie on the GPU, where they do not stop torch.compile's own CUDA graphs.
    """
    # torch's own annotations of Module.to lack this argument.
    network = _placed(rival, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    call = torch.compile(network, mode=mode, fullgraph=True, dynamic=False)
    return _diffusers(network, batch, steps, torch.channels_last, call)


def _placed(rival: nn.Module, dtype: str) -> nn.Module:
    return copy.deepcopy(rival).to(DEVICE, dtype_of(dtype))


def _diffusers(
    network: Any, batch: int, steps: int, form: torch.memory_format, call: Any = None
) -> Draw:
    """The pipeline's loop; call: the compiled network, None: the network itself."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large")
    scheduler.set_timesteps(steps)
    on_gpu = scheduler.timesteps.to(DEVICE)
    shape = (batch, network.config.in_channels, *[network.config.sample_size] * 2)
    generator = torch.Generator(DEVICE).manual_seed(0)

    @torch.no_grad()
    def draw() -> Tensor:
        image = torch.randn(shape, generator=generator, device=DEVICE, dtype=network.dtype)
        for k, t in enumerate(scheduler.timesteps):
            if call is None:
                output = network(image, t, return_dict=False)[0]
            else:
                torch.compiler.cudagraph_mark_step_begin()
                output = call(image.contiguous(memory_format=form), on_gpu[k], return_dict=False)[0]
            image = scheduler.step(output, t, image, generator=generator).prev_sample
        return image

    return draw
