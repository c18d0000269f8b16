"""Files of the codec that were cut off, changed or made to do harm."""

from __future__ import annotations

import dataclasses
from typing import Any

import gaussian_data as data
import pytest
import torch
from codec_files import (
    STEPS,
    assert_sound,
    codec_of,
    decoded_once,
    encoded_once,
    pictures,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastddpm.codec import DamagedError, Decoded, Encoded, container


@pytest.fixture
def file() -> Encoded:
    return encoded_once()


@pytest.fixture
def states() -> list[Decoded]:
    return decoded_once()


def test_a_cut_file_is_refused_unless_asked_for(file: Encoded) -> None:
    for length in (0, 2, 12, 40, len(file.data) - 1):
        with pytest.raises(DamagedError):
            codec_of().decode(file.data[:length])


def flips(size: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    one = st.tuples(st.integers(0, size - 1), st.integers(1, 255))
    return st.lists(one, min_size=1, max_size=4, unique_by=lambda flip: flip[0])


# Not another draw in every run: a check of 16 bits passes by chance, too.
@settings(deadline=None, max_examples=150, derandomize=True)
@given(drawn=st.data(), cut=st.integers(0, 40))
def test_flipped_bytes(drawn: st.DataObject, cut: int) -> None:
    """An error, or with ``partial`` what is right as far as it says that it was checked."""
    damaged = bytearray(encoded_once().data)
    for at, mask in drawn.draw(flips(len(damaged))):
        damaged[at] ^= mask
    sent = bytes(damaged[: len(damaged) - cut])
    with pytest.raises(ValueError):
        codec_of().decode(sent)
    try:
        decoded = codec_of().decode(sent, partial=True)
    except ValueError:
        return
    assert torch.equal(decoded.images[decoded.lossless], pictures()[decoded.lossless])
    if decoded.stage != decoded.checked and decoded.checked:
        decoded = codec_of().decode(sent, until=decoded.checked, partial=True)
    if decoded.checked:
        assert_sound(decoded, decoded_once())


# Not another draw in every run: a check of 16 bits passes by chance, too.
@settings(deadline=None, max_examples=150, derandomize=True)
@given(tail=st.binary(max_size=300), whole=st.booleans())
@example(tail=b"", whole=True)
@example(tail=b"\xff" * 200, whole=True)
@example(tail=b"\xff" * 200, whole=False)
def test_any_stream(tail: bytes, whole: bool) -> None:
    """Bytes of anybody behind a header that is right, with and without a right checksum."""
    file = encoded_once().data
    header = file[: len(container.unpack(file)[0].pack())]
    made = container.sealed(header, tail) if whole else header + tail
    for partial in (False, True):
        try:
            decoded = codec_of().decode(made, partial=partial)
        except ValueError:
            continue
        assert partial and decoded.images.shape == pictures().shape


def test_a_short_stream_cannot_ask_for_much(file: Encoded) -> None:
    """A checksum that is right, a header of 2^26 numbers, and nothing behind it."""
    header = dataclasses.replace(
        container.unpack(file.data)[0], images=1 << 15, shape=(1, 1, 1 << 11), steps=1000
    )
    codec = codec_of()
    for content in (b"", b"\x5a" * 50):
        with pytest.raises(DamagedError, match="more than its bytes hold"):
            codec.decode(container.sealed(header.pack(), content))


@settings(deadline=None, max_examples=300, derandomize=True)
@given(content=st.binary(max_size=80), magic=st.booleans())
def test_any_header(content: bytes, magic: bool) -> None:
    with pytest.raises(ValueError):
        codec_of().decode(container.MAGIC * magic + content, partial=True)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 1 << 15, "shape": (1, 4096, 4096)},
        {"images": 0},
        {"steps": 1 << 20},
        {"target": 0.0},
        {"seed": 1 << 64},
    ],
)
def test_a_header_that_asks_for_much(file: Encoded, change: dict[str, Any]) -> None:
    header = container.unpack(file.data)[0]
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(header, **change)
    # As bytes, past what the encoder's side refuses.
    forged = object.__new__(container.Header)
    for field in dataclasses.fields(header):
        value = change.get(field.name, getattr(header, field.name))
        object.__setattr__(forged, field.name, value)
    with pytest.raises(DamagedError):
        codec_of().decode(forged.pack() + b"\0" * 100, partial=True)


def test_a_network_that_computes_otherwise(file: Encoded, states: list[Decoded]) -> None:
    """Its states are near, its pixels never taken for the images."""
    codec = codec_of(model=lambda x, t: data.network(x, t) * 1.0001)
    with pytest.raises(DamagedError, match="computes otherwise"):
        codec.decode(file.data)
    decoded = codec.decode(file.data, partial=True)
    assert decoded.stage == STEPS and not decoded.lossless.any()
    torch.testing.assert_close(decoded.x_t, states[STEPS - 1].x_t, atol=1e-2, rtol=0)
