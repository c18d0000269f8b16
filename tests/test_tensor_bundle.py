"""TensorFlow's checkpoint format: checksums, messages, compression, tables, and whole bundles."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensor_bundle_writer import crc32c as slow_crc32c
from tensor_bundle_writer import masked, snappy, table, write_bundle

from fastddpm.checkpoint.tensor_bundle import TensorBundle, bundle_files, find_prefix
from fastddpm.checkpoint.tensor_bundle.crc32c import crc32c, mask, unmask
from fastddpm.checkpoint.tensor_bundle.protobuf import (
    field,
    read_fields,
    read_varint,
    signed,
    varint,
)
from fastddpm.checkpoint.tensor_bundle.snappy import decompress
from fastddpm.checkpoint.tensor_bundle.table import (
    MAX_KEY,
    MAX_KEYS,
    read_table,
    write_block,
    write_table,
)
from fastddpm.checkpoint.tensor_bundle.writer import entry, header

many = settings(max_examples=200, deadline=None)


# ---- checksums


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        # RFC 3720, appendix B.4, and the usual check value.
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_published_checksums(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum == slow_crc32c(data)


@many
@given(st.binary(max_size=5000))
def test_checksums_of_any_length(data: bytes) -> None:
    assert crc32c(memoryview(data)) == slow_crc32c(data)
    assert unmask(masked(data)) == crc32c(data)
    assert mask(crc32c(data)) == masked(data)


def test_a_checksum_over_many_lanes() -> None:
    data = np.random.default_rng(0).bytes(70_001)
    assert crc32c(data) == slow_crc32c(data)
    assert crc32c(data[:-1] + bytes([data[-1] ^ 1])) != crc32c(data)


def test_the_mask_of_tensorflow() -> None:
    # The empty block and its trailer, as in every index that TensorFlow 2.21 writes.
    written = bytes.fromhex("000000000100000000c0f2a1b0")
    assert unmask(int.from_bytes(written[9:], "little")) == crc32c(written[:9])


# ---- messages


@many
@given(st.integers(0, 2**64 - 1), st.binary(max_size=4))
def test_varints_there_and_back(value: int, before: bytes) -> None:
    assert read_varint(before + varint(value), len(before)) == (value, len(before + varint(value)))
    assert signed((value - 2**63) % 2**64) == value - 2**63


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10, b"\x80" * 10 + b"\x01"])
def test_numbers_that_do_not_end_or_are_too_large(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_varint(data, 0)


def test_fields() -> None:
    message = field(1, 300) + field(2, b"abc") + varint(6 << 3 | 5) + b"\1\0\0\0"
    message += varint(7 << 3 | 1) + b"\2" + bytes(7)
    assert list(read_fields(message)) == [(1, 300), (2, b"abc"), (6, 1), (7, 2)]
    for damaged in (message[:-1], varint(1 << 3 | 3), field(2, b"abc")[:-1], b"\x12\xff\xff\x7f"):
        with pytest.raises(ValueError):
            list(read_fields(damaged))


# ---- compression


@many
@given(st.lists(st.sampled_from([b"model/", b"down_", b"a", b"\0", b"conv1/W"])).map(b"".join))
def test_snappy_there_and_back(data: bytes) -> None:
    assert decompress(snappy(data)) == data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # format_description.txt: "xababab" as a literal and an overlapping copy.
        (b"\x07\x08xab" + bytes([(4 - 4) << 2 | 1, 2]), b"xababab"),
        (b"\x46" + b"\xf0\x45" + bytes(range(70)), bytes(range(70))),
        (b"\x08\x0cabcd" + bytes([3 << 2 | 3]) + struct.pack("<I", 4), b"abcdabcd"),
    ],
)
def test_every_kind_of_element(data: bytes, expected: bytes) -> None:
    assert decompress(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x05\x00a",  # ends too early
        b"\x01\x04ab",  # more than was said
        b"\x04\x0cab",  # a literal past the end
        b"\x04\x01\x01",  # a copy from before the start
        b"\x08\x0cabcd\x01\x00",  # a copy from 0 bytes back
        b"\x08\x0cabcd\x0e\x04",  # a copy past the end
        b"\xff\xff\xff\xff\x0f\x00a",  # 4 GB out of 7 bytes
        b"\x04\xfc\xff\xff",  # the size of a literal past the end
    ],
)
def test_snappy_that_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        decompress(data)


# ---- tables


def pairs(count: int) -> list[tuple[bytes, bytes]]:
    return [(f"model/down_{i:05d}/W".encode(), bytes([i % 251]) * (i % 7)) for i in range(count)]


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("count", [0, 1, 40, 333])
def test_tables_there_and_back(count: int, compress: bool) -> None:
    assert list(read_table(table(pairs(count), compress=compress))) == pairs(count)


@pytest.mark.parametrize("block_size", [1, 200, 1 << 18])
@pytest.mark.parametrize("count", [0, 1, 40, 333])
def test_tables_of_the_writer(count: int, block_size: int) -> None:
    assert list(read_table(write_table(pairs(count), block_size))) == pairs(count)


def test_a_table_s_damage_is_found_at_every_byte() -> None:
    content = table(pairs(60))
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 4
        try:
            found = list(read_table(bytes(damaged)))
        except ValueError:
            continue
        # Nothing is read of the zeros in the footer.
        assert found == pairs(60) and len(content) - 48 < at < len(content) - 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "at least 48"),
        (bytes(48), "ends in 0xdb4775248b80fb57"),
        (table([(b"b", b""), (b"a", b"")]), "stands behind"),
        (table([(b"a", b""), (b"a", b"")]), "stands behind"),
        (table([(b"a" * (MAX_KEY + 1), b"")]), "does not fit its block"),
        (
            varint(0) * 2 + varint(2**63) + varint(2**63) + bytes(18) + table([])[-8:],
            "past the end",
        ),
    ],
)
def test_tables_that_are_none(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(read_table(content))


def test_a_small_file_cannot_stand_for_a_huge_table() -> None:
    keys = [(f"{i:08d}".encode(), b"") for i in range(MAX_KEYS + 1)]
    with pytest.raises(ValueError, match="at most 100000 keys"):
        list(read_table(table(keys, per_block=2000)))


def test_blocks_that_an_index_has_twice() -> None:
    """Without a key in it, a block that is read again and again adds to no count."""
    out, parts = bytearray(), []
    empty = write_block([])
    for contents in (empty, write_block([(b"a", varint(0) + varint(len(empty)))] * 2)):
        parts.append(varint(len(out)) + varint(len(contents)))
        out += contents + b"\0" + struct.pack("<I", masked(contents + b"\0"))
    out += b"".join(parts).ljust(40, b"\0") + table([])[-8:]
    with pytest.raises(ValueError, match="begins before 13, where the last one ends"):
        list(read_table(bytes(out)))


def test_restart_points_beyond_the_block() -> None:
    content = struct.pack("<I", 2**31)
    out = bytearray(content + b"\0" + struct.pack("<I", masked(content + b"\0")))
    handle = varint(0) + varint(4)
    out += (handle + handle).ljust(40, b"\0") + table([])[-8:]
    with pytest.raises(ValueError, match="restart points"):
        list(read_table(bytes(out)))


# ---- bundles


def tensors() -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    shapes = {"a/W": (3, 3, 2, 5), "a/b": (5,), "scalar": (), "empty": (0, 4), "z": (700, 3)}
    values: dict[str, NDArray[Any]] = {
        name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    return values | {"global_step": np.array(790000), "double": draw.standard_normal((2, 2))}


@pytest.mark.parametrize("how", [{}, {"shards": 3}, {"compress": 1}, {"per_block": 1}])
def test_bundles_there_and_back(how: dict[str, int], tmp_path: Path) -> None:
    write_bundle(tmp_path / "model.ckpt-5", tensors(), **how)
    bundle = TensorBundle(tmp_path / "model.ckpt-5")
    found = bundle.read(bundle.entries)
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert np.array_equal(found[name].numpy(), value) and found[name].shape == value.shape
        assert found[name].numpy().dtype == value.dtype
    assert bundle.read(["a/b"])["a/b"].dtype == torch.float32


def test_bundles_of_the_writer(tmp_path: Path) -> None:
    values = {name: torch.from_numpy(value) for name, value in tensors().items()}
    values |= {"half": torch.arange(6.0).half().view(2, 3).T, "brain": torch.ones(3).bfloat16()}
    for name, content in bundle_files("model.ckpt-5", values).items():
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    bundle = TensorBundle(tmp_path / "model.ckpt-5")
    found = bundle.read(bundle.entries)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    assert find_prefix(tmp_path) == bundle.prefix


def test_the_bytes_that_tensorflow_writes() -> None:
    """SaveV2 of TensorFlow 2.21, byte by byte."""
    values = {
        "global_step": torch.tensor(7),
        "model/conv_in/W": torch.arange(1.0, 7.0).view(2, 3),
        "model/conv_in/W/ExponentialMovingAverage": torch.zeros(2, 3),
        "model/conv_in/b": torch.zeros(0),
    }
    files = bundle_files("small", values)
    assert list(files) == ["checkpoint", "small.data-00000-of-00001", "small.index"]
    assert files["small.data-00000-of-00001"] == bytes.fromhex(
        "07000000000000000000803f0000004000004040000080400000a0400000c040" + 24 * "00"
    )
    assert files["small.index"] == bytes.fromhex(
        "00000608011a020801000b0b676c6f62616c5f7374657008091200280835bbd79f11000f156d6f64656c2f63"
        "6f6e765f696e2f5708011208120208021202080320082818357aebf5ab0f19152f4578706f6e656e7469616c"
        "4d6f76696e67417665726167650801120812020802120208032020281835cff45f7c0e010d62080112021200"
        "203835d8ea82a2000000000100000000022d4e30000000000100000000c0f2a1b00001036e00930100000000"
        "010000000098fa2a07980108a5010f" + 34 * "00" + "57fb808b247547db"
    )


def test_where_a_bundle_lies(tmp_path: Path) -> None:
    prefix = tmp_path / "model.ckpt-5"
    write_bundle(prefix, tensors())
    names = ["model.ckpt-5", "model.ckpt-5.index", "model.ckpt-5.data-00000-of-00001"]
    assert [find_prefix(tmp_path / name) for name in names] == [prefix] * 3
    assert find_prefix(tmp_path) == prefix
    assert find_prefix(tmp_path / "model.ckpt-6") is None
    write_bundle(tmp_path / "model.ckpt-10", tensors())
    assert find_prefix(tmp_path) == tmp_path / "model.ckpt-10"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "gs://far/away/model.ckpt-5"\n')
    assert find_prefix(tmp_path) == prefix
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "../../etc/passwd"\n')
    with pytest.raises(ValueError, match=r"several checkpoints: give one of model.ckpt-10, model"):
        find_prefix(tmp_path)


def write_index(folder: Path, pairs: list[tuple[bytes, bytes]], data: bytes = bytes(64)) -> Path:
    (folder / "x.index").write_bytes(table(pairs))
    (folder / "x.data-00000-of-00001").write_bytes(data)
    return folder / "x"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (entry((16,), 2**62, bytes(64)), "run past the end at 64"),
        (entry((2**40,), 0, bytes(64)), "has not 64 bytes"),
        (entry((-1,), 0, bytes(64)), "at most 8 known sizes"),
        (entry((1,) * 9, 0, bytes(4)), "at most 8 known sizes"),
        (entry((16,), 0, b"\1" * 64), "checksum disagrees"),
        (entry((16,), 0, bytes(64), dtype=7), "whole tensor of numbers"),
        (entry((16,), 0, bytes(64), dtype=99), "whole tensor of numbers"),
        (entry((16,), 0, bytes(64)) + field(7, b""), "whole tensor of numbers"),
        (field(1, 1) + field(5, 2**63), "do not fit the data files"),
        (b"\x0b", "unknown type 3"),
    ],
)
def test_entries_that_ask_for_too_much(message: bytes, words: str, tmp_path: Path) -> None:
    prefix = write_index(tmp_path, [(b"", header()), (b"v", message)])
    with pytest.raises(ValueError, match=words):
        TensorBundle(prefix).read(["v"])


def test_entries_that_share_bytes(tmp_path: Path) -> None:
    whole = [(f"{i:03d}".encode(), entry((16,), 0, bytes(64))) for i in range(200)]
    bundle = TensorBundle(write_index(tmp_path, [(b"", header()), *whole]))
    with pytest.raises(ValueError, match="200 tensors of 12800 bytes do not fit"):
        bundle.read(bundle.entries)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (field(2, 1), "little-endian"),
        (field(3, field(1, 2) + field(2, 2)), "version 1"),
        (field(1, 2**31), "1 to 99999 data files"),
    ],
)
def test_headers_of_other_machines_and_times(message: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        TensorBundle(write_index(tmp_path, [(b"", message)]))


def test_a_missing_data_file(tmp_path: Path) -> None:
    prefix = write_index(tmp_path, [(b"", header(2)), (b"v", entry((16,), 0, bytes(64), shard=1))])
    with pytest.raises(FileNotFoundError, match=r"x\.data-00001-of-00002"):
        TensorBundle(prefix).read(["v"])


def test_names_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no TensorFlow checkpoint index"):
        TensorBundle(write_index(tmp_path, [(b"\xff", entry((16,), 0, bytes(64)))]))


def test_block_of_the_writer_has_shared_prefixes() -> None:
    assert len(write_block(pairs(16))) < sum(len(k) + len(v) + 3 for k, v in pairs(16))
