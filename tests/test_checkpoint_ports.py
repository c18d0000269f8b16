"""Ho's network in other people's files: read by its names alone, it computes what theirs does.

The files are written here in each family's real layout, from `port_references`, whose plain
functions the loaded network is compared with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from port_references import (
    State,
    numbered_forward,
    numbered_state,
    pesser_forward,
    pesser_state,
)
from tensor_bundle_writer import write_bundle
from torch import Tensor, nn

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, from_pretrained
from fastddpm.checkpoint.ho import read_ho
from fastddpm.checkpoint.ports import PESSER, read_network
from fastddpm.checkpoint.pytorch_ddpm import read_pytorch_ddpm
from fastddpm.unet import UNet

SIZES: dict[str, dict[str, Any]] = {
    "two levels": {},
    "three levels, two layers": {"ch_mult": (1, 2, 2), "layers": 2},
    "one level": {"ch_mult": (1,), "attends": (0,)},
    "no attention but in the middle": {"attends": ()},
    "attention everywhere": {"attends": (0, 1)},
    "other widths": {"ch": 64, "ch_mult": (1, 1, 3)},
}


def outputs(unet: UNet, forward: Any, state: State) -> tuple[Tensor, Tensor]:
    """(ours, theirs) for one batch at three times."""
    channels = unet.config.in_channels
    x = torch.randn(3, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 7, 9])
    with torch.inference_mode():
        return unet(x, t), forward(state, x, t)


def assert_same(unet: UNet, forward: Any, state: State) -> None:
    ours, theirs = outputs(unet, forward, state)
    # Some 30 layers of float32 in another order of summation; weights are drawn to keep the scale.
    assert (ours - theirs).abs().max() < 5e-6 * theirs.abs().max()


def assert_process(found: GaussianDiffusion, expected: GaussianDiffusion) -> None:
    assert torch.equal(found.schedule.betas, expected.schedule.betas)
    settings = ("prediction", "variance", "clip", "last_step_noise", "timestep_scale")
    assert {s: getattr(found, s) for s in settings} == {s: getattr(expected, s) for s in settings}


def other(state: State) -> State:
    """Another state dict of the same network."""
    return {key: value + 0.01 for key, value in state.items()}


# ---- pesser and ermongroup


@pytest.mark.parametrize("name", SIZES)
def test_pesser(name: str, tmp_path: Path) -> None:
    state = pesser_state(**SIZES[name])
    torch.save(state, tmp_path / "model-790000.ckpt")
    unet, diffusion = from_pretrained(tmp_path / "model-790000.ckpt")
    assert not unet.training
    assert sum(p.numel() for p in unet.parameters()) == sum(v.numel() for v in state.values())
    assert_same(unet, pesser_forward, state)
    assert_process(diffusion, GaussianDiffusion(NoiseSchedule.linear(1000), variance="fixed_large"))


def test_pesser_without_resampling_convolutions(tmp_path: Path) -> None:
    state = pesser_state(resamp_with_conv=False)
    torch.save(state, tmp_path / "model.ckpt")
    assert_same(from_pretrained(tmp_path / "model.ckpt")[0], pesser_forward, state)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_ermongroup(prefix: str, tmp_path: Path) -> None:
    """[network, optimizer, epoch, step, averages]; DataParallel names the first alone."""
    state, averages = pesser_state(), other(pesser_state())
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    wrapped = {prefix + key: value for key, value in state.items()}
    wrapped[f"{prefix}logvar"] = averages["logvar"] = torch.zeros(1000)
    contents = [wrapped, optimizer.state_dict(), 3, 5000, averages]
    torch.save(contents, tmp_path / "ckpt.pth")
    assert_same(from_pretrained(tmp_path / "ckpt.pth")[0], pesser_forward, averages)
    assert_same(from_pretrained(tmp_path / "ckpt.pth", ema=False)[0], pesser_forward, state)
    torch.save(contents[:4], tmp_path / "plain.pth")
    assert_same(from_pretrained(tmp_path / "plain.pth")[0], pesser_forward, state)


def test_the_published_networks() -> None:
    """Their configurations, from shapes alone; the number of parameters is the papers'."""
    published = {
        35_746_307: ({"ch": 128, "ch_mult": (1, 2, 2, 2), "layers": 2}, 1, 32),
        113_673_219: ({"ch": 128, "ch_mult": (1, 1, 2, 2, 4, 4), "layers": 2}, 4, 256),
        78_700_803: ({"ch": 128, "ch_mult": (1, 2, 2, 2, 4), "layers": 2}, 2, 64),
    }
    for parameters, (sizes, level, pixels) in published.items():
        with torch.device("meta"):
            state = _without_draws(sizes, level)
        config = _config_of(state)
        assert config.sample_size == pixels
        with torch.device("meta"):
            unet = UNet(config)
        assert sum(p.numel() for p in unet.parameters()) == parameters


