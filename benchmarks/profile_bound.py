"""Where the time of a bound goes: the network, the noise on its input, the terms from its output.

Each part is timed in its place, by the clock on the wall, and given as its share of the whole call;
what is left is the reading of images and the writing of results. A kernel of its own for the terms
can gain no more than their share.

Run: python -m benchmarks.profile_bound [--threads N] [--rounds N]
Writes benchmarks/results/bound_profile.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastddpm
from benchmarks import origin, timing
from benchmarks.cpu import machine, networks
from fastddpm.evaluation import Bound
from fastddpm.evaluation.noised import Noised

RESULT = origin.RESULTS / "bound_profile.json"
# Images, and steps of a respaced chain: 640 terms a call; of the large network 64.
SIZES = {"mnist": (16, 40), "cifar10": (8, 8)}
PARTS = ("network", "noise", "terms")


class ProfiledBound(Bound):
    """A bound whose parts are timed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._network: Any = self._timed("network", self._network)
        self._terms: Any = self._timed("terms", self._terms)

    def _noised(self, *arguments: Any) -> Noised:
        return self._timed("noise", super()._noised(*arguments))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments, **named)
            self.seconds[part] += time.perf_counter() - begin
            return result

        return timed


def profiled(name: str, threads: int, rounds: int) -> dict[str, Any]:
    """Shares of a call's time, the median of all rounds and their spread."""
    count, steps = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        networks.write(name, Path(folder))
        unet, diffusion = fastddpm.from_pretrained(folder)
    kept = fastddpm.timesteps.linspace(diffusion.num_steps, steps)
    bound = ProfiledBound(unet, diffusion.respace(kept), "cpu", threads=threads)
    config = unet.config
    assert config.size is not None
    generator = torch.Generator().manual_seed(0)
    shape = (count, config.in_channels, *config.size)
    images = torch.randint(256, shape, generator=generator).to(torch.uint8)
    bound(images)
    shares: dict[str, list[float]] = {part: [] for part in (*PARTS, "rest")}
    term_ms = []
    for _ in range(rounds):
        bound.seconds = dict.fromkeys(PARTS, 0.0)
        begin = time.perf_counter()
        bound(images)
        whole = time.perf_counter() - begin
        for part in PARTS:
            shares[part].append(bound.seconds[part] / whole)
        shares["rest"].append(1 - sum(bound.seconds.values()) / whole)
        term_ms.append(1e3 * whole / (count * steps))
    return {
        "images": count,
        "steps": steps,
        "term_ms": timing.summary(term_ms),
        "shares": {part: timing.summary(values) for part, values in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {name: profiled(name, asked.threads, asked.rounds) for name in SIZES}
    for name, one in found.items():
        shares = {part: f"{100 * s['median']:.2f} %" for part, s in one["shares"].items()}
        print(name, f"{one['term_ms']['median']:.3f} ms a term", shares)
    settings = {"threads": asked.threads, "rounds": asked.rounds}
    result = {**origin.described(), **machine.described(asked.threads), **settings}
    origin.write(RESULT, {**result, "networks": found})


if __name__ == "__main__":
    main()
