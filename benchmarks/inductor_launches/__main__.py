"""See the package."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import inductor_launches, origin
from benchmarks.inductor_launches import networks
from benchmarks.inductor_launches.pretended_cuda import PROPERTIES, pretended_cuda
from benchmarks.inductor_launches.program import launches
from fastddpm import UNetConfig

RESULT = origin.RESULTS / "inductor_launches.json"
KINDS = ("triton", "convolution", "product", "attention", "fastddpm", "other")
# The most launches a step of ours may have.
BAR = 150

Make = Callable[[FakeTensorMode], networks.Program]

# As a torch without CUDA lowers it, and then step by step as CUDA does.
PLAIN = "diffusers network, contiguous, lowered without CUDA's layouts and attention"
CONTIGUOUS = "diffusers network, contiguous, attention as products"
CHANNELS_LAST = "diffusers network, channels_last, attention as products"
DIFFUSERS = "diffusers network, channels_last, flash attention"
OURS = "fastddpm step: network, reverse step, noise, counter"


class Counted(NamedTuple):
    """Something to count: how to make it, and what CUDA is pretended to do."""

    make: Make
    flash_attention: bool = True
    cudnn_layouts: bool = True

    def launches(self) -> dict[str, int]:
        """By kind, and in "all"."""
        with pretended_cuda(
            flash_attention=self.flash_attention, cudnn_layouts=self.cudnn_layouts
        ) as mode:
            kinds = launches(mode, *self.make(mode))
        return {kind: kinds.get(kind, 0) for kind in KINDS} | {"all": sum(kinds.values())}


def programs(batch: int) -> dict[str, Counted]:
    """What is counted."""

    def theirs(channels_last: bool) -> Make:
        return lambda mode: networks.diffusers_network(
            mode, batch, networks.CIFAR10, channels_last=channels_last
        )

    return {
        PLAIN: Counted(theirs(False), flash_attention=False, cudnn_layouts=False),
        CONTIGUOUS: Counted(theirs(False), flash_attention=False),
        CHANNELS_LAST: Counted(theirs(True), flash_attention=False),
        DIFFUSERS: Counted(theirs(True)),
        OURS: Counted(lambda mode: networks.our_step(mode, batch, UNetConfig.ho(sample_size=32))),
    }


def table(counts: dict[str, dict[str, int]]) -> str:
    """The counts as a Markdown table."""
    columns = (*KINDS, "all")
    lines = [f"| launches a step | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, kinds in counts.items():
        lines.append(f"| {name} | {' | '.join(str(kinds[column]) for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=inductor_launches.__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images in a batch (default 16)")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    counts: dict[str, dict[str, int]] = {}
    for name, counted in programs(arguments.batch).items():
        counts[name] = counted.launches()
        print(f"{name}: {counts[name]['all']}", flush=True)
    result: dict[str, Any] = {
        "what": "kernel launches of one denoising step, counted in Inductor's program",
        "network": "Ho's CIFAR-10 net, 35,746,307 parameters, bfloat16",
        "batch": arguments.batch,
        "pretended_device": PROPERTIES.name,
        "launches": counts,
    }
    origin.write(arguments.out, result | origin.described())
    print(table(counts))
    if counts[OURS]["all"] > BAR:
        raise SystemExit(f"{counts[OURS]['all']} launches a step, the bar is {BAR}")


if __name__ == "__main__":
    main()