def _without_draws(sizes: dict[str, Any], level: int) -> State:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, generator: torch.empty(shape))
        return pesser_state(**sizes, attends=(level,))


def _config_of(state: State) -> fastddpm.UNetConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastddpm.checkpoint.ports.fill", lambda unet, state: unet)
        return read_network(PESSER, state, "shapes").config


def test_the_variance_that_each_was_sampled_with(tmp_path: Path) -> None:
    large = pesser_state(ch_mult=(1, 1, 2, 2, 4, 4), attends=(4,))
    torch.save(large, tmp_path / "lsun.ckpt")
    unet, diffusion = from_pretrained(tmp_path / "lsun.ckpt")
    assert diffusion.variance == "fixed_small" and unet.config.sample_size == 256
    learned = pesser_state(out_channels=6)
    torch.save(learned, tmp_path / "learned.ckpt")
    assert from_pretrained(tmp_path / "learned.ckpt")[1].variance == "learned"


def test_settings_of_ho(tmp_path: Path) -> None:
    torch.save(pesser_state(), tmp_path / "model.ckpt")
    kwargs = {
        "beta_schedule": "quad",
        "beta_start": 1e-3,
        "beta_end": 0.05,
        "num_diffusion_timesteps": 100,
        "model_mean_type": "xstart",
        "model_var_type": "fixedsmall",
        "resolution": 16,
        "total_bs": 128,
    }
    expected = GaussianDiffusion(
        NoiseSchedule.scaled_linear(100, 1e-3, 0.05), prediction="sample", variance="fixed_small"
    )
    unet, diffusion = from_pretrained(tmp_path / "model.ckpt", kwargs=kwargs)
    assert_process(diffusion, expected)
    assert unet.config.sample_size == 16
    (tmp_path / "kwargs.json").write_text(json.dumps(kwargs))
    assert_process(from_pretrained(tmp_path)[1], expected)
    for name, extra in (("jsd", {}), ("const", {"beta_end": 0.05})):
        given = {"beta_schedule": name, "num_diffusion_timesteps": 100, "beta_end": 0.05}
        _, diffusion = from_pretrained(tmp_path / "model.ckpt", kwargs=given)
        betas = NoiseSchedule.named(name, 100, **extra).betas
        assert torch.equal(diffusion.schedule.betas, betas)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"beta_shedule": "linear"}, "unknown settings beta_shedule"),
        ({"beta_schedule": "cosine"}, "beta_schedule: expected linear, quad"),
        ({"model_mean_type": "v"}, "model_mean_type: expected eps"),
        ({"model_var_type": "learned"}, "does not fit 3 input and 3 output channels"),
        ({"num_diffusion_timesteps": 10**12}, "expected 1 to 1000000 diffusion steps"),
        ({"num_diffusion_timesteps": "1000"}, "num_diffusion_timesteps: expected int"),
        ({"block_size": 2}, "blocks of pixels"),
        ({"beta_start": -1.0}, "expected every beta in"),
    ],
)
def test_settings_that_are_none(kwargs: dict[str, Any], words: str, tmp_path: Path) -> None:
    torch.save(pesser_state(), tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=words):
        from_pretrained(tmp_path / "model.ckpt", kwargs=kwargs)


# ---- pytorch-ddpm


def write_ckpt(path: Path, state: State, averages: State) -> None:
    """main.py's dict."""
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    contents = {
        "net_model": state,
        "ema_model": averages,
        "sched": scheduler.state_dict(),
        "optim": optimizer.state_dict(),
        "step": 5000,
        "x_T": torch.zeros(4, 3, 32, 32),
    }
    torch.save(contents, path)


