"""An encoder that was stopped goes on from its journal, to the same bytes, whatever it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from codec_files import codec_of, encode, encoded_once, pictures

from fastddpm.codec import Encoded, Journal, journal

SETTINGS = {"seed": 0, "images": ["a.png"]}
STOPPED, RECORD = 40, 32


class Searches:
    """``channel.choose``, counted; the one after ``last`` is stopped."""

    def __init__(self) -> None:
        self._choose = journal.choose
        self.count = 0
        self.last: int | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.count == self.last:
            raise KeyboardInterrupt
        self.count += 1
        return self._choose(*arguments)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Searches:
    counted = Searches()
    monkeypatch.setattr(journal, "choose", counted)
    return counted


@pytest.fixture
def stopped(searches: Searches, tmp_path: Path) -> Path:
    """The journal of a run that was stopped in the search after ``STOPPED``."""
    path, searches.last = tmp_path / "journal", STOPPED
    with pytest.raises(KeyboardInterrupt), Journal(path, SETTINGS) as kept:
        encode(codec_of(), pictures(), journal=kept)
    searches.count, searches.last = 0, None
    return path


def resumed(path: Path, **options: Any) -> Encoded:
    with Journal(path, SETTINGS) as kept:
        return encode(codec_of(), pictures(), journal=kept, **options)


def assert_same(encoded: Encoded) -> None:
    """The bytes of a run without a journal, and all that it tells of them."""
    whole = encoded_once()
    assert encoded.data == whole.data
    assert encoded.blocks == whole.blocks and encoded.parts == whole.parts
    assert encoded.ideal.equal(whole.ideal) and encoded.x_t.equal(whole.x_t)


def test_it_goes_on_where_it_stopped(stopped: Path, searches: Searches) -> None:
    assert len(Journal(stopped, SETTINGS)) == STOPPED
    assert_same(resumed(stopped))
    total = len(encoded_once().blocks)
    assert searches.count == total - STOPPED > 0
    # And again, with nothing left to search.
    assert_same(resumed(stopped))
    assert searches.count == total - STOPPED
    kept = Journal(stopped, SETTINGS)
    assert len(kept) == total and kept.left_out == 0
    kept.remove()
    assert not stopped.exists()


@pytest.mark.parametrize(("sound", "byte"), [(0, 0), (1, 16), (20, 20), (STOPPED - 1, RECORD - 1)])
def test_a_damaged_record_and_those_after_it_are_left_out(
    stopped: Path, searches: Searches, sound: int, byte: int
) -> None:
    content = bytearray(stopped.read_bytes())
    content[len(content) - RECORD * (STOPPED - sound) + byte] ^= 1
    stopped.write_bytes(content)
    kept = Journal(stopped, SETTINGS)
    assert (len(kept), kept.left_out) == (sound, RECORD * (STOPPED - sound))
    assert_same(resumed(stopped))
    assert searches.count == len(encoded_once().blocks) - sound
    # What was damaged has gone.
    assert Journal(stopped, SETTINGS).left_out == 0


@pytest.mark.parametrize("tail", [b"\0", b"\0" * RECORD, b"x" * 100, None])
def test_a_torn_end(stopped: Path, tail: bytes | None) -> None:
    content = stopped.read_bytes()
    stopped.write_bytes(content[:-1] if tail is None else content + tail)
    kept = Journal(stopped, SETTINGS)
    assert kept.left_out == (RECORD - 1 if tail is None else len(tail))
    assert len(kept) == STOPPED - (tail is None)


@pytest.mark.parametrize("options", [{"seed": 1}, {"tolerance": 0.1}, {"most": 99}])
def test_a_record_stands_for_no_other_search(
    stopped: Path, searches: Searches, options: dict[str, Any]
) -> None:
    """Even where the settings do not tell."""
    expected = encode(codec_of(), pictures(), **options)
    assert resumed(stopped, **options).data == expected.data
    assert searches.count == len(expected.blocks)


def test_other_settings(stopped: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings \(images, steps\).*--overwrite"):
        Journal(stopped, {"seed": 0, "images": ["b.png"], "steps": 3})
    assert len(Journal(stopped, SETTINGS, overwrite=True)) == STOPPED
    with Journal(stopped, {"seed": 1}, overwrite=True) as other:
        assert len(other) == 0
        # Nothing is replaced before there is something to keep.
        assert len(Journal(stopped, SETTINGS)) == STOPPED
        assert_same(encode(codec_of(), pictures(), journal=other))
    assert len(Journal(stopped, {"seed": 1})) == len(encoded_once().blocks)


@pytest.mark.parametrize("content", [b"", b"mine\n", b"[]\n", b"{}\n", b"\xff\n", b"[" * 10**5])
def test_a_file_that_is_no_journal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is no journal"):
            Journal(path, SETTINGS, overwrite=overwrite)
    assert path.read_bytes() == content
