"""The decoder's side: Ho et al. 2020, algorithm 4."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastddpm.codec.blocks import blocks, ends_with_check, get_index, get_level, top_level
from fastddpm.codec.channel import candidate
from fastddpm.codec.container import Header
from fastddpm.codec.damage import DamagedError, ExhaustedError
from fastddpm.codec.entropy import Reader
from fastddpm.codec.levels import Levels
from fastddpm.codec.process import Law, Process, pixel_laws
from fastddpm.codec.rotation import Rotation
from fastddpm.sampler.runs import Progress


@dataclass(frozen=True)
class State:
    """stage: steps read. x_t: float32 [N, C, H, W]. estimate: x̂_0 of each image, like x_t. pixels:
    the images that are there exactly, uint8 [n] each, the first ones of the file. checked: whether
    all of this has passed a check."""

    stage: int
    x_t: Tensor
    estimate: Tensor
    pixels: list[NDArray[np.uint8]]
    checked: bool


class Receiver:
    """The state of a decoder: what it has read."""

    def __init__(self, process: Process, header: Header, reader: Reader) -> None:
        self._header = header
        self._reader = reader
        self._size = math.prod(header.shape)
        self._top = top_level(self._size)
        mixing = not process.diffusion.learns_variance
        self._rotation = Rotation(header.seed, self._size, mixing=mixing)
        self._levels = Levels()

    def stage(self, stage: int, steps: int) -> Iterator[tuple[int, list[int]]]:
        """The level and the candidates' numbers of each image; the stage's check after them."""
        self._levels.begin_step()
        for _ in range(self._header.images):
            level = get_level(self._reader, self._levels.expected(), self._top)
            self._levels.add(level)
            yield level, self._indices(level)
        if ends_with_check(stage, steps):
            self._reader.check()

    def _indices(self, level: int) -> list[int]:
        parts = blocks(self._header, 0, 0, self._size, level)
        return [get_index(self._reader, level, self._header.target) for _ in parts]

    def state(self, stage: int, image: int, sent: tuple[int, list[int]], p: Law) -> Tensor:
        """The image's next state, float32 [n]."""
        level, indices = sent
        z = torch.empty(self._size)
        parts = blocks(self._header, stage, image, self._size, level)
        for (place, start, stop), index in zip(parts, indices, strict=True):
            z[start:stop] = candidate(place, index, stop - start)
        return p.mean + p.sigma * self._rotation.undo(z)

    def pixels(self, laws: Iterable[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """An image's numbers, uint8 [n], checked."""
        values = np.concatenate([self._reader.get_rows(law) for law in laws])
        self._reader.check()
        return values


def receive(
    process: Process,
    header: Header,
    reader: Reader,
    end: int,
    progress: Progress,
) -> Iterator[State]:
    """What is known after each stage, 1 to ``end``; the pixels' stage image by image.

    Raises ExhaustedError where a cut stream ends, DamagedError where a check fails.
    """
    receiver, steps, count = Receiver(process, header, reader), process.steps, header.images
    total = count * end
    # Read before the laws are computed: a stream that ends costs no call of the network.
    sent = list(receiver.stage(1, steps))
    laws: Iterable[Law] = process.laws(None, steps - 1, header)
    for stage in range(1, min(end, steps) + 1):
        states = [receiver.state(stage, j, sent[j], p) for j, p in enumerate(laws)]
        x = torch.stack(states).view(count, *header.shape)
        predictions = list(process.predictions(x, steps - stage))
        estimate = torch.cat([p.x_0 for p in predictions])
        progress(stage * count, total)
        yield State(stage, x, estimate, [], ends_with_check(stage, steps))
        if stage < min(end, steps):
            sent = list(receiver.stage(stage + 1, steps))
            laws = map(process.reverse, predictions)
    pixels: list[NDArray[np.uint8]] = []
    for j in range(count if end > steps else 0):
        try:
            pixels = [*pixels, receiver.pixels(pixel_laws(predictions[j], header.decoder))]
        except ExhaustedError:
            raise
        except DamagedError as error:
            raise DamagedError(
                f"the pixels of image {j} fail their check: the file was changed, or the network "
                "computes otherwise here (its engine, dtype or machine)"
            ) from error
        progress(steps * count + j + 1, total)
        yield State(steps + (j + 1 == count), x, estimate, pixels, True)
