"""Checkpoints made to run code, to take memory or never to end. None of them is to be read.

CASES holds, by name, functions that write one into an empty folder and return the path to read.
`python hostile_checkpoints.py` reads them all in one process, and says how its memory grew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import resource
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from port_references import numbered_state, pesser_state
from safetensors.torch import save_file
from tensor_bundle_writer import masked, table

from fastddpm import GaussianDiffusion, NoiseSchedule, from_pretrained, save_pretrained
from fastddpm.checkpoint.tensor_bundle.protobuf import varint
from fastddpm.checkpoint.tensor_bundle.table import write_block
from fastddpm.checkpoint.tensor_bundle.writer import entry, header
from fastddpm.unet import UNet, UNetConfig

CASES: dict[str, Callable[[Path], Path]] = {}
Make = Callable[[Path], Path]
TRACE = "code-has-run"
HUGE = 10**12


def case(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        CASES[name] = make
        return make

    return add


def _add(name: str, make: Make) -> None:
    CASES[name] = make


# ---- pickles that call something


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _of_names(module: str, name: str) -> Any:
    """An object that pickles as module.name, whatever there is."""
    stand_in = type(name, (), {"__module__": module, "__qualname__": name})
    return stand_in


def _raw(folder: Path, program: bytes, name: str = "data.pkl") -> Path:
    """A torch archive with this pickle program in it."""
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"model/{name}", program)
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
    return path


def _global(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


_TOUCH = f"touch {TRACE}".encode()
_ONE_STRING = b"X" + struct.pack("<I", len(_TOUCH)) + _TOUCH + b"\x85"
_ONE_NUMBER = b"\x8a\x06" + HUGE.to_bytes(6, "little") + b"\x85"

for module, name in (
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "getoutput"),
    ("builtins", "eval"),
    ("torch.hub", "load"),
    ("torch._utils", "_import_dotted_name"),
    ("torch.storage", "_load_from_bytes"),
    ("fastddpm.cli", "main"),
):
    program = _global(module, name, _ONE_STRING)
    _add(f"pickle: {module}.{name}", lambda folder, program=program: _raw(folder, program))
for module, name in (
    ("builtins", "bytearray"),
    ("torch", "FloatTensor"),
    ("torch", "FloatStorage"),
    ("torch.storage", "UntypedStorage"),
    ("torch", "Size"),
    ("collections", "Counter"),
    ("torch", "Tensor"),
    ("torch", "empty"),
    ("builtins", "range"),
    ("builtins", "set"),
):
    program = _global(module, name, _ONE_NUMBER)
    _add(f"pickle: {module}.{name}(10^12)", lambda folder, p=program: _raw(folder, p))

_STACK = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(_TOUCH)]) + _TOUCH + b"\x85R."
_add("pickle: by names on the stack", lambda folder: _raw(folder, _STACK))
_add("pickle: INST", lambda folder: _raw(folder, b"(S'" + _TOUCH + b"'\nios\nsystem\n."))
_add("pickle: OBJ", lambda folder: _raw(folder, b"(cos\nsystem\nS'" + _TOUCH + b"'\no."))
_add("pickle: an extension", lambda folder: _raw(folder, b"\x80\x02\x82\x01."))
_add("pickle: no end", lambda folder: _raw(folder, b"\x80\x02" + b"]" * 100_000))
_DEEP = b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"."
_add("pickle: deep", lambda folder: _raw(folder, _DEEP))
_add("pickle: a string of 4 GB", lambda folder: _raw(folder, b"\x80\x02X\xff\xff\xff\xff."))
_add("pickle: nothing", lambda folder: _raw(folder, b""))
_add("pickle: a dict in itself", lambda folder: _raw(folder, b"\x80\x02}q\0X\x05\0\0\0modelh\0s."))


# Pairs, each of the one before twice, where they are hashed, printed or only deep.
_PAIRS, _TWICE = b"\x80\x02K\x01\x85", b"q\x02h\x02\x86"
_NESTED = {
    "as a key": b"}" + _PAIRS[2:] + _TWICE * 40 + b"K\x01s.",
    "as a storage": _PAIRS + _TWICE * 40 + b"Q.",
    "as a function": _PAIRS + _TWICE * 40 + b")R.",
    "a million deep, as a key": b"}K\x01" + b"\x85" * 10**6 + b"K\x01s.",
}
for what, program in _NESTED.items():
    _add(f"pickle: tuples {what}", lambda folder, program=program: _raw(folder, program))

# A list q1 of 10^5 numbers, of which a list holds 10^5 copies.
_LIST = b"\x80\x02](" + b"K\x01" * 10**5 + b"eq\x01"
_COPY = b"ctorch\nSize\nq\x02](" + b"h\x02h\x01\x85R" * 10**5 + b"e\x86."
_add("pickle: copies of a list", lambda folder: _raw(folder, _LIST + _COPY))
# Lists, each of which gets the next one twice when that one is still empty.
_LATE = b"".join(b"]q" + bytes([i]) for i in range(41)) + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i + 1]) + b"ah" + bytes([i + 1]) + b"a" for i in range(40)
)
_add("pickle: lists filled late", lambda folder: _raw(folder, b"\x80\x02" + _LATE + b"h\0)R."))

_BYTES = _global("__builtin__", "bytearray", b"J" + struct.pack("<i", 2 * 10**9) + b"\x85")
for name in ("data.PKL", "DATA.pkl"):
    _add(f"pickle: 2 GB in {name}", lambda folder, name=name: _raw(folder, _BYTES, name))


@case("a storage of 1 MB under a thousand names")
def _cases_of_a_name(folder: Path) -> Path:
    """Keys that differ by the case of their letters: torch reads the one storage for each."""
    path = folder / "model.pt"
    names = ["".join(letters) for letters in itertools.product("aA", repeat=10)]
    torch.save({f"temb.{name}": torch.zeros(1) for name in names}, path)
    with zipfile.ZipFile(path) as archive:
        program = archive.read("model/data.pkl")
    for i, name in enumerate(names):
        program = program.replace(_text(str(i)), _text(name))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", program.replace(b"K\x01t", b"J\0\0\4\0t"))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
        archive.writestr(f"model/data/{names[0]}", bytes(2**20))
    return path


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _with(contents: Callable[[Any], Any], legacy: bool) -> Make:
    def make(folder: Path) -> Path:
        import os

        path = folder / "model.pt"
        called = contents(Call(os.system, f"touch {TRACE}"))
        torch.save(called, path, _use_new_zipfile_serialization=not legacy)
        return path

    return make


_PLACES: dict[str, Callable[[Any], Any]] = {
    "pesser": lambda call: pesser_state(ch_mult=(1,)) | {"logvar": call},
    "ermongroup": lambda call: [pesser_state(ch_mult=(1,)), call, 1, 2],
    "pytorch-ddpm": lambda call: {"net_model": numbered_state(ch_mult=(1,)), "optim": call},
    "lucidrains": lambda call: {"model": {"betas": torch.ones(3)}, "scaler": call},
    "OpenAI": lambda call: {"input_blocks.0.0.weight": call},
    "Lightning": lambda call: {"state_dict": pesser_state(ch_mult=(1,)), "callbacks": [call]},
}
for place, contents in _PLACES.items():
    _add(f"a call in a file of {place}", _with(contents, legacy=False))
    _add(f"a call in an old file of {place}", _with(contents, legacy=True))


@case("settings of a training script")
def _namespace(folder: Path) -> Path:
    torch.save({"model": pesser_state(), "args": argparse.Namespace(lr=1)}, folder / "model.pt")
    return folder / "model.pt"


@case("a name of 10 MB")
def _long_name(folder: Path) -> Path:
    torch.save(pesser_state() | {"x" * 10**7: torch.zeros(1)}, folder / "model.pt")
    return folder / "model.pt"


@case("only names of 10 MB")
def _long_names(folder: Path) -> Path:
    torch.save({"x" * 10**7: torch.zeros(1)}, folder / "model.pt")
    return folder / "model.pt"


_COLOURS = b"\x80\x02cos\n\x1b[31msystem" + b"x" * 10**5 + b"\n."
_add("pickle: a long name that colours the terminal", lambda folder: _raw(folder, _COLOURS))


@case("a whole module")
def _module(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2), folder / "model.pt")
    return folder / "model.pt"


@case("a plain pickle")
def _plain(folder: Path) -> Path:
    import os

    (folder / "model.pt").write_bytes(pickle.dumps(Call(os.system, f"touch {TRACE}")))
    return folder / "model.pt"


# ---- tensors that claim more than there is


@case("tensors that are one number each")
def _expanded(folder: Path) -> Path:
    state = pesser_state(ch=64)
    shapes = {k: [s * 1024 if s % 64 == 0 else s for s in v.shape] for k, v in state.items()}
    torch.save({k: torch.zeros(1).expand(shapes[k]) for k in state}, folder / "model.pt")
    return folder / "model.pt"


@case("tensors without numbers")
def _meta(folder: Path) -> Path:
    with torch.device("meta"):
        state = {key: torch.empty(value.shape) for key, value in pesser_state().items()}
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


@case("sparse tensors")
def _sparse(folder: Path) -> Path:
    torch.save({key: v.to_sparse() for key, v in pesser_state().items()}, folder / "model.pt")
    return folder / "model.pt"


@case("shapes of 2^40 by 0")
def _empty(folder: Path) -> Path:
    state = pesser_state()
    torch.save({key: torch.empty(2**40, 0, 3, 3) for key in state}, folder / "model.pt")
    return folder / "model.pt"


def _patched(folder: Path, legacy: bool, old: bytes, new: bytes) -> Path:
    """A file of one tensor [1000] of which a number in the pickle is another."""
    path = folder / "model.pt"
    torch.save(
        {"temb.dense.0.weight": torch.zeros(1000)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    if legacy:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new))
        return path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old, new))
    return path


_THOUSAND, _BILLIONS = b"M\xe8\x03", b"J\xff\xff\xff\x7f"
_add("a storage of 8 GB", lambda folder: _patched(folder, True, _THOUSAND, _BILLIONS))
_add("a shape of 8 GB", lambda folder: _patched(folder, False, _THOUSAND, _BILLIONS))
_add(
    "a shape of 8 GB over a small storage",
    lambda folder: _patched(folder, False, _THOUSAND + b"\x85", _BILLIONS + b"\x85"),
)


@case("a member of 1 GB in 1 MB")
def _deflated(folder: Path) -> Path:
    path = folder / "model.pt"
    torch.save({"temb.dense.0.weight": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(10**9) if name.endswith("data/0") else content)
    return path


@case("a thousand members of the same bytes")
def _overlapping(folder: Path) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, 2))
        archive.writestr("model/data/0", bytes(10**6))
        member = archive.filelist[-1]
        for i in range(1, 1000):
            twin = zipfile.ZipInfo(f"model/data/{i}")
            twin.header_offset, twin.CRC = member.header_offset, member.CRC
            twin.compress_size, twin.file_size = member.compress_size, member.file_size
            archive.filelist.append(twin)
    return path


# ---- safetensors


def _safetensors(folder: Path, head: bytes, size: int | None = None) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(head) if size is None else size) + head)
    return path


_HEADS = {
    "of 2^63 bytes": (b"{}", 2**63),
    "of 90 MB in 10 bytes": (b"{}", 90_000_000),
    "deep": (b'{"a":' * 100_000, None),
    "of 4 TB": (
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        None,
    ),
    "with a shape beyond int64": (
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}',
        None,
    ),
    "with offsets that run backwards": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        None,
    ),
}
for what, (head, length) in _HEADS.items():
    _add(
        f"a safetensors header {what}",
        lambda folder, head=head, length=length: _safetensors(folder, head, length),
    )


# ---- TensorFlow


def _index(folder: Path, content: bytes, data: bytes = bytes(64)) -> Path:
    (folder / "model.ckpt-1.index").write_bytes(content)
    (folder / "model.ckpt-1.data-00000-of-00001").write_bytes(data)
    return folder


def _one(message: bytes) -> bytes:
    name = b"model/temb/dense0/W"
    return table([(b"", header()), (name, message), (name + b"/ExponentialMovingAverage", message)])


@case("a TensorFlow index of 1 TB")
def _large_index(folder: Path) -> Path:
    _index(folder, b"")
    with (folder / "model.ckpt-1.index").open("r+b") as file:
        file.truncate(10**12)
    return folder


@case("a Snappy block of 4 GB in 7 bytes")
def _snappy_bomb(folder: Path) -> Path:
    return _index(folder, _with_block(b"\xff\xff\xff\xff\x0f\x00a"))


@case("a Snappy block of nothing but copies")
def _snappy_copies(folder: Path) -> Path:
    copies = b"\x00a" + b"\xfe\x01\x00" * 500_000
    return _index(folder, _with_block(varint(1 + 64 * 500_000) + copies))


@case("keys that share a long prefix")
def _prefixes(folder: Path) -> Path:
    entries, key = bytearray(varint(0) + varint(1000) + varint(0) + b"a" * 1000), 1000
    for i in range(0x616162, 0x616162 + 300_000):
        entries += varint(key - 3) + varint(3) + varint(0) + i.to_bytes(3, "big")
    return _index(folder, _with_block(b"", bytes(entries)))


@case("a block of restart points that is read 2000 times")
def _repeated(folder: Path) -> Path:
    return _index(folder, _with_block(b"", restarts=2**17, times=2000))


def _with_block(compressed: bytes, plain: bytes = b"", restarts: int = 1, times: int = 1) -> bytes:
    """A table whose one data block is given, compressed or plain; its index has it `times`."""
    plain += bytes(4 * restarts) + struct.pack("<I", restarts)
    stored = compressed + b"\1" if compressed else plain + b"\0"
    out = bytearray(stored + struct.pack("<I", masked(stored)))
    handle = varint(0) + varint(len(stored) - 1)
    parts = []
    for contents in (write_block([]), write_block([(b"z", handle)] * times)):
        parts.append(varint(len(out)) + varint(len(contents)))
        out += contents + b"\0" + struct.pack("<I", masked(contents + b"\0"))
    return bytes(out) + b"".join(parts).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


for what, message in {
    "at an offset of 2^62": entry((16,), 2**62, bytes(64)),
    "of 2^62 numbers": entry((2**31, 2**31), 0, bytes(64)),
    "of 2^64 bytes": entry((16,), 0, bytes(64)).replace(b"\x28\x40", b"\x28" + varint(2**64 - 1)),
    "in data file 2^31": entry((16,), 0, bytes(64), shard=2**31),
    "of strings": entry((16,), 0, bytes(64), dtype=7),
}.items():
    _add(
        f"a TensorFlow tensor {what}",
        lambda folder, message=message: _index(folder, _one(message)),
    )


# ---- JSON and flags


def _checkpoint(folder: Path) -> Path:
    unet = UNet(
        UNetConfig(
            block_out_channels=(4,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            layers_per_block=1,
            norm_num_groups=2,
            attention_head_dim=4,
        )
    )
    save_pretrained(folder, unet, GaussianDiffusion(NoiseSchedule.linear(10)))
    return folder


def _edited(name: str, changes: dict[str, Any] | str) -> Make:
    def make(folder: Path) -> Path:
        path = _checkpoint(folder) / name
        if isinstance(changes, dict):
            text = json.dumps(json.loads(path.read_text()) | changes)
        else:
            text = changes
        path.write_text(text)
        return folder

    return make


_CONFIGS: list[dict[str, Any]] = [
    {"layers_per_block": 10**9},
    {"layers_per_block": HUGE},
    {"block_out_channels": [HUGE]},
    {"block_out_channels": [2**62]},
    {
        "block_out_channels": [4] * 5000,
        "down_block_types": ["DownBlock2D"] * 5000,
        "up_block_types": ["UpBlock2D"] * 5000,
    },
    {"in_channels": 2**62},
    {"time_embedding_dim": 2**63},
    {"num_class_embeds": 2**62},
    {"time_embedding_type": "learned", "num_train_timesteps": 2**62},
    {"norm_num_groups": 0},
    {"norm_eps": float("nan")},
    {"attention_head_dim": 10**400},
    {"sample_size": [1] * 1000},
    {"dims": 10**6},
    {"block_out_channels": 1e300},
    {"freq_shift": 10**18},
]
_SCHEDULERS: list[dict[str, Any]] = [
    {"num_train_timesteps": HUGE},
    {"num_train_timesteps": 1e18},
    {"num_train_timesteps": -1},
    {"num_train_timesteps": float("inf")},
    {"beta_end": float("nan")},
    {"beta_start": 1e308},
    {"trained_betas": [[[1]]]},
    {"trained_betas": "x" * 1000},
    {"beta_schedule": "__class__"},
    {"clip_sample_range": float("nan")},
]
for changes in _CONFIGS:
    _add(f"config.json {str(changes)[:60]}", _edited("config.json", changes))
for changes in _SCHEDULERS:
    _add(f"scheduler {str(changes)[:60]}", _edited("scheduler_config.json", changes))
for name in ("config.json", "scheduler_config.json"):
    _add(f"{name} of brackets", _edited(name, "[" * 10**6))
    _add(f"{name} of objects", _edited(name, '{"a":' * 10**6))
    _add(f"{name} of digits", _edited(name, '{"in_channels": ' + "9" * 10**5 + "}"))
    _add(f"{name} of null bytes", _edited(name, "\0" * 1000))


def _openai(kwargs: dict[str, Any]) -> Make:
    def make(folder: Path) -> Path:
        save_file({"input_blocks.0.0.weight": torch.zeros(2)}, folder / "model.safetensors")
        (folder / "kwargs.json").write_text(json.dumps(kwargs))
        return folder

    return make


_SMALL = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [2]}
for kwargs in (
    _SMALL | {"num_res_blocks": 10**9},
    _SMALL | {"model_channels": 32 * 2**60},
    _SMALL | {"channel_mult": [1e308]},
    _SMALL | {"channel_mult": [float("inf")]},
    _SMALL | {"channel_mult": [float("nan")]},
    _SMALL | {"channel_mult": []},
    _SMALL | {"diffusion_steps": HUGE, "rescale_timesteps": True},
    _SMALL | {"diffusion_steps": 10**9, "timestep_respacing": "1," * 10**5},
    _SMALL | {"timestep_respacing": "ddim" + "9" * 100},
    _SMALL | {"num_classes": 2**62},
    {"num_channels": 128, "attention_resolutions": "0"},
    {"num_channels": 128, "attention_resolutions": "1e-300"},
    {"num_channels": 128, "attention_resolutions": "nan"},
    {"num_channels": 128, "attention_resolutions": "inf"},
    {"num_channels": 128, "channel_mult": "1e400,nan"},
    {"num_channels": 128, "image_size": 0},
):
    _add(f"OpenAI's kwargs {str(kwargs)[:90]} {len(CASES)}", _openai(kwargs))


def _ho(kwargs: dict[str, Any]) -> Make:
    def make(folder: Path) -> Path:
        torch.save(pesser_state(ch_mult=(1,)), folder / "model.ckpt")
        (folder / "kwargs.json").write_text(json.dumps(kwargs))
        return folder

    return make


for kwargs in (
    {"num_diffusion_timesteps": HUGE},
    {"num_diffusion_timesteps": 0},
    {"beta_end": float("nan")},
    {"resolution": "x"},
    {"resolution": 0},
    {"beta_schedule": ["linear"]},
    {"model_var_type": {}},
):
    _add(f"Ho's kwargs {kwargs}", _ho(kwargs))


def _flags(text: str) -> Make:
    def make(folder: Path) -> Path:
        torch.save({"ema_model": numbered_state(T=20, ch_mult=(1,))}, folder / "ckpt.pt")
        (folder / "flagfile.txt").write_text(text)
        return folder

    return make


for text in ("--T=" + "9" * 10**4, "--T=-1", "--beta_1=nan", "--beta_T=1e300", "--img_size=0"):
    _add(f"pytorch-ddpm's flags {text[:20]}", _flags(text))


def main() -> None:
    """Read every case; print those that were read or failed otherwise, and the growth of memory."""
    with tempfile.TemporaryDirectory() as work:
        _checkpoint(Path(work, "warm"))
        from_pretrained(Path(work, "warm"))
        wrong = []
        paths = {}
        for i, (name, make) in enumerate(CASES.items()):
            Path(work, str(i)).mkdir()
            paths[name] = make(Path(work, str(i)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, path in paths.items():
            try:
                from_pretrained(path)
                wrong.append(f"{name}: read")
            except (ValueError, OSError) as error:
                if not str(error):
                    wrong.append(f"{name}: no message")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"wrong": wrong, "grown_kib": grown}, sys.stdout)


if __name__ == "__main__":
    main()
