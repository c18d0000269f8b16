"""The bound over a data set: each image once, sums kept and not terms.

What is kept does not grow with the number of images: means over images of the bound and of every
timestep's terms, with their spread (moments.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import reduce

import torch
from torch import Tensor

from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound, Progress
from fastddpm.evaluation.moments import Moments
from fastddpm.sampler.arguments import Array

# Images of a part where nobody says how many.
AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class DataSetBound:
    """Moments over images, in bits per dimension but mse.

    total, prior: of the bound and of its prior, [].
    vb, mse:      of the terms at step t, [T]; of a subset of timesteps over the images that drew t.
    """

    total: Moments
    prior: Moments
    vb: Moments
    mse: Moments

    @classmethod
    def of(cls, bits: BitsPerDim) -> DataSetBound:
        return cls(*(Moments.of(values) for values in bits))

    def merged(self, other: DataSetBound) -> DataSetBound:
        """Of the images of both."""
        return DataSetBound(
            *(getattr(self, f.name).merged(getattr(other, f.name)) for f in fields(self))
        )

    @property
    def images(self) -> int:
        """How many there were."""
        return int(self.total.n)

    @property
    def bits_per_dim(self) -> float:
        """The mean bound."""
        return float(self.total.mean)

    @property
    def interval(self) -> float:
        """± of its 95 % interval, over images and, of a subset, over the timesteps drawn; NaN for
        one image."""
        return float(self.total.interval())

    def arrays(self) -> dict[str, Array]:
        """All of it for an .npz file; ``from_arrays`` reads them back."""
        return {
            f"{field.name}_{part}": tensor.numpy()
            for field in fields(self)
            for part, tensor in getattr(self, field.name)._asdict().items()
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> DataSetBound:
        """What ``arrays`` gave; KeyError where one is missing."""
        moments = (
            Moments(*(torch.from_numpy(arrays[f"{field.name}_{part}"]) for part in Moments._fields))
            for field in fields(cls)
        )
        return cls(*moments)


def parts_of(count: int, size: int = AT_ONCE) -> list[range]:
    """0, ..., count - 1 in parts of ``size``."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def bounds_of_parts(
    bound: Bound,
    images: Tensor | Array,
    seed: int = 0,
    *,
    labels: Tensor | None = None,
    timesteps: int | None = None,
    parts: list[range] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[range, DataSetBound]]:
    """The bound of part after part of the images, image i with sample index i.

    images: [N, C, H, W], uint8 or floating; only a part at a time is converted.
    labels: [N, ...] or None. timesteps: see ``bits_per_dim``. progress: (images done, images).
    """
    parts = parts_of(len(images)) if parts is None else parts
    done, whole = 0, sum(map(len, parts))
    for part in parts:
        rows = slice(part.start, part.stop)
        bits = bound(
            images[rows],
            seed,
            indices=part,
            labels=None if labels is None else labels[rows],
            timesteps=timesteps,
        )
        yield part, DataSetBound.of(bits)
        done += len(part)
        if progress is not None:
            progress(done, whole)


def bound_of_data(
    bound: Bound,
    images: Tensor | Array,
    seed: int = 0,
    *,
    labels: Tensor | None = None,
    timesteps: int | None = None,
    progress: Progress | None = None,
) -> DataSetBound:
    """The bound over all images, each taken once; arguments as ``bounds_of_parts``.

    Raises ValueError if there are none.
    """
    if not len(images):
        raise ValueError("images must hold at least one image")
    parts = bounds_of_parts(
        bound, images, seed, labels=labels, timesteps=timesteps, progress=progress
    )
    return merged(part for _, part in parts)


def merged(bounds: Iterable[DataSetBound]) -> DataSetBound:
    """Of the images of all of them, at least one."""
    return reduce(DataSetBound.merged, bounds)
