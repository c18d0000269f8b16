"""torch.compile(fullgraph=True) of the U-Net: no graph break, and the numbers of eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, fx
from unet_networks import VARIANTS, conditions, images, network

from fastddpm import from_pretrained, ops
from fastddpm.unet import PackedUNet, UNet

NETWORKS = ("built_in", "ho", "openai", "conditional")


def made(name: str) -> UNet:
    return from_pretrained("mnist")[0].eval() if name == "built_in" else network(**VARIANTS[name])


def with_inductor(*names: str) -> pytest.MarkDecorator:
    """Every network through Dynamo and AOTAutograd, these through Inductor too: the quickest of
    them always, the others, half a minute each, when slow tests run."""
    inductor = [
        pytest.param(name, "inductor", marks=[] if name == "ho" else pytest.mark.slow)
        for name in names
    ]
    cases = [(name, "aot_eager") for name in NETWORKS]
    return pytest.mark.parametrize(("name", "backend"), [*cases, *inductor])


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batch(unet: UNet) -> tuple[Tensor, Tensor, Tensor | None]:
    t, labels = conditions(unet)
    size = unet.config.size or (8, 8)
    x = torch.randn(2, unet.config.in_channels, *size, generator=torch.Generator().manual_seed(1))
    return x, t, labels


@with_inductor("openai", "conditional")
@torch.no_grad()
def test_forward_is_one_graph(name: str, backend: str) -> None:
    unet = made(name)
    x, t, labels = batch(unet)
    compiled = torch.compile(unet, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x, t, labels), unet(x, t, labels), rtol=1e-4, atol=1e-5)


@with_inductor("built_in", "ho")
@torch.no_grad()
def test_denoise_of_the_packed_copy_is_one_graph(name: str, backend: str) -> None:
    channels_last = name in ("ho", "conditional")
    unet = made(name)
    x, t, labels = batch(unet)
    packed = PackedUNet(unet, "cpu", torch.float32, channels_last=channels_last)
    compiled = torch.compile(packed.denoise, fullgraph=True, backend=backend)
    actual = compiled(x, packed.time_rows(t, labels), t)
    torch.testing.assert_close(actual, unet(x, t, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ho", "aot_eager"),
        ("openai", "aot_eager"),
        ("conditional", "aot_eager"),
        ("ho", "inductor"),
    ],
)
@torch.no_grad()
def test_registered_ops_stay_whole_in_the_graph(name: str, backend: str) -> None:
    unet = network(**VARIANTS[name])
    x, t, labels = batch(unet)
    packed = PackedUNet(unet, "cpu", torch.float32, channels_last=True)
    rows = packed.time_rows(t, labels)
    with ops.using("triton"):
        compiled = torch.compile(packed.denoise, fullgraph=True, backend=backend)
        actual, eager = compiled(x, rows, t), packed.denoise(x, rows, t)
    torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual, unet(x, t, labels), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_backends_are_traced_apart() -> None:
    """A graph traced for one backend does not serve another."""
    traced: list[set[str]] = []

    def collect(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        traced.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    unet = network(**VARIANTS["no_middle"])
    packed = PackedUNet(unet, "cpu", torch.float32, channels_last=True)
    x, t = images(unet), torch.tensor([3, 700])
    rows = packed.time_rows(t)
    compiled = torch.compile(packed.denoise, fullgraph=True, backend=collect)
    plain = compiled(x, rows, t)
    with ops.using("triton"):
        fused = compiled(x, rows, t)
    assert torch.equal(compiled(x, rows, t), plain)
    op = "fastddpm.group_norm_silu.default"
    assert [op in graph for graph in traced] == [False, True]
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "compiles"), [("ho", False), ("ho", True), ("scale_shift", False)]
)
def test_training_on_the_gpu_kernels_has_the_gradients_of_float64(
    name: str, compiles: bool
) -> None:
    unet = network(**VARIANTS[name])
    x, t, _ = batch(unet)
    exact = gradients(network(**VARIANTS[name]).double(), x.double(), t)
    plain = gradients(unet, x, t)
    unet.to(memory_format=torch.channels_last)
    with ops.using("triton"):
        model = torch.compile(unet, fullgraph=True, backend="aot_eager") if compiles else unet
        ours = gradients(model, x.contiguous(memory_format=torch.channels_last), t)
    # Some are zero but for rounding: a bias of the keys moves no softmax.
    rounding = 1e-7 * torch.stack([gradient.norm() for gradient in exact.values()]).norm()
    for key, gradient in exact.items():
        error, plain_error = (ours[key] - gradient).norm(), (plain[key] - gradient).norm()
        assert error <= 2 * plain_error + rounding, key


def gradients(unet: torch.nn.Module, x: Tensor, t: Tensor) -> dict[str, Tensor]:
    unet.zero_grad()
    unet(x, t).square().mean().backward()
    parameters = unet.named_parameters()
    return {name.removeprefix("_orig_mod."): p.grad.clone() for name, p in parameters}
