"""Checkpoints that were damaged, or made to do harm: a clear error, and nothing else happens.

Of every family a real file is cut, flipped and bent by hypothesis; `hostile_checkpoints` holds
those that were written by hand. The error is a ValueError or an OSError with a message.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hostile_checkpoints import CASES, TRACE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from port_references import State, numbered_state, pesser_state
from test_checkpoint_lucidrains import tables
from test_checkpoint_lucidrains import write as write_lucidrains
from test_checkpoint_ports import write_ckpt, write_ho
from torch import Tensor

from fastddpm import GaussianDiffusion, NoiseSchedule, from_pretrained, save_pretrained
from fastddpm.checkpoint import save_openai
from fastddpm.unet import UNet, UNetConfig

# As much as a few images of the published networks take; the least of the bombs claims 1 GB.
MOST_MEMORY_KIB = 300 * 1024

many = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", CASES)
def test_hostile_checkpoints_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    path = CASES[name](tmp_path / "checkpoint")
    with pytest.raises((ValueError, OSError)) as error:
        from_pretrained(path)
    assert str(error.value) and len(str(error.value)) < 5000
    assert "\x1b" not in str(error.value)
    assert not (tmp_path / TRACE).exists()


@pytest.mark.slow
def test_none_of_them_takes_memory() -> None:
    """All in one process of their own, whose largest size is compared with that before."""
    script = Path(__file__).parent / "hostile_checkpoints.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=900, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["grown_kib"] < MOST_MEMORY_KIB


# ---- real files, damaged


def _ermongroup(folder: Path, state: State) -> None:
    torch.save([state, {"state": {}, "param_groups": []}, 1, 2, state], folder / "ckpt.pth")


def _small_unet(groups: int = 2) -> UNet:
    return UNet(
        UNetConfig(
            sample_size=8,
            block_out_channels=(2 * groups, 2 * groups),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=groups,
            attention_head_dim=None,
        )
    )


def _diffusers(folder: Path, _: State) -> None:
    save_pretrained(folder, _small_unet(), GaussianDiffusion(NoiseSchedule.linear(10)))


def _openai(folder: Path, _: State) -> None:
    diffusion = GaussianDiffusion(NoiseSchedule.openai_linear(1000), variance="fixed_large")
    save_openai(folder, _small_unet(32), diffusion)


def _openai_pt(folder: Path, state: State) -> None:
    from safetensors.torch import load_file

    _openai(folder, state)
    torch.save(load_file(folder / "model.safetensors"), folder / "model.pt")
    (folder / "model.safetensors").unlink()


# The writer of each family, and the files of it that are damaged.
FAMILIES: dict[str, tuple[Callable[[Path, State], None], list[str]]] = {
    "Ho": (
        lambda folder, state: write_ho(folder / "model.ckpt-1", state, state),
        ["model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"],
    ),
    "Ho, compressed": (
        lambda folder, state: write_ho(folder / "model.ckpt-1", state, state, compress=1),
        ["model.ckpt-1.index"],
    ),
    "pesser": (lambda folder, state: torch.save(state, folder / "model.ckpt"), ["model.ckpt"]),
    "ermongroup": (_ermongroup, ["ckpt.pth"]),
    "pytorch-ddpm": (
        lambda folder, _: write_ckpt(
            folder / "ckpt.pt",
            numbered_state(T=8, ch_mult=(1,)),
            numbered_state(T=8, ch_mult=(1,)),
        ),
        ["ckpt.pt"],
    ),
    "lucidrains": (
        lambda folder, state: write_lucidrains(
            folder / "model-1.pt", state, tables(NoiseSchedule.cosine(10), "pred_noise")
        ),
        ["model-1.pt"],
    ),
    "diffusers": (
        _diffusers,
        ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"],
    ),
    "OpenAI": (_openai, ["kwargs.json", "model.safetensors"]),
    "OpenAI's .pt": (_openai_pt, ["model.pt"]),
}


class Intact(NamedTuple):
    """A checkpoint, and the file of it that is to be damaged."""

    folder: Path
    path: Path
    content: bytes

    def __repr__(self) -> str:
        return f"Intact({self.path.name})"


@pytest.fixture(
    scope="module",
    params=[(family, name) for family, (_, names) in FAMILIES.items() for name in names],
    ids=lambda param: f"{param[0]}: {param[1]}",
)
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Intact:
    family, name = request.param
    folder = tmp_path_factory.mktemp("intact")
    FAMILIES[family][0](folder, pesser_state(ch_mult=(1,), attends=()))
    from_pretrained(folder)
    return Intact(folder, folder / name, (folder / name).read_bytes())


def refused(intact: Intact, damaged: bytes) -> bool:
    """Whether the checkpoint with that file is refused; if not, it must be a network."""
    intact.path.write_bytes(damaged)
    try:
        unet, diffusion = from_pretrained(intact.folder)
    except (ValueError, OSError) as error:
        assert str(error) and len(str(error)) < 5000
        return True
    finally:
        intact.path.write_bytes(intact.content)
    assert sum(p.numel() for p in unet.parameters()) > 0 and diffusion.num_steps > 0
    return False


# Where the structure is: at the ends of the file, and anywhere.
def places(size: int) -> st.SearchStrategy[int]:
    near = st.integers(0, min(3000, size - 1))
    return near | near.map(lambda i: size - 1 - i) | st.integers(0, size - 1)


@many
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files(intact: Intact, share: float) -> None:
    # The last bytes of JSON are a brace and a newline, which may go.
    kept = int(share * (len(intact.content) - 1))
    # Of a bundle's data, nothing may be needed of the end: Adam's moments and counters.
    partly = ".data-" in intact.path.name
    assert refused(intact, intact.content[:kept]) or partly


@many
@given(data=st.data())
def test_flipped_bits(intact: Intact, data: st.DataObject) -> None:
    damaged = bytearray(intact.content)
    for at in data.draw(st.lists(places(len(damaged)), min_size=1, max_size=4)):
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    refused(intact, bytes(damaged))


@many
@given(data=st.data())
def test_pieces_moved_and_put_in(intact: Intact, data: st.DataObject) -> None:
    content, size = intact.content, len(intact.content)
    at, start = data.draw(places(size)), data.draw(places(size))
    piece = content[start : start + data.draw(st.integers(0, 64))]
    piece = data.draw(st.sampled_from([piece, b"\xff" * 9, b"\0" * 8, b"9" * 30]) | st.binary())
    cut = data.draw(st.integers(0, 64))
    refused(intact, content[:at] + piece + content[at + cut :])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_flipped_bits_of_ho_s_are_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Checksums: a damaged bundle is refused, or what is read is what was written."""
    folder = _bundle(tmp_path_factory)
    path = data.draw(st.sampled_from(sorted(folder.glob("model.ckpt-1.*"))))
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[data.draw(places(len(damaged)))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    try:
        state = from_pretrained(folder)[0].state_dict()
        assert all(torch.equal(value, _BUNDLE[1][key]) for key, value in state.items())
    except ValueError:
        pass
    finally:
        path.write_bytes(content)


_BUNDLE: list[Any] = []


def _bundle(factory: pytest.TempPathFactory) -> Path:
    if not _BUNDLE:
        folder = factory.mktemp("bundle")
        state = pesser_state(ch_mult=(1,), attends=())
        write_ho(folder / "model.ckpt-1", state, state)
        _BUNDLE.extend([folder, from_pretrained(folder)[0].state_dict()])
    return Path(_BUNDLE[0])


# ---- tensors of other shapes, types and names


SHAPED: dict[str, tuple[State, Callable[[State, Path], None]]] = {
    "pesser": (
        pesser_state(attends=(0, 1)),
        lambda state, path: torch.save(state, path / "model.ckpt"),
    ),
    "pytorch-ddpm": (
        numbered_state(T=8, attends=(0, 1)),
        lambda state, path: torch.save({"ema_model": state}, path / "ckpt.pt"),
    ),
}


def other_tensors(value: Tensor) -> st.SearchStrategy[Tensor]:
    """Tensors that are not `value` but could stand in its place."""
    sizes = st.sampled_from([0, 1, 2, 3, 31, 32, 33, 64])
    shapes = st.lists(sizes, max_size=4).filter(lambda shape: math.prod(shape) < 10**5)
    dtypes = st.sampled_from([torch.int64, torch.bool, torch.complex64, torch.float32])
    built = st.builds(torch.zeros, shapes, dtype=dtypes)
    return built.filter(lambda t: t.shape != value.shape or not t.is_floating_point())


@many
@given(data=st.data())
@pytest.mark.parametrize("family", SHAPED)
def test_tensors_of_other_shapes_and_types(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state, write = SHAPED[family]
    folder = tmp_path_factory.mktemp("shaped")
    keys = data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=5))
    changed = {key: data.draw(other_tensors(state[key])) for key in keys}
    write(state | changed, folder)
    with pytest.raises(ValueError):
        from_pretrained(folder)


