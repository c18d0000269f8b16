"""Checkpoints that do not fit, damaged files, and checkpoints replaced whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastddpm.checkpoint import builtin_names, from_pretrained, save_openai, save_pretrained
from fastddpm.checkpoint.diffusers import CONFIG, WEIGHTS
from fastddpm.checkpoint.files import read_tensors
from fastddpm.checkpoint.pickles import read_pickle
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet, UNetConfig

TINY: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": 4,
}


def diffusion(T: int = 10) -> GaussianDiffusion:
    return GaussianDiffusion(NoiseSchedule.linear(T))


def filled(value: float, **fields: Any) -> UNet:
    unet = UNet(UNetConfig(**TINY | fields))
    for parameter in unet.parameters():
        parameter.data.fill_(value)
    return unet


def first(unet: UNet) -> float:
    return float(unet.conv_in.weight.detach().flatten()[0])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "model", filled(1.0), diffusion())
    return tmp_path / "model"


# ---- what does not fit


def test_everything_that_disagrees_is_in_one_message(checkpoint: Path) -> None:
    state = load_file(checkpoint / WEIGHTS)
    del state["conv_in.bias"]
    state["extra.weight"] = torch.zeros(2)
    state["time_embedding.linear_1.weight"] = torch.zeros(16, 5)
    state["conv_out.bias"] = torch.zeros(1, dtype=torch.int32)
    save_file(state, checkpoint / WEIGHTS)
    with pytest.raises(ValueError) as error:
        from_pretrained(checkpoint)
    message = str(error.value)
    assert str(checkpoint / WEIGHTS) in message
    assert "missing keys (1):\n    conv_in.bias" in message
    assert "unexpected keys (1):\n    extra.weight" in message
    assert "time_embedding.linear_1.weight: expected [16, 4], found [16, 5]" in message
    assert "conv_out.bias: torch.int32" in message


@pytest.mark.parametrize(
    ("change", "switch"),
    [
        ({"in_channels": 3}, "in_channels"),
        ({"out_channels": 2}, "out_channels"),
        ({"block_out_channels": [4, 6]}, "block_out_channels"),
        ({"layers_per_block": 2}, "layers_per_block"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"add_attention": False}, "add_attention"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"num_class_embeds": 3}, "num_class_embeds"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"downsample_type": "resnet"}, "downsample_type"),
        ({"attention_head_dim": 3}, "attention_head_dim"),
        ({"time_embedding_dim": 20}, "time_embedding_dim"),
    ],
)
def test_the_switch_that_would_explain_it_is_named(
    change: dict[str, Any], switch: str, checkpoint: Path
) -> None:
    if change == {"downsample_type": "resnet"}:
        kinds = {"down_block_types": ["AttnDownBlock2D"] * 2}
        shutil.rmtree(checkpoint)
        save_pretrained(checkpoint, filled(1.0, **kinds), diffusion())
    path = checkpoint / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="does not fit") as error:
        from_pretrained(checkpoint)
    assert switch in str(error.value).split("settings to check")[1]


def test_many_keys_are_counted_and_the_first_listed(checkpoint: Path) -> None:
    state = {f"layer.{i}": torch.zeros(1) for i in range(100)}
    save_file(state, checkpoint / WEIGHTS)
    with pytest.raises(ValueError, match=r"unexpected keys \(100\)(.|\n)*and 80 more"):
        from_pretrained(checkpoint)


def test_the_folder_of_a_training_run_points_to_its_model(tmp_path: Path, checkpoint: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"did you mean .*run.model\?"):
        from_pretrained(tmp_path / "run")


def test_nothing_there(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="built-in model"):
        from_pretrained("no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found nothing"):
        from_pretrained(tmp_path / "empty")
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=f"expected {WEIGHTS}, found"):
        from_pretrained(checkpoint)


def test_names_that_are_no_path() -> None:
    with pytest.raises(ValueError, match=r"expected .*got an empty name"):
        from_pretrained("")
    with pytest.raises(ValueError, match="found nothing at x"):
        from_pretrained("x" * 5000)


@pytest.mark.parametrize("save", [save_pretrained, save_openai])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.pt", "a.bin", "b.CKPT"])
def test_a_checkpoint_is_a_folder_and_not_a_tensor_file(
    save: Any, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*a folder is written"):
        save(tmp_path / name, filled(1.0), diffusion())
    assert not (tmp_path / name).exists()


def test_a_weights_file_stands_for_its_folder(checkpoint: Path) -> None:
    assert first(from_pretrained(checkpoint / WEIGHTS)[0]) == 1.0
    with pytest.raises(ValueError, match="kwargs are for families"):
        from_pretrained(checkpoint, kwargs={})
    (checkpoint / CONFIG).unlink()
    with pytest.raises(ValueError, match="input_blocks"):
        from_pretrained(checkpoint / WEIGHTS)


def test_built_in_models() -> None:
    assert "mnist" in builtin_names()
    for name in builtin_names():
        unet, process = from_pretrained(name)
        assert not unet.training and process.num_steps > 0


def test_half_precision_weights_are_widened(checkpoint: Path) -> None:
    state = {k: v.half() for k, v in load_file(checkpoint / WEIGHTS).items()}
    save_file(state, checkpoint / WEIGHTS)
    assert {p.dtype for p in from_pretrained(checkpoint)[0].parameters()} == {torch.float32}


# ---- damaged files


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("code-has-run",)


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"input_blocks.0.0.weight": Payload()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="objects other than tensors"):
        from_pretrained(tmp_path / "model.pt")
    assert not (tmp_path / "code-has-run").exists()


def test_other_contents_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a state dict, found list"):
        read_tensors(tmp_path / "list.pt")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match="other values under model"):
        read_tensors(tmp_path / "nested.pt")
    (tmp_path / "model.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ends in one of .safetensors"):
        read_tensors(tmp_path / "model.npz")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", '{"a": 1', "[" * 100_000])
def test_wrong_json(text: str, checkpoint: Path) -> None:
    (checkpoint / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=str(checkpoint / CONFIG)):
        from_pretrained(checkpoint)


class Intact(NamedTuple):
    """A checkpoint, and the file of it that is to be damaged."""

    folder: Path
    path: Path
    content: bytes

    def __repr__(self) -> str:
        return f"Intact({self.path.name})"


@pytest.fixture(scope="module", params=["zip.pt", "legacy.pt", WEIGHTS, CONFIG])
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Intact:
    folder = tmp_path_factory.mktemp("intact")
    save_pretrained(folder, filled(1.0), diffusion())
    if request.param.endswith(".pt"):
        state = load_file(folder / WEIGHTS)
        path = (folder / WEIGHTS).with_suffix(".bin")
        torch.save(state, path, _use_new_zipfile_serialization=request.param == "zip.pt")
        (folder / WEIGHTS).unlink()
    else:
        path = folder / request.param
    return Intact(folder, path, path.read_bytes())


many = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@many
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_a_value_error(intact: Intact, share: float) -> None:
    folder, path, content = intact
    # The last bytes of JSON are a brace and a newline, which may go.
    path.write_bytes(content[: int(share * (len(content) - 1))])
    try:
        with pytest.raises(ValueError):
            from_pretrained(folder)
    finally:
        path.write_bytes(content)


@many
@given(data=st.data())
def test_a_flipped_bit_is_read_or_a_value_error(intact: Intact, data: st.DataObject) -> None:
    """A flip within a number cannot be seen; any other is refused, and none is a crash."""
    folder, path, content = intact
    # Mostly where the structure is: the ends of the file.
    near = st.integers(0, min(2000, len(content) - 1))
    at = data.draw(
        near | near.map(lambda i: len(content) - 1 - i) | st.integers(0, len(content) - 1)
    )
    damaged = bytearray(content)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        unet, _ = from_pretrained(folder)
        assert sum(p.numel() for p in unet.parameters()) > 0
    except ValueError as error:
        assert str(error)
    finally:
        path.write_bytes(content)


# ---- replaced whole or not at all


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_saving_leaves_nothing_beside(checkpoint: Path) -> None:
    layout = {"model_index.json", "scheduler_config.json", CONFIG, WEIGHTS}
    assert names(checkpoint) == layout and names(checkpoint.parent) == {"model"}
    (checkpoint / "README.md").write_text("mine")
    save_pretrained(checkpoint, filled(2.0), diffusion())
    assert first(from_pretrained(checkpoint)[0]) == 2.0
    save_pretrained(checkpoint, filled(3.0, layers_per_block=2), diffusion(20))
    unet, process = from_pretrained(checkpoint)
    assert (first(unet), process.num_steps) == (3.0, 20)
    assert names(checkpoint) == layout | {"README.md"} and names(checkpoint.parent) == {"model"}


def test_saving_into_an_empty_folder_and_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_pretrained(tmp_path / "empty", filled(1.0), diffusion())
    assert first(from_pretrained(tmp_path / "empty")[0]) == 1.0
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_pretrained(tmp_path / "file", filled(1.0), diffusion())


@pytest.mark.parametrize("fields", [{}, {"layers_per_block": 2}], ids=["weights", "all"])
def test_stopped_at_any_call_the_old_or_the_new_is_there(
    fields: dict[str, Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write, sync and rename fails in turn, as on a full disk."""
    stops = 0
    for stop in range(100):
        calls = iter(range(1000))
        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "rename"):
                patch.setattr(os, name, failing(getattr(os, name), calls, stop))
            try:
                save_pretrained(checkpoint, filled(2.0, **fields), diffusion(20))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                stops += 1
            else:
                break
        unet, process = from_pretrained(checkpoint)
        whole = {(1.0, 1, 10), (2.0, fields.get("layers_per_block", 1), 20)}
        assert (first(unet), unet.config.layers_per_block, process.num_steps) in whole
        assert names(checkpoint.parent) == {"model"}
    assert stops >= 5
    assert first(from_pretrained(checkpoint)[0]) == 2.0


