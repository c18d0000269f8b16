"""Every engine against the reference engine, on the built-in model or a small network."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import torch
from torch import Tensor

from fastddpm import ops, timesteps
from fastddpm.checkpoint import from_pretrained
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.selfcheck.exact import drawn
from fastddpm.selfcheck.outcome import Bits, Errors, Outcome, largest_difference
from fastddpm.unet import UNet, UNetConfig

IMAGES, SEED = 3, 1
# Of the whole chain, in a range of 2: an eighth of a grey level. Networks round differently in
# every engine, and the chain carries that on.
BOUND = 1e-3
# What torch.compile takes a few seconds for on a CPU, where the built-in model needs a minute.
SMALL = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8,),
    down_block_types=("AttnDownBlock2D",),
    mid_block_type=None,
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    norm_num_groups=4,
)


def chain(
    engine: str, device: torch.device, model: str, steps: int | None, batches: tuple[int, ...]
) -> Outcome:
    """The engine's images in float32 against the reference engine's.

    model: "mnist" or "small". steps: how many of its chain's; None: all. batches: sizes to run
    with, each of them prepared anew.
    """
    errors = Errors()
    expected = reference_images(device, model, steps)
    for size in batches:
        images = sampled(engine, device, model, steps, batch_size=size)
        errors.add(f"batches of {size}", largest_difference(images, expected), BOUND)
    of_chain = "the whole chain" if steps is None else f"{steps} steps"
    return errors.outcome(f"engine {engine}", f"{of_chain} of the {model} model")


def half_precision_chain(engine: str, device: torch.device, dtype: torch.dtype) -> Outcome:
    """Root-mean-square error of the engine's whole chain in bfloat16 or float16 against float32:
    at most twice the reference engine's own in that dtype."""
    expected = reference_images(device, "mnist", None)
    own, theirs = (
        _rms(sampled(name, device, "mnist", None, dtype=dtype) - expected)
        for name in (engine, "reference")
    )
    errors = Errors()
    errors.add("root mean square", own, 2 * theirs)
    return errors.outcome(f"engine {engine} in {str(dtype).removeprefix('torch.')}")


def splitting(engine: str, device: torch.device) -> Outcome:
    """Chains of a model that treats each element by itself: the images of any split, order and
    choice of indices are the same to the last bit."""
    diffusion = GaussianDiffusion(NoiseSchedule.linear(12), variance="fixed_large")
    sampler = Sampler(_elementwise, diffusion, engine=engine, device=device, shape=(3, 8, 8))
    reference = Sampler(_elementwise, diffusion, engine="reference", shape=(3, 8, 8))
    whole = reference.sample(5, seed=SEED)
    bits = Bits()
    bits.add("whole", sampler.sample(5, seed=SEED), whole)
    bits.add("batches of 2", sampler.sample(5, seed=SEED, batch_size=2), whole)
    chosen = sampler.sample(indices=[4, 0, 3], seed=SEED)
    bits.add("chosen indices", chosen, whole[[4, 0, 3]])
    return bits.outcome(f"batch splits, engine {engine}")


def splitting_networks(device: torch.device) -> Outcome:
    """Chains of networks on the CPU engine: the same bits for every batch size."""
    bits = Bits()
    for model, steps in (("mnist", 5), ("small", 20)):
        whole = sampled("cpu", device, model, steps)
        for size in (1, 2):
            split = sampled("cpu", device, model, steps, batch_size=size)
            bits.add(f"{model}, batches of {size}", split, whole)
    return bits.outcome("batch splits, engine cpu")


def sampled(
    engine: str,
    device: torch.device,
    model: str,
    steps: int | None,
    *,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Three images of a model, float32 on the CPU."""
    unet, diffusion = _model(model, steps)
    sampler = Sampler(unet, diffusion, engine=engine, device=device, dtype=dtype)
    # By name, so that a layout which the kernels refuse is an error and not a detour.
    fused = device.type == "cuda" and engine != "reference"
    with ops.using("triton") if fused else nullcontext():
        return sampler.sample(IMAGES, seed=SEED, batch_size=batch_size).cpu()


@functools.cache
def reference_images(device: torch.device, model: str, steps: int | None) -> Tensor:
    """The reference engine's images in float32."""
    return sampled("reference", device, model, steps)


@functools.cache
def _model(model: str, steps: int | None) -> tuple[UNet, GaussianDiffusion]:
    if model == "small":
        unet, diffusion = _small_unet(), GaussianDiffusion(NoiseSchedule.linear(1000))
    else:
        unet, diffusion = from_pretrained(model)
    if steps is not None:
        diffusion = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    return unet, diffusion


def _small_unet() -> UNet:
    """SMALL with weights of the counter-based noise; a fresh network would be the zero function."""
    unet = UNet(SMALL)
    with torch.no_grad():
        for number, parameter in enumerate(unet.parameters()):
            parameter.add_(0.1 * drawn(number, tuple(parameter.shape)))
    return unet


def _elementwise(x: Tensor, t: Tensor) -> Tensor:
    # A power of two, so that no compiler's multiply-add changes the product.
    return 0.5 * x


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
