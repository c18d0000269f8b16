"""Contenders and workers that do as the tests of the CPU benchmarks want, in any process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import torch

import fastddpm
from benchmarks.cpu.contenders import Call, Setup
from benchmarks.worker import Prepared

FOLDER = str(Path(__file__).parent)


def right(setup: Setup, factor: float = 1.0) -> Call:
    """The network; wrong for another factor than 1."""
    unet, _ = fastddpm.from_pretrained(setup.folder)
    return lambda x, t: unet(x, t).detach().numpy() * factor


def missing(setup: Setup) -> Call:
    raise ModuleNotFoundError("No module named 'rival'")


def greedy(setup: Setup) -> Call:
    """Takes 256 MiB, freed at once."""
    torch.ones(1 << 26)
    return right(setup)


def crashing(setup: Setup) -> Call:
    """Right once, then the end of its process."""
    call, calls = right(setup), iter(range(2))

    def once(x: Any, t: Any) -> Any:
        if next(calls) == 1:
            os.abort()
        return call(x, t)

    return once


def counting(start: int, say: str = "") -> Prepared:
    """Turns that count, of a process that prints as it likes."""
    print(say, flush=True)
    os.system("echo and so do its children")
    counted = iter(range(start, start + 1000))
    return {"start": start}, lambda: next(counted)


def ending(turns: int, code: int) -> Prepared:
    """Ends in the turn after so many."""
    left = iter(range(turns))

    def turn() -> int:
        if next(left, None) is None:
            os.write(2, b"a line\nthe last line\n")
            os._exit(code)
        return 0

    return None, turn


def spinning() -> Prepared:
    """A library whose threads go on after each call. Its turn: the seconds of processor time that
    its process has had."""

    def spin() -> None:
        while True:
            pass

    def turn() -> float:
        time.sleep(0.02)
        return time.process_time()

    threading.Thread(target=spin, daemon=True).start()
    return None, turn


def sleepless(file: str) -> Prepared:
    """Says who it is, and is never prepared."""
    Path(file).write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def drawing(name: str, dtype: str, batch: int, rounds: int) -> Prepared:
    """A contender of benchmarks.gpu. "diffusers eager" cannot be prepared, and one that compiles
    with max-autotune ends after two turns."""
    if name == "diffusers eager":
        raise RuntimeError("no memory")
    answers: list[Any] = [float(batch)] * rounds + [{"kernels_per_step": 9}]
    if name.endswith("max-autotune"):
        answers = [1.0, 1.0]
    return {"steps": 5}, iter(answers).__next__