@pytest.mark.parametrize("name", SIZES)
def test_pytorch_ddpm(name: str, tmp_path: Path) -> None:
    state = numbered_state(**SIZES[name])
    averages = {k: v if "timembedding.0" in k else v + 0.01 for k, v in state.items()}
    write_ckpt(tmp_path / "ckpt.pt", state, averages)
    unet, _ = from_pretrained(tmp_path / "ckpt.pt")
    # The table is no parameter of ours.
    table = state["time_embedding.timembedding.0.weight"].numel()
    count = sum(v.numel() for v in state.values()) - table
    assert sum(p.numel() for p in unet.parameters()) == count
    assert_same(unet, numbered_forward, averages)
    assert_same(from_pretrained(tmp_path / "ckpt.pt", ema=False)[0], numbered_forward, state)


def test_the_process_of_pytorch_ddpm(tmp_path: Path) -> None:
    write_ckpt(tmp_path / "ckpt.pt", numbered_state(T=50), numbered_state(T=50))
    betas = torch.linspace(1e-4, 0.02, 50).double()
    expected = GaussianDiffusion(NoiseSchedule.from_betas(betas), variance="fixed_large", clip=None)
    assert_process(from_pretrained(tmp_path / "ckpt.pt")[1], expected)
    flags = "--T=50\n--beta_1=0.001\n--beta_T=0.05\n--ch_mult=1\n--ch_mult=2\n--notrain\n"
    flags += "--mean_type=xstart\n--var_type=fixedsmall\n--img_size=16\n--logdir=./logs\n"
    (tmp_path / "flagfile.txt").write_text(flags)
    unet, diffusion = from_pretrained(tmp_path)
    assert torch.equal(diffusion.schedule.betas, torch.linspace(0.001, 0.05, 50).double())
    assert (diffusion.prediction, diffusion.variance) == ("sample", "fixed_small")
    assert unet.config.sample_size == 16
    (tmp_path / "flagfile.txt").write_text("--T=1000\n")
    with pytest.raises(ValueError, match="T=1000 does not fit the 50 rows"):
        from_pretrained(tmp_path)
    (tmp_path / "flagfile.txt").write_text("--beta_T=large\n")
    with pytest.raises(ValueError, match="beta_T: expected a number, found 'large'"):
        from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown flags beta_t"):
        from_pretrained(tmp_path / "ckpt.pt", kwargs={"beta_t": 0.02})
    with pytest.raises(ValueError, match="mean_type: expected epsilon, xstart, xprev"):
        from_pretrained(tmp_path / "ckpt.pt", kwargs={"mean_type": "v"})


