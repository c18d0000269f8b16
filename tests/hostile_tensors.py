"""Torch and safetensors files whose tensors claim more than there is."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch
from hostile_cases import add, case
from port_references import pesser_state


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
add("a storage of 8 GB", lambda folder: _patched(folder, True, _THOUSAND, _BILLIONS))
add("a shape of 8 GB", lambda folder: _patched(folder, False, _THOUSAND, _BILLIONS))
add(
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
    add(
        f"a safetensors header {what}",
        lambda folder, head=head, length=length: _safetensors(folder, head, length),
    )
