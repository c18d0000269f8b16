"""The U-Net: published sizes, float64 formulas, equivalences between its dimensions, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from unet_networks import SMALL, VARIANTS, conditions, images, network

from fastddpm import ops
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet.embedding import sinusoidal_embedding
from fastddpm.unet.sum import Sum


def count(unet: UNet) -> int:
    return sum(p.numel() for p in unet.parameters())


class TestSizes:
    def test_cifar10_network_has_the_published_parameter_count(self) -> None:
        assert count(UNet(UNetConfig.ho(sample_size=32))) == 35_746_307

    def test_256_network_has_the_published_parameter_count(self) -> None:
        with torch.device("meta"):
            unet = UNet(UNetConfig.ho(sample_size=256, channel_mult=(1, 1, 2, 2, 4, 4)))
        assert count(unet) == 113_673_219


class TestEmbedding:
    @pytest.mark.parametrize("dim", [8, 9])
    @pytest.mark.parametrize(("cos_first", "freq_shift"), [(False, 1), (True, 0)])
    def test_sinusoidal_equals_the_formula_in_float64(
        self, dim: int, cos_first: bool, freq_shift: int
    ) -> None:
        t = torch.tensor([0.0, 1.0, 17.5, 999.0])
        half = dim // 2
        expected = torch.zeros(len(t), dim, dtype=torch.float64)
        for row, value in enumerate(t.tolist()):
            for k in range(half):
                angle = value * 10000 ** (-k / (half - freq_shift))
                sin_at, cos_at = (half + k, k) if cos_first else (k, half + k)
                expected[row, sin_at], expected[row, cos_at] = math.sin(angle), math.cos(angle)
        actual = sinusoidal_embedding(t, dim, cos_first=cos_first, freq_shift=freq_shift)
        # float32 angles near 999 carry half an ulp, 3e-5.
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=7e-5)

    def test_integer_and_float_timesteps_agree(self) -> None:
        unet = network()
        x = images(unet)
        t = torch.tensor([3, 250])
        assert torch.equal(unet(x, t), unet(x, t.float()))
        assert not torch.equal(unet(x, t), unet(x, t + 0.5))


class TestForward:
    def test_fresh_network_is_the_zero_function(self) -> None:
        unet = UNet(UNetConfig.from_dict(SMALL))
        assert torch.count_nonzero(unet(images(unet), torch.tensor([1, 2]))) == 0

    def test_samples_of_a_batch_do_not_influence_each_other(self) -> None:
        unet = network().double()
        x, t = images(unet, 3).double(), torch.tensor([5, 500, 999])
        together = unet(x, t)
        for i in range(3):
            torch.testing.assert_close(unet(x[i : i + 1], t[i : i + 1])[0], together[i])

    def test_scalar_timestep_is_one_for_all(self) -> None:
        unet = network()
        x = images(unet)
        assert torch.equal(unet(x, torch.tensor(7)), unet(x, torch.tensor([7, 7])))

    @pytest.mark.parametrize("padding", [0, 1])
    @pytest.mark.parametrize("resampling", ["conv", "resnet", "none"])
    def test_3d_network_on_one_slice_is_the_2d_network(self, padding: int, resampling: str) -> None:
        """At depth 1 only the middle slice of a 3×3×3 kernel meets data; depth is not resampled."""
        fields = {
            "downsample_padding": padding,
            "downsample_type": {"none": "pool"}.get(resampling, resampling),
            "upsample_type": {"none": "nearest"}.get(resampling, resampling),
        }
        volume, plane = network(dims=3, **fields).double(), network(**fields).double()
        weights = volume.state_dict()
        for name, value in plane.state_dict().items():
            cut = weights[name]
            weights[name] = cut[:, :, cut.shape[2] // 2] if cut.dim() == 5 else cut
            assert weights[name].shape == value.shape
        plane.load_state_dict(weights)
        x, t = images(plane).double(), torch.tensor([5, 600])
        torch.testing.assert_close(volume(x[:, :, None], t)[:, :, 0], plane(x, t))

    def test_1d_network_runs_and_reaches_every_parameter(self) -> None:
        unet = network(dims=1)
        y = unet(images(unet), torch.tensor([1, 2]))
        assert y.shape == (2, 3, 8)
        y.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())

    def test_gradients_equal_finite_differences(self) -> None:
        unet = network(resnet_time_scale_shift="scale_shift").double()
        x = images(unet, 1).double().requires_grad_()
        torch.autograd.gradcheck(lambda x: unet(x, torch.tensor([9])).sum(), x, atol=1e-5)

    def test_bfloat16_follows_float32(self) -> None:
        unet = network()
        x, t = images(unet), torch.tensor([3, 700])
        exact = unet(x, t)
        half = unet.to(torch.bfloat16)(x.to(torch.bfloat16), t)
        assert half.dtype == torch.bfloat16
        assert (half.float() - exact).norm() / exact.norm() < 0.05

    def test_heads_may_differ_on_the_way_up(self) -> None:
        config = UNetConfig.from_dict(
            SMALL | {"num_attention_heads": 4, "num_attention_heads_upsample": 2}
        )
        unet = UNet(config)
        assert unet.down_blocks[1].attentions[0].heads == 4
        assert unet.mid_block.attentions[0].heads == 4
        assert unet.up_blocks[0].attentions[0].heads == 2


class TestTimeRows:
    @pytest.mark.parametrize("name", VARIANTS)
    def test_forward_is_denoise_of_the_time_rows(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        x, (t, labels) = images(unet), conditions(unet)
        rows = unet.time_rows(t, labels)
        assert rows.shape == (2, unet.row_channels)
        assert torch.equal(unet.denoise(x, rows, t), unet(x, t, labels))

    def test_blocks_read_their_own_columns(self) -> None:
        unet = network(**VARIANTS["openai"])
        blocks = unet.residual_blocks()
        ends = [0, *(block.columns.stop for block in blocks)]
        assert [block.columns.start for block in blocks] == ends[:-1]
        assert ends[-1] == unet.row_channels
        x, t = images(unet), torch.tensor([3, 700])
        rows = unet.time_rows(t).detach().requires_grad_()
        unet.denoise(x, rows, t).square().sum().backward()
        assert rows.grad is not None and (rows.grad != 0).all()

    def test_conv1_runs_without_the_bias_that_its_row_holds(self) -> None:
        unet = network()
        x, t = images(unet), torch.tensor([3, 700])
        rows, before = unet.time_rows(t), unet(x, t)
        block = unet.residual_blocks()[0]
        with torch.no_grad():
            block.conv1.bias.add_(1)
        expected = rows.clone()
        expected[:, block.columns] += 1
        torch.testing.assert_close(unet.time_rows(t), expected)
        assert torch.equal(unet.denoise(x, rows, t), before)

    def test_refuses_rows_of_another_shape(self) -> None:
        unet = network()
        x, t = images(unet), torch.tensor([3, 700])
        rows = unet.time_rows(t)
        with pytest.raises(ValueError, match=rf"rows must have shape \[2, {rows.shape[1]}\], got"):
            unet.denoise(x, rows[:1], t)


class TestSum:
    def parts(self) -> dict[str, Tensor]:
        shapes = {"value": (2, 8, 4, 4), "residual": (2, 8, 4, 4), "skip": (2, 4, 4, 4)}
        return {name: torch.randn(shape) for name, shape in shapes.items()} | {
            "row": torch.randn(2, 8)
        }

    def expected(self, p: dict[str, Tensor]) -> Tensor:
        return torch.cat([p["value"] + p["row"][:, :, None, None] + p["residual"], p["skip"]], 1)

    def test_total(self) -> None:
        p = self.parts()
        map_ = Sum(p["value"], row=p["row"]).plus(p["residual"]).joined(p["skip"])
        assert torch.equal(map_.total(), self.expected(p))

    def test_whoever_reads_first_takes_the_sum_for_all(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        p, norm = self.parts(), torch.nn.GroupNorm(4, 12)
        map_ = Sum(**p)
        y = map_.normalised(norm, "mish")
        monkeypatch.setattr(ops, "residual_sum", None)
        assert torch.equal(map_.total(), self.expected(p))
        torch.testing.assert_close(y, torch.nn.functional.mish(norm(self.expected(p))))

    @pytest.mark.parametrize("keep", [True, False])
    def test_resampled(self, keep: bool) -> None:
        p = self.parts()
        expected = self.expected(p)
        map_ = Sum(**p)
        assert torch.equal(
            map_.resampled("pad", keep=keep), torch.nn.functional.pad(expected, (0, 1, 0, 1))
        )
        assert torch.equal(map_.total(), expected)


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "SkipDownBlock2D"),
            ({"block_out_channels": (8, 16, 16)}, "one entry per level"),
            ({"block_out_channels": (8, 18)}, "multiple of norm_num_groups=4"),
            ({"time_embedding_type": "sine"}, "time_embedding_type must be one of"),
            ({"time_embedding_type": "learned"}, "num_train_timesteps"),
            ({"attention_head_dim": 32}, "no attention head fits 16 channels"),
            ({"num_attention_heads": 3}, "no attention head fits 16 channels"),
            ({"dims": 4}, "dims must be 1, 2 or 3"),
            ({"norm_num_groups": 0}, "norm_num_groups must be at least 1, got 0"),
            ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
            ({"num_class_embeds": -1}, "num_class_embeds must be at least 1, got -1"),
            ({"time_proj_dim": -2}, "time_proj_dim must be at least 1, got -2"),
            ({"freq_shift": 4}, "freq_shift must be below 4"),
            ({"norm_eps": -1.0}, "norm_eps must be above 0"),
            ({"sample_size": [8]}, "sample_size must be 2 sizes of at least 1"),
            ({"sample_size": -8}, "sample_size must be 2 sizes of at least 1"),
            ({"dropout": 1.0}, "dropout must lie in"),
            ({"block_out_chanels": (8, 16)}, "did you mean 'block_out_channels'"),
        ],
    )
    def test_config(self, fields: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            UNetConfig.from_dict(SMALL | fields)

    def test_input(self) -> None:
        unet = network()
        t = torch.tensor([1, 2])
        with pytest.raises(ValueError, match=r"\[B, 3, \*, \*\], got \[2, 1, 8, 8\]"):
            unet(torch.zeros(2, 1, 8, 8), t)
        with pytest.raises(ValueError, match=r"multiples of 2, got \[8, 7\]"):
            unet(torch.zeros(2, 3, 8, 7), t)
        with pytest.raises(ValueError, match=r"t must be a tensor of shape \[2\], got \[3\]"):
            unet(torch.zeros(2, 3, 8, 8), torch.zeros(3))
        with pytest.raises(ValueError, match="takes no labels"):
            unet(torch.zeros(2, 3, 8, 8), t, t)
        with pytest.raises(ValueError, match="must be a tensor of shape"):
            unet(torch.zeros(2, 3, 8, 8), 7)
        conditional = network(num_class_embeds=10)
        with pytest.raises(ValueError, match="needs labels"):
            conditional(torch.zeros(2, 3, 8, 8), t)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\), got 1 to 10"):
            conditional(torch.zeros(2, 3, 8, 8), t, torch.tensor([1, 10]))
        with pytest.raises(ValueError, match=r"labels must be int64 \[2\], got torch.float32"):
            conditional(torch.zeros(2, 3, 8, 8), t, torch.tensor([1.0, 2.0]))
