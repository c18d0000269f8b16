"""Settings: one dataclass, its TOML file and its flags."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fastddpm.cli import train as cli_train
from fastddpm.train import TrainConfig
from fastddpm.train.settings import as_dict, build, differences, leaves, load, to_toml
from fastddpm.unet import UNetConfig


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_file_and_flags_agree(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        'data = "x"\nsteps = 7\nbetas = [0.5, 0.9]\nlearning_rate = 1\n'
        "[unet]\nblock_out_channels = [32, 64, 64, 64]\nattention_head_dim = 'none'\n",
    )
    flags = {
        "data": "x",
        "steps": "7",
        "betas": "0.5,0.9",
        "learning_rate": "1",
        "unet.block_out_channels": "32,64,64,64",
        "unet.attention_head_dim": "none",
    }
    from_file, from_flags = load(TrainConfig, path, {}), load(TrainConfig, None, flags)
    assert from_file == from_flags
    assert from_file.unet.block_out_channels == (32, 64, 64, 64)
    assert from_file.unet.attention_head_dim is None
    assert isinstance(from_file.learning_rate, float)


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = _file(tmp_path, 'data = "x"\nsteps = 7\nbatch_size = 3\n[unet]\ndropout = 0.1\n')
    config = load(TrainConfig, path, {"steps": "8", "unet.layers_per_block": "1"})
    assert (config.steps, config.batch_size) == (8, 3)
    assert (config.unet.dropout, config.unet.layers_per_block) == (0.1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'data = "x"\nbatchsize = 3',
            r"run\.toml: unknown setting batchsize \(did you mean batch_",
        ),
        (
            'data = "x"\n[unet]\ndropot = 0.1',
            r"unknown setting unet\.dropot \(did you mean dropout",
        ),
        ('data = "x"\nsteps = "many"', "steps: expected integer, got 'many'"),
        ('data = "x"\nsteps = true', "steps: expected integer, got True"),
        ('data = "x"\nsteps = 1.5', "steps: expected integer, got 1.5"),
        ('data = "x"\nsteps = 0', r"steps: .*>= 1\): got 0"),
        ('data = "x"\nema_decay = nan', r"ema_decay: .*0.0 to 1.0\): got nan"),
        ('data = "x"\nflip = 1', "flip: expected true|false, got 1"),
        ('data = "x"\nbetas = [0.9]', r"betas: expected number,number, got \[0.9\]"),
        ('data = "x"\nloss = "simpel"', r"loss: expected one of simple, .*did you mean simple"),
        ('data = "x"\nunet = 3', r"unet is a table \[unet\], got 3"),
        ("steps = 3", "data: expected a path"),
        ("steps = = 3", "not a TOML file"),
        ('data = "x"\nbatch_size = 2\naccumulate = 3', "accumulate: expected at most batch_size"),
        ('data = "x"\nvariance = "learned"', "unet.out_channels: expected 6"),
        (
            'data = "x"\nvariance = "learned_range"\n[unet]\nout_channels = 6',
            "loss: expected vlb, rescaled_vlb or hybrid for variance = learned_range, got simple",
        ),
        (f'data = "x"\nseed = {2**64}', "seed: .*got 18446744073709551616"),
        ('data = "x"\nvalidate_every = 5', "expected validation_images > 0"),
        ('data = "x"\nlabel_dropout = 0.1', "expected unet.num_class_embeds"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(TrainConfig, _file(tmp_path, text), {})


@pytest.mark.parametrize("flag", ["1e3", "x", "", "1,2", "none"])
def test_a_wrong_flag_is_named(flag: str) -> None:
    with pytest.raises(ValueError, match="--batch-size: expected integer"):
        load(TrainConfig, None, {"data": "x", "batch_size": flag})


@given(
    steps=st.integers(1, 10**9),
    learning_rate=st.floats(0, 10, allow_nan=False),
    beta_start=st.none() | st.floats(0, 1),
    data=st.text(min_size=1).filter(lambda s: s.isprintable()),
    channels=st.lists(st.integers(2, 20), min_size=1, max_size=5),
)
def test_toml_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    steps: int,
    learning_rate: float,
    beta_start: float | None,
    data: str,
    channels: list[int],
) -> None:
    unet = UNetConfig(
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        norm_num_groups=1,
        attention_head_dim=None,
    )
    config = TrainConfig(
        data=data, steps=steps, learning_rate=learning_rate, beta_start=beta_start, unet=unet
    )
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load(TrainConfig, path, {}) == config


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prediction", "foo", "prediction: expected one of epsilon, .*got 'foo'"),
        ("optimizer", "sgd", "optimizer: expected one of adam, adamw, got 'sgd'"),
        ("loss", "simpel", "loss: expected one of simple, .*did you mean simple"),
        ("steps", -3, r"steps: .*>= 1\): got -3"),
        ("steps", 1.5, "steps: expected integer, got 1.5"),
        ("steps", "3", "steps: expected integer, got '3'"),
        ("ema_decay", float("nan"), "ema_decay: .*got nan"),
        ("betas", (0.9,), "betas: expected number,number"),
        ("flip", 1, "flip: expected true|false, got 1"),
        ("seed", -1, "seed: .*got -1"),
        ("seed", 2**64, "seed: .*got 18446744073709551616"),
        ("unet", {"dropout": 0.5}, "unet: expected a UNetConfig, got {'dropout': 0.5}"),
    ],
)
def test_python_is_checked_like_a_file(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(data="x", **{name: value})
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TrainConfig(data="x"), **{name: value})


def test_python_converts_like_a_file(tmp_path: Path) -> None:
    path = _file(tmp_path, 'data = "x"\nlearning_rate = 1\nbetas = [0, 0.5]\nseed = 3\n')
    from_python = TrainConfig(data="x", learning_rate=1, betas=[0, 0.5], seed=3)  # type: ignore
    assert from_python == load(TrainConfig, path, {})
    assert to_toml(from_python) == to_toml(load(TrainConfig, path, {}))


def test_hybrid_needs_no_learned_variance() -> None:
    # GaussianDiffusion.training_losses: just mse if the variance is fixed.
    assert TrainConfig(data="x", loss="hybrid", variance="fixed_large").loss == "hybrid"


def test_differences_name_nested_fields() -> None:
    one = TrainConfig(data="x")
    other = dataclasses.replace(one, steps=5, unet=dataclasses.replace(one.unet, dropout=0.5))
    assert differences(as_dict(one), as_dict(one)) == []
    assert differences(as_dict(one), as_dict(other)) == ["steps", "unet.dropout"]


def test_build_needs_no_file() -> None:
    assert build(TrainConfig, {"data": "x"}) == TrainConfig(data="x")


def test_flags_are_the_fields() -> None:
    fields = {f.name for f in dataclasses.fields(TrainConfig)} - {"unet"}
    fields |= {f"unet.{f.name}" for f in dataclasses.fields(UNetConfig)}
    assert {s.name for s in leaves(TrainConfig)} == fields
    parameters = set(inspect.signature(cli_train.command()).parameters) - {"config"}
    assert {name.replace("__", ".") for name in parameters} == fields


def test_every_setting_has_help() -> None:
    for setting in leaves(TrainConfig):
        assert setting.name.startswith("unet.") or setting.metadata["help"]


def _app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    cli_train.register(app)
    return app


def test_help_lists_every_flag() -> None:
    result = CliRunner().invoke(_app(), ["train", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for setting in leaves(TrainConfig):
        assert setting.flag in result.output
    assert "images in one step" not in result.output or ">= 1" in result.output


def test_the_command_passes_file_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr(cli_train, "train_command", seen.append)
    path = _file(tmp_path, 'data = "x"\nflip = true\nsteps = 7\n')
    arguments = ["train", str(path), "--no-flip", "--unet-dropout", "0.25"]
    result = CliRunner().invoke(_app(), arguments)
    assert result.exit_code == 0, result.output
    (config,) = seen
    assert (config.flip, config.steps, config.unet.dropout) == (False, 7, 0.25)