def failing(call: Any, calls: Any, stop: int) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == stop:
            raise OSError(errno.ENOSPC, "No space left on device")
        return call(*args, **kwargs)

    return wrapped


def test_the_network_does_not_share_memory_with_the_file(checkpoint: Path) -> None:
    unet, _ = from_pretrained(checkpoint)
    before: Tensor = unet.conv_in.weight.clone()
    (checkpoint / WEIGHTS).write_bytes(b"")
    assert torch.equal(unet.conv_in.weight, before)


def test_plain_values_beside_the_network_are_no_harm(checkpoint: Path) -> None:
    """What optimizers, schedules and scripts leave beside a network, of torch's own types."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    beside = {
        "optimizer": optimizer.state_dict(),
        "schedule": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "shape": torch.Size([3, 4]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "generator": torch.get_rng_state(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "notes": [None, True, 1.5, "text", (1, 2), {"a": 1}],
    }
    state = load_file(checkpoint / WEIGHTS)
    torch.save({"state_dict": state, **beside}, checkpoint / "all.pt")
    (checkpoint / WEIGHTS).unlink()
    value = read_pickle(checkpoint / "all.pt")
    assert value.keys() == {"state_dict", *beside}
    assert value["schedule"]["milestones"] == {3: 1, 5: 1}


# ---- mapped or copied


@pytest.mark.parametrize("mapped", [False, True])
def test_weights_in_the_mapping_of_their_file(
    mapped: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}

    def load(path: Path) -> dict[str, Tensor]:
        seen.update(load_file(path))
        return seen

    monkeypatch.setattr("safetensors.torch.load_file", load)
    unet, _ = from_pretrained(checkpoint, mapped=mapped)
    for key, value in unet.state_dict().items():
        assert (value.data_ptr() == seen[key].data_ptr()) == mapped
    # Replaced, not written into: what is mapped is the old file.
    save_pretrained(checkpoint, filled(2.0), diffusion())
    assert all(bool((value == 1.0).all()) for value in unet.state_dict().values())


def test_names_that_share_numbers_in_a_torch_file_are_given_their_own(checkpoint: Path) -> None:
    state = load_file(checkpoint / WEIGHTS)
    shared = state["down_blocks.0.resnets.0.norm1.weight"]
    state["down_blocks.0.resnets.0.norm2.weight"] = shared
    (checkpoint / WEIGHTS).unlink()
    torch.save(state, checkpoint / "diffusion_pytorch_model.bin")
    block: Any = from_pretrained(checkpoint)[0].down_blocks[0]
    block = block.resnets[0]
    assert block.norm1.weight.data_ptr() != block.norm2.weight.data_ptr()
