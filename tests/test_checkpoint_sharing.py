"""Pickles that use values again: what torch saves is read, what could stand for more is refused."""

from __future__ import annotations

import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from fastddpm.checkpoint.pickles import read_pickle
from fastddpm.checkpoint.sharing import MOST_COPIED, MOST_NESTED

_GROW = b"q\x02h\x02\x86"
_SAME_HASH = b"".join(
    b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1100)
)


def read_program(folder: Path, program: bytes) -> object:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02" + program)
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
    return read_pickle(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_shares(zipped: bool, tmp_path: Path) -> None:
    network = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(20)])
    network[3].weight = network[2].weight
    adam = torch.optim.AdamW([{"params": [p]} for p in network.parameters()])
    network(torch.ones(1, 2)).sum().backward()
    adam.step()
    state = network.state_dict()
    betas, groups = (0.9, 0.99), [[1, {"a": (1, (2, 3))}]] * 30
    value: dict[str, Any] = {
        "model": state,
        "ema": state,
        "averages": [state, OrderedDict(state)],
        "optimizer": adam.state_dict(),
        "betas": [betas] * 50,
        "groups": groups,
        "random": random.getstate(),
    }
    torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = read_pickle(tmp_path / "model.pt")
    assert found["averages"][0] is found["ema"] is found["model"]
    assert all(torch.equal(found["model"][key], tensor) for key, tensor in state.items())
    assert found["optimizer"]["param_groups"] == value["optimizer"]["param_groups"]
    assert [found[key] for key in ("betas", "groups", "random")] == [
        [betas] * 50,
        groups,
        random.getstate(),
    ]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        # As a key: hashed in 2^24 steps, a second or so; with each pair, twice the time.
        (b"}K\x01\x85" + _GROW * 24 + b"K\x01s.", f"more than {MOST_COPIED} values again"),
        (b"}K\x01" + b"\x85" * 101 + b"K\x01s.", f"more than {MOST_NESTED} deep"),
        (
            b"](" + b"K\x01" * 2000 + b"eq\1ctorch\nSize\nq\2](" + b"h\2h\1\x85R" * 600 + b"e\x86.",
            f"more than {MOST_COPIED} values again",
        ),
        (b"}(" + _SAME_HASH + b"u.", f"more than {MOST_COPIED} values again"),
        (b"]q\0]q\1h\0h\1ah\1h\0a.", "changes a value that it has used"),
        (b"K\x01K\x02a.", "changes a value that it has used"),
        (b"]2.", "no torch file has the instruction DUP"),
    ],
    ids=["nested pairs", "deep", "copies", "keys of one hash", "a cycle", "a number", "DUP"],
)
def test_what_stands_for_more(program: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        read_program(tmp_path, program)


def test_nesting_that_is_small_is_read(tmp_path: Path) -> None:
    pair: object = (1,)
    for _ in range(5):
        pair = (pair, pair)
    program = b"}K\x01\x85" + _GROW * 5 + b"K\x01s."
    assert read_program(tmp_path, program) == {pair: 1}
