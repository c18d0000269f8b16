"""The inference copy of a U-Net: the same function, in storages that stay, with few launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from unet_networks import VARIANTS, conditions, images, network

from fastddpm import ops
from fastddpm.kernels.group_norm_silu.tiling import one_pass_tile
from fastddpm.unet import PackedUNet, UNet, UNetConfig

T = torch.tensor([3, 700])

formats = pytest.mark.parametrize(
    "channels_last", [False, True], ids=["contiguous", "channels_last"]
)


class TestEqualsPlain:
    @pytest.mark.parametrize("name", VARIANTS)
    @formats
    def test_in_float64(self, name: str, channels_last: bool) -> None:
        unet = network(**VARIANTS[name]).double()
        if channels_last and unet.config.dims != 2:
            with pytest.raises(ValueError, match="expected 2-D maps"):
                PackedUNet(unet, "cpu", torch.float64, channels_last=True)
            return
        x, (t, labels) = images(unet), conditions(unet)
        packed = PackedUNet(unet, "cpu", torch.float64, channels_last=channels_last)
        expected = unet(x.double(), t, labels)
        torch.testing.assert_close(packed(x.double(), t, labels), expected, rtol=1e-9, atol=1e-9)
        assert expected.abs().max() > 1e-3

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @formats
    def test_error_is_that_of_the_plain_network_in_its_dtype(
        self, dtype: torch.dtype, channels_last: bool
    ) -> None:
        unet = network(**VARIANTS["ho"])
        # Both networks compute with the same rounded weights.
        unet.to(dtype)
        x = images(unet, 4).to(dtype)
        t = torch.tensor([0, 10, 500, 999])
        packed = PackedUNet(unet, "cpu", dtype, channels_last=channels_last)
        plain, ours = unet(x, t), packed(x, t)
        exact = unet.double()(x.double(), t)
        assert ours.dtype == dtype
        assert (ours - exact).norm() <= 2 * (plain - exact).norm()

    def test_one_row_serves_all_samples(self) -> None:
        unet = network()
        x, t = images(unet, 3), torch.tensor([400])
        packed = PackedUNet(unet, "cpu", torch.float32)
        table = packed.time_rows(torch.tensor([0, 400, 999]))
        torch.testing.assert_close(packed.denoise(x, table[1:2].expand(3, -1), t), unet(x, t))

    def test_padding_of_the_input_is_not_read(self) -> None:
        unet = network()
        packed = PackedUNet(unet, "cpu", torch.float32, channels_last=True)
        assert (packed.input_channels, packed.channels_last) == (8, True)
        x, rows = images(unet), unet.time_rows(T)
        wide = torch.cat([x, torch.randn(2, 5, 8, 8)], dim=1)
        torch.testing.assert_close(packed.denoise(wide, rows, T), unet(x, T))
        with pytest.raises(ValueError, match=r"\[B, 8, \*, \*\], got \[2, 5, 8, 8\]"):
            packed.denoise(wide[:, :5], rows, T)

    def test_contiguous_copy_takes_the_samples_own_channels(self) -> None:
        packed = PackedUNet(network(), "cpu", torch.float32)
        assert (packed.input_channels, packed.channels_last) == (3, False)


class TestCopy:
    @formats
    def test_refresh_sees_changed_weights_in_the_same_storages(self, channels_last: bool) -> None:
        unet = network()
        packed = PackedUNet(unet, "cpu", torch.float32, channels_last=channels_last)
        x = images(unet)
        before = packed(x, T)
        places = {name: weight.data_ptr() for name, weight in packed.state_dict().items()}
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        assert torch.equal(packed(x, T), before)
        packed.refresh(unet)
        torch.testing.assert_close(packed(x, T), unet(x, T))
        assert not torch.allclose(packed(x, T), before)
        assert places == {name: weight.data_ptr() for name, weight in packed.state_dict().items()}

    def test_source_stays_as_it_is(self) -> None:
        unet = network().train()
        before = {name: weight.clone() for name, weight in unet.state_dict().items()}
        packed = PackedUNet(unet, "cpu", torch.bfloat16, channels_last=True)
        assert unet.training and all(p.requires_grad for p in unet.parameters())
        assert not packed.training and not any(p.requires_grad for p in packed.parameters())
        for name, weight in unet.state_dict().items():
            assert torch.equal(weight, before[name]) and weight.dtype == torch.float32
        assert not {p.data_ptr() for p in unet.parameters()} & {
            p.data_ptr() for p in packed.parameters()
        }

    def test_default_dtype_of_the_caller_changes_nothing(
        self, other_default_dtype: torch.dtype
    ) -> None:
        packed = PackedUNet(network().float(), "cpu", torch.float32)
        assert {weight.dtype for weight in packed.state_dict().values()} == {torch.float32}

    def test_refuses_the_weights_of_another_network(self) -> None:
        packed = PackedUNet(network(), "cpu", torch.float32)
        with pytest.raises(ValueError, match="expected a network of UNetConfig"):
            packed.refresh(network(norm_eps=1e-3))


# Views, sizes and memory: no work on the device.
FREE = {
    *("view", "permute", "slice", "transpose", "t", "split", "unbind", "expand", "detach"),
    *("unsqueeze", "select", "new_empty", "empty", "lift_fresh", "device", "_unsafe_view"),
}


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch, by kind: every op that is not free is one kernel, a
    convolution with a bias is two, and so is a normalisation of a map too large for one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = op.overloadpacket.__name__
        if name not in FREE:
            self.kinds[name] += 1
        if name == "convolution" and args[2] is not None:
            self.kinds["bias of a convolution"] += 1
        results = op(*args, **(kwargs or {}))
        if name == "group_norm_silu":
            y, groups = results[0], args[3]
            tile = one_pass_tile(y[0, 0].numel(), y.shape[1], groups, y.element_size())
            self.kinds["second pass of group_norm_silu"] += tile is None
        return results


def launches_of(unet: UNet, dtype: torch.dtype, backend: str) -> Counter[str]:
    """Of one call of denoise, time rows at hand, on fake tensors."""
    channels_last = backend == "triton"
    size = unet.config.size or ()
    with FakeTensorMode(allow_non_fake_inputs=True), ops.using(backend), torch.no_grad():
        x = torch.empty(2, unet.input_channels, *size, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        rows = torch.empty(1, unet.row_channels, dtype=dtype).expand(2, -1)
        t = torch.empty(1, dtype=torch.int64)
        with Launches() as launches:
            unet.denoise(x, rows, t)
    return launches.kinds


def launches_of_a_step(config: UNetConfig) -> Counter[str]:
    """As a captured step makes it on a GPU: packed, channels_last, bfloat16."""
    packed = PackedUNet(UNet(config), "cpu", torch.bfloat16, channels_last=True)
    return launches_of(packed, torch.bfloat16, "triton")


class TestLaunches:
    def test_cifar10_step(self) -> None:
        kinds = launches_of_a_step(UNetConfig.ho(sample_size=32))
        print("\n".join(f"{count:4d}  {kind}" for kind, count in kinds.most_common()))
        # The 13 shortcuts are products; cuDNN has the first, the last and those of stride 2.
        assert kinds["conv3x3"] == 47 and kinds["convolution"] == 5
        assert kinds["addmm"] == 13 + 6 * 2  # shortcuts; qkv and output of the attentions
        assert kinds["group_norm_silu"] == 51
        assert sum(kinds.values()) <= 145

    def test_only_what_no_neighbour_can_do_is_left_in_an_openai_network(self) -> None:
        kinds = launches_of_a_step(network(**VARIANTS["openai"]).config)
        needed = ("conv3x3", "convolution", "addmm", "group_norm_silu", "_scaled_dot_product")
        resampling = ("avg_pool2d", "upsample_nearest2d")
        left = {k: n for k, n in kinds.items() if n and not k.startswith(needed + resampling)}
        # That of the last convolution: nothing reads its result any more.
        assert left == {"bias of a convolution": 1}

    def test_plain_network_passes_over_no_map_more_than_its_formula(self) -> None:
        unet = UNet(UNetConfig.ho(sample_size=32))
        kinds = launches_of(unet, torch.float32, "reference")
        assert kinds["add"] == 22 + 22 + 6  # time rows, residual blocks, attentions
        assert kinds["cat"] == 12
        assert kinds["constant_pad_nd"] == kinds["upsample_nearest2d"] == 3
        assert kinds["convolution"] == 65
        # The first convolution of a block leaves its bias to the time row.
        assert kinds["bias of a convolution"] == 65 - 22
        # Tokens of the first attention in each half: its own result is channels_last.
        assert kinds["clone"] + kinds["copy_"] == 2