def test_its_chain_is_not_clipped(tmp_path: Path) -> None:
    """As in its diffusion.py, where x_0 is clipped once the mean has been taken."""
    state = numbered_state(T=6)
    write_ckpt(tmp_path / "ckpt.pt", state, state)
    unet, diffusion = from_pretrained(tmp_path / "ckpt.pt")
    noises = torch.randn(7, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sampler = fastddpm.Sampler(unet, diffusion, engine="reference", shape=(3, 16, 16))
    sampled = sampler.sample(2, noise=lambda step, shape: noises[step])
    betas = torch.linspace(1e-4, 0.02, 6).double()
    alphas, bars = 1 - betas, torch.cumprod(1 - betas, dim=0)
    x = noises[6]
    with torch.inference_mode():
        for t in reversed(range(6)):
            eps = numbered_forward(state, x, torch.full((2,), t))
            mean = (x - betas[t] / (1 - bars[t]).sqrt() * eps) / alphas[t].sqrt()
            x = (mean + (betas[t].sqrt() * noises[t] if t else 0)).float()
    assert (sampled - x).abs().max() < 1e-5


def test_a_time_embedding_of_another_kind(tmp_path: Path) -> None:
    state = numbered_state(T=20)
    state["time_embedding.timembedding.0.weight"] += 0.01
    write_ckpt(tmp_path / "ckpt.pt", state, state)
    with pytest.raises(ValueError, match="expected the sinusoidal table"):
        from_pretrained(tmp_path / "ckpt.pt")


# ---- Ho's TensorFlow checkpoints


def variables(state: State) -> dict[str, NDArray[Any]]:
    """A state dict of pesser's names as Ho's variables, by the rules of nn.py."""
    named = {}
    for key, value in state.items():
        module, leaf = key.rsplit(".", 1)
        name = re.sub(r"\b(down|up|block|attn)\.(\d+)", r"\1_\2", module).replace("dense.", "dense")
        name = "model/" + name.replace(".", "/")
        is_norm = "norm" in name.rsplit("/", 1)[1]
        leaf = {"weight": "gamma" if is_norm else "W", "bias": "beta" if is_norm else "b"}[leaf]
        array = value.numpy()
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        if array.ndim == 2:
            array = array.T
        if array.ndim == 4 and array.shape[:2] == (1, 1):
            array = array[0, 0]
        named[f"{name}/{leaf}"] = np.ascontiguousarray(array)
    return named


def write_ho(prefix: Path, state: State, averages: State | None = None, **how: int) -> None:
    """What TPUEstimator leaves: weights, averages, Adam's moments, counters."""
    named = variables(state)
    contents: dict[str, NDArray[Any]] = dict(named)
    if averages is not None:
        shadow = variables(averages)
        contents |= {f"{name}/ExponentialMovingAverage": shadow[name] for name in named}
    contents |= {f"{name}/Adam": np.zeros_like(v) for name, v in named.items() if v.ndim == 1}
    contents |= {"global_step": np.array(790000), "beta1_power": np.array(0.5, np.float32)}
    write_bundle(prefix, contents, **how)


@pytest.fixture(scope="module")
def ho(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, State]:
    """A folder with a TensorFlow checkpoint, its weights and its averages."""
    folder = tmp_path_factory.mktemp("ho")
    state = pesser_state(ch_mult=(1, 2, 1), layers=2)
    averages = other(state)
    write_ho(folder / "model.ckpt-790000", state, averages)
    return folder, state, averages


def test_names_of_ho(ho: tuple[Path, State, State]) -> None:
    named = variables(ho[1])
    shapes = {
        "model/temb/dense0/W": (32, 128),
        "model/conv_in/W": (3, 3, 3, 32),
        "model/down_1/block_0/nin_shortcut/W": (32, 64),
        "model/down_1/attn_0/proj_out/b": (64,),
        "model/down_0/downsample/conv/W": (3, 3, 32, 32),
        "model/mid/attn_1/norm/gamma": (32,),
        "model/mid/block_2/temb_proj/W": (128, 32),
        "model/up_2/upsample/conv/b": (32,),
        "model/norm_out/beta": (32,),
    }
    assert {name: named[name].shape for name in shapes} == shapes


def test_ho_s_averages_and_weights(ho: tuple[Path, State, State]) -> None:
    folder, state, averages = ho
    for path in (folder, folder / "model.ckpt-790000", folder / "model.ckpt-790000.index"):
        unet, diffusion = from_pretrained(path)
        assert_same(unet, pesser_forward, averages)
    assert_process(diffusion, GaussianDiffusion(NoiseSchedule.linear(1000), variance="fixed_large"))
    assert_same(from_pretrained(folder, ema=False)[0], pesser_forward, state)


def test_ho_s_own_settings(tmp_path: Path) -> None:
    write_ho(tmp_path / "model.ckpt-1", pesser_state(), pesser_state())
    kwargs = {"exp_name": "x", "model_var_type": "fixedsmall", "num_diffusion_timesteps": 100}
    (tmp_path / "kwargs.json").write_text(json.dumps(kwargs))
    _, diffusion = from_pretrained(tmp_path)
    assert diffusion.variance == "fixed_small" and diffusion.num_steps == 100


def test_a_checkpoint_without_averages(tmp_path: Path) -> None:
    state = pesser_state()
    write_ho(tmp_path / "model.ckpt-1", state)
    with pytest.raises(ValueError, match=r"have no average, .*ema=False takes the weights"):
        from_pretrained(tmp_path)
    assert_same(from_pretrained(tmp_path, ema=False)[0], pesser_forward, state)


def test_another_program_s_checkpoint(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bert", {"encoder/kernel": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="expected one network of Ho's"):
        from_pretrained(tmp_path)


GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no golden sets in {GOLDEN}")
@pytest.mark.parametrize("family", ["TensorFlow", "pesser"])
def test_the_output_that_ho_s_source_gave(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored case unet_ho: drawn weights, written in each layout, read, run."""
    from test_golden import _loaded

    check, _, context = _loaded(monkeypatch)
    case = next(c for c in context.man["cases"] if c["group"] == "unet_ho")
    from golden_groups import networks

    inputs = context.inputs(case)
    drawn = networks.load(inputs["model"], case["config"]).state_dict()
    state = _pesser_names(drawn)
    if family == "TensorFlow":
        write_ho(tmp_path / "model.ckpt-1", state, state)
    else:
        torch.save(state, tmp_path / "model.ckpt")
    unet, _ = from_pretrained(tmp_path)
    with torch.inference_mode():
        out = unet(torch.tensor(inputs["x"]), torch.tensor(inputs["timesteps"])).numpy()
    for expected in case["outputs"].values():
        good, ratio, _ = check.compare(context, expected, out)
        assert good, f"at {ratio} of its tolerance"


@pytest.mark.parametrize("family", ["pytorch-ddpm", "ermongroup"])
def test_the_output_that_the_original_code_gave(family: str, tmp_path: Path) -> None:
    """original_outputs.json: every 36th number of what it computed of the drawn state dict."""
    stored = json.loads((Path(__file__).parent / "original_outputs.json").read_text())[family]
    if family == "pytorch-ddpm":
        state, forward = numbered_state(), numbered_forward
        write_ckpt(tmp_path / "ckpt.pt", state, state)
        unet, _ = from_pretrained(tmp_path / "ckpt.pt")
    else:
        state, forward = pesser_state(), pesser_forward
        torch.save([state, {}, 3, 5000, state], tmp_path / "ckpt.pth")
        unet, _ = from_pretrained(tmp_path / "ckpt.pth")
    ours, _ = outputs(unet, forward, state)
    expected = torch.tensor(stored["output"])
    assert (ours.flatten()[:: stored["every"]] - expected).abs().max() < 5e-6 * expected.abs().max()


def _pesser_names(state: dict[str, Tensor]) -> State:
    """diffusers' names of a network of two levels with one layer -> pesser's."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in (
            (r"^time_embedding\.linear_1", "temb.dense.0"),
            (r"^time_embedding\.linear_2", "temb.dense.1"),
            (r"^conv_norm_out", "norm_out"),
            (r"^mid_block\.resnets\.0", "mid.block_1"),
            (r"^mid_block\.resnets\.1", "mid.block_2"),
            (r"^mid_block\.attentions\.0", "mid.attn_1"),
            (r"^down_blocks", "down"),
            (r"^up_blocks\.0", "up.1"),
            (r"^up_blocks\.1", "up.0"),
            (r"\.resnets", ".block"),
            (r"\.attentions", ".attn"),
            (r"\.(down|up)samplers\.0", r".\1sample"),
            (r"time_emb_proj", "temb_proj"),
            (r"conv_shortcut", "nin_shortcut"),
            (r"group_norm", "norm"),
            (r"to_out\.0", "proj_out"),
            (r"\.to_([qkv])", r".\1"),
        ):
            key = re.sub(pattern, name, key)
        is_matrix = re.search(r"\.(q|k|v|proj_out)\.weight$", key)
        renamed[key] = value[:, :, None, None] if is_matrix else value
    return renamed


# ---- what does not fit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "read"), [(pesser_state, read_ho), (numbered_state, read_pytorch_ddpm)]
)
def test_every_missing_or_bent_tensor_is_found(draw: Any, read: Any, tmp_path: Path) -> None:
    """Whatever the others say of the architecture."""
    state, path = draw(), tmp_path / "model.ckpt"
    for key, value in state.items():
        rest = {k: v for k, v in state.items() if k != key}
        for change in ({}, {key: value[..., 1:]}):
            with pytest.raises(ValueError) as error:
                read(rest | change, path, {})
            assert str(path) in str(error.value)
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"unexpected keys \(1\):\n    extra.weight"):
        from_pretrained(tmp_path / "model.ckpt")


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for contents, words in (
        ([1, 2], "expected a state dict of tensors under 0, found int"),
        ([], "found an empty list"),
        ({}, "found an empty dict"),
        ({"epoch": 3, "lr": 0.1}, "found a dict with other values under epoch, lr"),
        ({"model": {"a": 1}}, "expected a state dict of tensors under 'model', found dict"),
        (torch.zeros(2), "found Tensor"),
        ({"ema_model": {"a": torch.zeros(1)}}, "expected .* the names of OpenAI"),
    ):
        torch.save(contents, path)
        with pytest.raises(ValueError, match=words):
            from_pretrained(path)
    torch.save({"ema_model": pesser_state()}, path)
    with pytest.raises(ValueError, match="found averages only"):
        from_pretrained(path, ema=False)
    assert from_pretrained(path)[0].config.in_channels == 3