@many
@given(data=st.data())
@pytest.mark.parametrize("family", SHAPED)
def test_other_names(
    family: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A renamed tensor is missing under its name, however the new one reads."""
    state, write = SHAPED[family]
    folder = tmp_path_factory.mktemp("named")
    key = data.draw(st.sampled_from(sorted(state)))
    parts = sorted({part for name in state for part in name.split(".")} | {"99999999", "-1", ""})
    name = data.draw(st.lists(st.sampled_from(parts), max_size=6).map(".".join))
    renamed = {name if k == key else k: value for k, value in state.items()}
    if name == key:
        return
    write(renamed, folder)
    with pytest.raises(ValueError):
        from_pretrained(folder)


# ---- settings


numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 10**12, 10**30, 1e300])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
HO = ("beta_schedule", "beta_start", "beta_end", "num_diffusion_timesteps", "model_mean_type")
SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "config": ("diffusers", "config.json", tuple(UNetConfig.__dataclass_fields__)),
    "scheduler": ("diffusers", "scheduler_config.json", ()),
    "OpenAI": ("OpenAI", "kwargs.json", ()),
    "Ho": ("pesser", "kwargs.json", (*HO, "model_var_type", "block_size", "resolution")),
}


@pytest.fixture(scope="module", params=SETTINGS)
def configured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Intact, tuple[str, ...]]:
    """A checkpoint whose settings change, and their names."""
    family, name, names = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp("settings")
    FAMILIES[family][0](folder, pesser_state(ch_mult=(1,), attends=()))
    path = folder / name
    if not path.exists():
        path.write_text("{}")
    content = path.read_bytes()
    return Intact(folder, path, content), names or tuple(json.loads(content))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_settings_of_any_value(
    configured: tuple[Intact, tuple[str, ...]], data: st.DataObject
) -> None:
    intact, names = configured
    known = st.sampled_from([*names, "fastddpm", "_class_name"])
    changes = data.draw(st.dictionaries(known, values, min_size=1, max_size=2))
    refused(intact, json.dumps(json.loads(intact.content) | changes).encode())
