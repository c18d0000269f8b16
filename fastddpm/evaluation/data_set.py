"""The bound over a data set: each image once, sums kept and not terms.

What is kept does not grow with the number of images: means over images of the bound and of every
timestep's terms, with their spread (moments.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from fastddpm import atomic
from fastddpm.evaluation.bits import BitsPerDim
from fastddpm.evaluation.bound import Bound
from fastddpm.evaluation.moments import Moments
from fastddpm.sampler import arguments
from fastddpm.sampler.arguments import Array, Labels
from fastddpm.sampler.runs import Progress

# Images of a part where nobody says how many.
PART_SIZE = 64


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
        """Of the images of one call."""
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

    def save_csv(self, path: Path) -> None:
        """t, mean and ± of vb, mean and ± of mse, a line a timestep; whole or not at all."""
        columns = (self.vb.known(), self.vb.interval(), self.mse.known(), self.mse.interval())
        lines = ["t,vb_bits_per_dim,vb_interval_95,mse,mse_interval_95"]
        for t, row in enumerate(torch.stack(columns, dim=1).tolist()):
            lines.append(",".join([str(t), *(f"{value:.8g}" for value in row)]))
        atomic.write(path, "\n".join(lines) + "\n")

    def save_plot(self, path: Path) -> None:
        """The terms over t, on logarithmic scales (Nichol and Dhariwal 2021, figure 2)."""
        # Not pyplot, whose backend and figures are the process's.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3), layout="constrained")
        axes = figure.subplots()
        axes.loglog(1 + torch.arange(len(self.vb.mean)), self.vb.known(), color="black")
        axes.set(xlabel="t + 1", ylabel="bits per dimension")
        axes.grid(alpha=0.3)
        with atomic.replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=110)

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


def parts_of(count: int, size: int = PART_SIZE) -> list[range]:
    """0, ..., count - 1 in parts of ``size``."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def bounds_of_parts(
    bound: Bound,
    images: Tensor | Array,
    seed: int = 0,
    *,
    labels: Labels | None = None,
    timesteps: int | None = None,
    parts: list[range] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[range, DataSetBound]]:
    """The bound of part after part of the images, image i with sample index i.

    images: [N, C, H, W], uint8 or floating; only a part at a time is converted.
    labels: one class for all images, or one for each.
    timesteps: see ``bits_per_dim``. parts: which, all by default.
    advance: called with the number of terms done since.
    """
    known = None
    if labels is not None:
        known = arguments.label_rows(labels, len(images), bound.model, torch.device("cpu"))
    for part in parts_of(len(images)) if parts is None else parts:
        rows = slice(part.start, part.stop)
        # Not named: a part's terms are gone before the next one's are computed.
        yield (
            part,
            DataSetBound.of(
                bound(
                    images[rows],
                    seed,
                    indices=part,
                    labels=None if known is None else known[rows],
                    timesteps=timesteps,
                    progress=_steps_of(advance),
                )
            ),
        )


def _steps_of(advance: Callable[[int], None] | None) -> Progress | None:
    """Progress of one part, as what was done since the last report."""
    if advance is None:
        return None
    before = 0

    def progress(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return progress


def bound_of_data(
    bound: Bound,
    images: Tensor | Array,
    seed: int = 0,
    *,
    labels: Labels | None = None,
    timesteps: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> DataSetBound:
    """The bound over all images, each taken once; arguments as ``bounds_of_parts``.

    Raises ValueError if there are none, or for another number of labels.
    """
    if not len(images):
        raise ValueError("images must hold at least one image")
    found = bounds_of_parts(
        bound, images, seed, labels=labels, timesteps=timesteps, advance=advance
    )
    return merged(part for _, part in found)


def merged(bounds: Iterable[DataSetBound]) -> DataSetBound:
    """Of the images of all of them, at least one."""
    return reduce(DataSetBound.merged, bounds)
