"""The whole sampler as on a GPU: a captured step, fused kernels in Triton's interpreter, a packed
channels_last U-Net; against the reference sampler on the same machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from capture import Device, emulated, launches
from op_backends import needs_interpreter, same_bits
from torch import Tensor, nn
from unet_networks import VARIANTS, conditions, network

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler, UNet, ops
from fastddpm import engine as engines
from fastddpm.engine.cuda_graph import CudaGraphs
from fastddpm.engine.selection import Engine, Selection
from fastddpm.kernels.common.launch import Launch
from fastddpm.sampler import unet_network as networks
from fastddpm.unet import PackedUNet, convolution

pytestmark = needs_interpreter

# Kernel launches of one step: the bar, and what Inductor makes of diffusers' network by itself
# (benchmarks/results/inductor_launches.json).
MOST_LAUNCHES = 150
CIFAR = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 32,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def graphs_on_a_cpu(name: str, device: torch.device) -> Selection:
    engine = Engine(name, "an emulated CUDA graph", CudaGraphs(compile=False).prepare)
    return Selection((engine,), "auto", {})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Samplers of engine "cuda_graph" capture under the emulator, with Triton's kernels and maps in
    channels_last; those of engine "reference" stay as they are."""
    select = engines.select
    monkeypatch.setattr(
        engines,
        "select",
        lambda name, device, *options, **reasons: (
            graphs_on_a_cpu(name, device)
            if name == "cuda_graph"
            else select(name, device, *options, **reasons)
        ),
    )

    def packed(unet: UNet, device: torch.device, dtype: torch.dtype) -> PackedUNet:
        return PackedUNet(unet, device, dtype, channels_last=unet.config.dims == 2)

    monkeypatch.setattr(networks, "PackedUNet", packed)
    # It reads the labels of a CPU, which a GPU would have to be waited for.
    monkeypatch.setattr(UNet, "_check_labels", lambda self, labels, batch: None)
    with ExitStack() as stack:
        yield stack.enter_context(emulated())


def diffusion_of(steps: int, **settings: Any) -> GaussianDiffusion:
    schedule = NoiseSchedule.linear(1000)
    every = torch.linspace(1, 999, steps).long()
    return GaussianDiffusion(schedule.respace(every), **settings)


def rowwise(x: Tensor, t: Tensor) -> Tensor:
    """A model whose rows do not meet: every split gives the same bits."""
    return 0.3 * x + (t.reshape(-1, *[1] * (x.dim() - 1)) * 1e-4).to(x.dtype)


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([rowwise(x, t), x.clamp(-1, 1)], dim=1)


def both(model: Any, diffusion: GaussianDiffusion, **settings: Any) -> tuple[Sampler, Sampler]:
    return tuple(  # type: ignore[return-value]
        Sampler(model, diffusion, engine, **settings) for engine in ("reference", "cuda_graph")
    )


def triton(sampler: Sampler, *args: Any, **kwargs: Any) -> Tensor:
    with ops.using("triton"):
        return sampler.sample(*args, **kwargs)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "previous_sample"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7)], ids=str)
def test_any_callable_is_captured_bit_for_bit(
    gpu: Device, prediction: str, shape: tuple[int, ...]
) -> None:
    reference, fast = both(rowwise, diffusion_of(7, prediction=prediction), shape=shape)
    expected = reference.sample(3, seed=2**63 + 5)
    assert same_bits(triton(fast, 3, seed=2**63 + 5), expected)
    assert same_bits(triton(fast, indices=[2, 0], seed=2**63 + 5), expected[[2, 0]])
    assert expected.std() > 0.01


def test_learned_variances_are_captured(gpu: Device, products_are_fused: None) -> None:
    for variance in ("learned", "learned_range"):
        reference, fast = both(learned, diffusion_of(7, variance=variance), shape=(2, 4, 4))
        assert same_bits(triton(fast, 3), reference.sample(3))


def test_the_last_batch_runs_in_the_graph_of_the_others(gpu: Device) -> None:
    reference, fast = both(rowwise, diffusion_of(5), shape=(3, 4, 4), batch_size=4)
    assert same_bits(triton(fast, 11), reference.sample(11))
    # The pool keeps a graph of its own beside the one of four rows.
    assert len(gpu.graphs) == 2


