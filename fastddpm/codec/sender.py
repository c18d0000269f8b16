"""The encoder's side: Ho et al. 2020, algorithm 3."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastddpm.codec import channel
from fastddpm.codec.blocks import blocks, ends_with_check, put_index, put_level, top_level
from fastddpm.codec.channel import Choice, Place, divergence
from fastddpm.codec.container import Header, sealed
from fastddpm.codec.entropy import Writer
from fastddpm.codec.journal import Journal
from fastddpm.codec.levels import Levels, level_of
from fastddpm.codec.process import Law, Process, pixel_bits, pixel_laws
from fastddpm.codec.rotation import Rotation
from fastddpm.sampler.runs import Progress

TOLERANCE, MOST = 0.01, 1 << 18


class Search(NamedTuple):
    """How hard to search; see ``channel.choose``. journal: what need not be searched again."""

    tolerance: float
    most: int
    device: torch.device
    journal: Journal | None = None

    def choose(self, place: Place, shift: Tensor, ratio: Tensor) -> Choice:
        choose = channel.choose if self.journal is None else self.journal.choose
        return choose(place, shift, ratio, self.tolerance, self.most, self.device)


class SentBlock(NamedTuple):
    """information: KL(q ‖ p) of the block, in bits. code: what its candidate's number cost.
    number: that number. missed: the expected number of better candidates not looked at."""

    stage: int
    image: int
    information: float
    code: float
    number: int
    missed: float


@dataclass(frozen=True)
class Encoded:
    """data: the file. x_t: float32 [N, C, H, W], the last state, as the receiver has it. ideal:
    float64 [K + 1, N], the bound's terms in bits, a row a stage of the file, the pixels last.
    parts: bits by what they are for: "blocks", "levels", "pixels", "checks", "container" (the
    header, the file's checksum, and what the coder rounds up). blocks: all that were sent."""

    data: bytes
    x_t: Tensor
    ideal: Tensor
    parts: dict[str, float]
    blocks: list[SentBlock]


class Sender:
    """The state of an encoder: what it has written."""

    def __init__(self, process: Process, header: Header, search: Search) -> None:
        self._process = process
        self._header = header
        self._search = search
        self._size = math.prod(header.shape)
        self._top = top_level(self._size)
        self._flat = not process.diffusion.learns_variance
        self._rotation = Rotation(header.seed, self._size, mixing=self._flat)
        self._levels = Levels()
        self.writer = Writer()
        self.blocks: list[SentBlock] = []
        self.ideal = torch.zeros(process.steps + 1, header.images, dtype=torch.float64)

    def begin_stage(self) -> None:
        self._levels.begin_step()

    def state(self, stage: int, image: int, q: Law, p: Law) -> Tensor:
        """Send the image's next state: one of q's, float32 [n], as the receiver will have it."""
        shift, ratio = q.seen_from(p)
        bits = divergence(shift, ratio) / math.log(2)
        self.ideal[stage - 1, image] = bits
        shift = self._rotation.apply(shift)
        # Equal for all elements, or permuted with them.
        ratio = ratio if self._flat else self._rotation.apply(ratio)
        level = level_of(bits, self._header.target, self._top)
        put_level(self.writer, level, self._levels.expected(), self._top)
        self._levels.add(level)
        z = torch.empty(self._size)
        for place, start, stop in blocks(self._header, stage, image, self._size, level):
            part = slice(start, stop)
            z[part] = self._block(place, shift[part], ratio[part], level)
        return p.mean + p.sigma * self._rotation.undo(z)

    def _block(self, place: Place, shift: Tensor, ratio: Tensor, level: int) -> Tensor:
        index, missed = self._search.choose(place, shift, ratio)
        before = self.writer.bits["blocks"]
        put_index(self.writer, index, level, self._header.target)
        code = self.writer.bits["blocks"] - before
        bits = divergence(shift, ratio) / math.log(2)
        self.blocks.append(SentBlock(place.step, place.image, bits, code, index, missed))
        return channel.candidate(place, index, len(shift))

    def pixels(self, values: Tensor, laws: Iterable[NDArray[np.float64]]) -> None:
        """Send the image's numbers, uint8 [n], under their laws."""
        sent = 0
        for law in laws:
            rows = values[sent : sent + len(law)].numpy()
            self.writer.put_rows("pixels", rows, law)
            sent += len(law)
        self.writer.put_check()


def send(
    process: Process,
    header: Header,
    images: Tensor,
    x_0: Tensor,
    search: Search,
    progress: Progress,
) -> Encoded:
    """The file of images uint8 [N, H, W, C], the same as x_0 float32 [N, C, H, W] in [-1, 1]."""
    sender, steps, count = Sender(process, header, search), process.steps, len(x_0)
    total = count * (steps + 1)
    x: Tensor | None = None
    for stage in range(1, steps + 1):
        k = steps - stage
        laws = process.laws(x, k, header)
        sender.begin_stage()
        states = []
        for j, p in enumerate(laws):
            x_t = None if x is None else x[j : j + 1]
            q = process.posterior(x_0[j : j + 1], x_t, k)
            states.append(sender.state(stage, j, q, p))
            progress((stage - 1) * count + j + 1, total)
        x = torch.stack(states).view_as(x_0)
        if ends_with_check(stage, steps):
            sender.writer.put_check()
    assert x is not None
    values = images.movedim(-1, 1).flatten(1)
    for j, prediction in enumerate(process.predictions(x, 0)):
        sender.pixels(values[j], pixel_laws(prediction, header.decoder))
        sender.ideal[-1, j] = pixel_bits(prediction, x_0[j : j + 1], header.decoder)
        progress(steps * count + j + 1, total)
    return _encoded(header, sender, x)


def _encoded(header: Header, sender: Sender, x: Tensor) -> Encoded:
    data = sealed(header.pack(), sender.writer.content())
    parts = dict(sender.writer.bits)
    parts["container"] = 8 * len(data) - sum(parts.values())
    return Encoded(data, x, sender.ideal, parts, sender.blocks)