def test_one_capture_serves_every_call_of_a_kind(gpu: Device) -> None:
    reference, fast = both(rowwise, diffusion_of(6), shape=(3, 4, 4))
    triton(fast, 2, seed=0)
    captured = len(gpu.graphs)
    for seed in (1, 2**64 - 1):
        assert same_bits(triton(fast, 2, seed=seed), reference.sample(2, seed=seed))
    assert len(gpu.graphs) == captured


def test_interleaved_streams_do_not_meet(gpu: Device) -> None:
    reference, fast = both(rowwise, diffusion_of(6), shape=(1, 4, 4))
    with ops.using("triton"):
        seen = list(zip(*(fast.stream(2, seed=s, every=1) for s in (0, 1)), strict=True))
    for seed in (0, 1):
        for got, want in zip(
            [pair[seed] for pair in seen], reference.stream(2, seed=seed, every=1), strict=True
        ):
            assert got.t == want.t
            assert same_bits(got.x_t, want.x_t) and same_bits(got.x_0, want.x_0)


def test_interpolation_and_the_callers_noise_are_captured(gpu: Device) -> None:
    reference, fast = both(rowwise, diffusion_of(9), shape=(1, 4, 4))
    a, b = torch.randn(2, 1, 4, 4).clamp(-1, 1)
    with ops.using("triton"):
        assert same_bits(fast.interpolate(a, b, t=5), reference.interpolate(a, b, t=5))

    def noise(step: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(step))

    assert same_bits(triton(fast, 3, noise=noise), reference.sample(3, noise=noise))


def test_nan_is_found_and_named_by_its_timestep(gpu: Device) -> None:
    diffusion = diffusion_of(60)
    timestep = int(diffusion.schedule.timesteps[41])

    def failing(x: Tensor, t: Tensor) -> Tensor:
        bad = (t == timestep).reshape(-1, 1, 1, 1)
        return torch.where(bad, torch.inf, rowwise(x, t))

    _, fast = both(failing, diffusion, shape=(1, 4, 4))
    with pytest.raises(FloatingPointError, match=rf"at timestep {timestep} \(step index 41\)"):
        triton(fast, 2)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.gain * x


def test_changed_weights_are_never_ignored(gpu: Device) -> None:
    model = Scaled()
    reference, fast = both(model, diffusion_of(5), shape=(1, 4, 4))
    before = triton(fast, 2)
    captured = len(gpu.graphs)
    with torch.no_grad():
        model.gain.fill_(0.5)
    assert same_bits(triton(fast, 2), reference.sample(2))
    assert len(gpu.graphs) == captured  # Written in place: the graph sees it.
    model.load_state_dict({"gain": torch.tensor(0.7)}, assign=True)
    after = triton(fast, 2)
    assert same_bits(after, reference.sample(2))
    assert not torch.equal(after, before)


def test_changed_numbers_are_never_ignored(gpu: Device) -> None:
    model = Scaled()
    model.offset = 0.0
    model.forward = lambda x, t: model.gain * x + model.offset  # type: ignore[method-assign]
    reference, fast = both(model, diffusion_of(5), shape=(1, 4, 4))
    before = triton(fast, 2)
    model.offset = 0.25
    after = triton(fast, 2)
    assert same_bits(after, reference.sample(2))
    assert not torch.equal(after, before)


class Tabled(nn.Module):
    """Reads a tensor that is neither parameter nor buffer, and keeps what it made."""

    def __init__(self) -> None:
        super().__init__()
        self._table = torch.tensor([0.3])
        self.made: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.made = self._table * x
        return self.made


def test_tensors_that_are_no_weights_are_never_ignored(gpu: Device) -> None:
    model = Tabled()
    reference, fast = both(model, diffusion_of(5), shape=(1, 4, 4))
    before = triton(fast, 2)
    captured = len(gpu.graphs)
    assert same_bits(triton(fast, 2), before)
    assert len(gpu.graphs) == captured  # What it keeps is a replay's own.
    model._table = torch.tensor([0.7])
    after = triton(fast, 2)
    assert same_bits(after, reference.sample(2))
    assert not torch.equal(after, before)


def test_tensors_that_are_no_weights_are_copied_with_them(gpu: Device) -> None:
    model = Tabled()
    model.weight = nn.Parameter(torch.zeros(1))  # Of a module with weights a dtype means a copy.
    reference, fast = both(model, diffusion_of(5), shape=(1, 4, 4), dtype=torch.bfloat16)
    before = triton(fast, 2)
    model._table.fill_(0.7)
    after = triton(fast, 2)
    assert not torch.equal(after, before)
    assert (after - reference.sample(2)).abs().max() < 0.05


def test_an_accelerated_module_is_captured_itself(gpu: Device) -> None:
    reference, fast = both(fastddpm.accelerate(Scaled()), diffusion_of(5), shape=(1, 4, 4))
    assert same_bits(triton(fast, 2), reference.sample(2))


def test_a_step_that_cannot_be_captured_is_refused_by_name(gpu: Device) -> None:
    def reads(x: Tensor, t: Tensor) -> Tensor:
        return x * float(t[0].item() > 500)

    _, fast = both(reads, diffusion_of(5), shape=(1, 4, 4))
    with pytest.raises(ValueError, match="cannot be captured in a CUDA graph: it waits for"):
        triton(fast, 2)
    _, fast = both(rowwise, diffusion_of(5), shape=(1, 4, 4))
    assert triton(fast, 2).shape == (2, 1, 4, 4)


# ---- the U-Net


# The packed network is compared with the plain one in every variant elsewhere; these differ in what
# a step reads: time rows from a table or per label, timesteps, two outputs, padded channels, no
# channels_last.
@pytest.mark.parametrize("name", ["ho", "openai", "conditional", "fourier", "nine_channels", "3d"])
@torch.no_grad()
def test_every_network_is_captured_with_its_fused_kernels(gpu: Device, name: str) -> None:
    unet = network(**{"out_channels": 9} if name == "nine_channels" else {}, **VARIANTS[name])
    config, labels = unet.config, conditions(unet)[1]
    doubled = config.out_channels == 2 * config.in_channels
    diffusion = diffusion_of(2, variance="learned_range" if doubled else "fixed_small")
    reference, fast = both(unet, diffusion)
    images = triton(fast, 2, labels=labels) if config.dims == 2 else fast.sample(2, labels=labels)
    expected = reference.sample(2, labels=labels)
    assert (images - expected).abs().max() < 2e-4
    assert expected.std() > 0.01


@pytest.mark.slow
@torch.no_grad()
def test_the_built_in_model_in_bfloat16(
    gpu: Device, casts_round_to_nearest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Interpreted convolutions would take minutes; tests/test_ops_conv3x3.py has them in a network.
    monkeypatch.setattr(convolution, "suits", lambda x, weight: False)
    unet, process = fastddpm.from_pretrained("mnist")
    diffusion = process.respace(range(0, 1000, 500))
    reference = Sampler(unet, diffusion, "reference").sample(1, seed=4)
    half = triton(Sampler(unet, diffusion, "cuda_graph", dtype=torch.bfloat16), 1, seed=4)
    assert 0 < (half - reference).abs().mean() < 0.05
    assert reference.std() > 0.1


@pytest.mark.slow
@torch.no_grad()
def test_a_step_of_the_cifar_network_takes_few_launches(
    gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernels compute does not count here.
    monkeypatch.setattr(Launch, "run", lambda self: None)
    unet = UNet(fastddpm.UNetConfig(**CIFAR))
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307
    _, fast = both(unet, diffusion_of(2), dtype=torch.bfloat16)
    triton(fast, 1)
    counted = max((launches(graph) for graph in gpu.graphs), key=lambda c: c.total())
    print(counted.total(), dict(counted))
    assert counted.total() <= MOST_LAUNCHES
    assert counted["fastddpm::ancestral_step_"] == 1
    # One of the 51 is read twice.
    assert counted["fastddpm::group_norm_silu"] == 51 + 1
    assert counted["fastddpm::conv3x3"] == 47
