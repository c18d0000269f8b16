"""``fastddpm evaluate frechet``: how far samples lie from data, as features see them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import typer
from torch import Tensor

from fastddpm import atomic
from fastddpm.cli import model as models
from fastddpm.cli.job_folder import JobFolder
from fastddpm.cli.progress import Bar
from fastddpm.evaluation import (
    FeatureStatistics,
    ImageFile,
    MnistFeatures,
    fidelity,
    frechet_distance,
    inception_metrics,
)
from fastddpm.evaluation.data_set import parts_of
from fastddpm.evaluation.frechet import refuse_singular, save_plot
from fastddpm.evaluation.mnist_features import check_shape
from fastddpm.sampler.images import from_uint8
from fastddpm.train.data import load_images

COMMAND = "fastddpm evaluate frechet"
FEATURES = ("mnist", "inception")
STATISTICS, PLOT, RESULT = "data.safetensors", "frechet.png", "frechet.json"

Samples: TypeAlias = Annotated[
    Path, typer.Argument(help="The samples.npz of fastddpm sample, or another .npz of images.")
]
Data: TypeAlias = Annotated[
    Path,
    typer.Option(
        help="Images: .npz, an MNIST IDX file, a folder; or data.safetensors of an earlier run.",
        show_default=False,
    ),
]
FeatureName: TypeAlias = Annotated[
    str,
    typer.Option(help="mnist: built in, for digits; inception: FID, IS, KID, by torch-fidelity."),
]
Policy: TypeAlias = Annotated[
    str, typer.Option(help="What is kept of samples that are floats: round, truncate or float.")
]
PartSize: TypeAlias = Annotated[
    int, typer.Option("--part-size", min=1, help="Images looked at at once; kept when done.")
]
Weights: TypeAlias = Annotated[
    Path | None, typer.Option(help="Of inception: the file that torch-fidelity downloads.")
]
AllowSingular: TypeAlias = Annotated[
    bool, typer.Option(help="Allow fewer images than features have dimensions.")
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option(help="Replace other results of this command in OUT.")
]


@dataclass(frozen=True)
class Source:
    """Images to look at. digest: SHA-256 of their file or contents. batches: of a size, from an
    index on, float32 [b, C, H, W] in [-1, 1]. as_bytes: all, uint8 [N, C, H, W]."""

    count: int
    digest: str
    batches: Callable[[int, int], Iterator[Tensor]]
    as_bytes: Callable[[], Tensor]


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("frechet", no_args_is_help=True)(frechet)


def frechet(
    samples: Samples,
    data: Data,
    features: FeatureName = "mnist",
    policy: Policy = "round",
    part_size: PartSize = 500,
    device: models.Device = None,
    weights: Weights = None,
    allow_singular: AllowSingular = False,
    out: Out = Path("frechet"),
    overwrite: Overwrite = False,
) -> None:
    """The Fréchet distance between samples and data; with --features inception FID, IS and KID.

    Writes OUT/frechet.json and OUT/settings.json; of the built-in features a plot, OUT/frechet.png,
    and the data's statistics as OUT/data.safetensors. Parts are kept as they finish: after Ctrl-C
    or a crash the same command goes on where it stopped (inception starts again). Distances
    compare for equal numbers of samples only.

    Example: fastddpm evaluate frechet samples/samples.npz --data t10k-images-idx3-ubyte.gz
    """
    if features not in FEATURES:
        raise ValueError(f"--features is one of {', '.join(FEATURES)}; got {features!r}")
    if weights is not None and features != "inception":
        raise ValueError("--weights are those of --features inception")
    drawn = _of_file(samples, policy, features)
    known = _known(data, features)
    real = _source(data, features) if known is None else None
    place = models.place_of(device)
    if features == "inception":
        fidelity.required(weights)
    elif not allow_singular:
        fewest = min(one.count for one in (drawn, known, real) if one is not None)
        refuse_singular(fewest, MnistFeatures.dimensions)
    settings = {
        **{"features": features, "policy": policy, "part_size": part_size},
        "samples_sha256": drawn.digest,
        "data_sha256": _digest(data) if real is None else real.digest,
    }
    results = (STATISTICS, PLOT, RESULT) if features == "mnist" else (RESULT,)
    folder = JobFolder(out, COMMAND, settings, results, overwrite=overwrite)
    if folder.complete:
        typer.echo(f"{out} already holds this result (--overwrite computes it again)")
        return
    try:
        if real is not None and features == "inception":
            found = _inception(drawn, real, weights, part_size, place)
        else:
            found = _distance(folder, drawn, known or real, part_size, place, allow_singular)
    except KeyboardInterrupt:
        typer.echo(f"what is done is kept in {out}; the same command goes on from there", err=True)
        raise
    found = {**found, "features": features, "policy": policy}
    atomic.write(out / RESULT, json.dumps(found, indent=2) + "\n")
    folder.remove_parts()
    for name, value in found.items():
        typer.echo(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    typer.echo(f"in {out}")


def _distance(
    folder: JobFolder,
    drawn: Source,
    data: FeatureStatistics | Source | None,
    part_size: int,
    place: torch.device,
    allow_singular: bool,
) -> dict[str, Any]:
    """The figure in features of digits; the data's statistics are written beside it."""
    assert data is not None
    features = MnistFeatures()
    if isinstance(data, Source):
        data = _statistics(folder, "data", data, features, part_size, place, first=drawn.count)
    of_samples = _statistics(folder, "samples", drawn, features, part_size, place)
    data.save(folder.folder / STATISTICS, features=MnistFeatures.name)
    distance = frechet_distance(of_samples, data, allow_singular=allow_singular)
    save_plot(folder.folder / PLOT, of_samples, data)
    return {"frechet_distance": distance, "samples": drawn.count, "data": data.count}


def _statistics(
    folder: JobFolder,
    what: str,
    source: Source,
    features: MnistFeatures,
    part_size: int,
    place: torch.device,
    first: int = 0,
) -> FeatureStatistics:
    """Of a source, whose image k is the folder's first + k."""
    parts = [range(first + p.start, first + p.stop) for p in parts_of(source.count, part_size)]
    left = [part for part in parts if not folder.has(part)]
    # One pass over the file from the first of them on, parts that are kept read and not looked at.
    passed = parts[parts.index(left[0]) :] if left else []
    start = passed[0].start - first if passed else source.count
    with Bar(f"features of {what}", sum(map(len, left)), unit="images") as bar:
        for part, images in zip(passed, source.batches(part_size, start), strict=True):
            if part not in left:
                continue
            found = FeatureStatistics.of(features(images.to(place)))
            folder.write(part, **found.arrays())
            bar.advance(len(part))
    kept = (FeatureStatistics.from_arrays(folder.read(part)) for part in parts)
    return sum(kept, FeatureStatistics.none(features.dimensions))


def _inception(
    drawn: Source, real: Source, weights: Path | None, part_size: int, place: torch.device
) -> dict[str, Any]:
    found = inception_metrics(
        drawn.as_bytes(),
        real.as_bytes(),
        weights=weights,
        batch_size=part_size,
        cuda=place.type == "cuda",
        verbose=True,
    )
    return {**found, "samples": drawn.count, "data": real.count}


def _known(data: Path, features: str) -> FeatureStatistics | None:
    """The statistics of data that an earlier run kept, where ``data`` names such a file."""
    if data.suffix != ".safetensors":
        return None
    known, notes = FeatureStatistics.load(data)
    if features == "inception" or notes.get("features") != features:
        raise ValueError(
            f"{data} holds statistics of {notes.get('features')} features; --features is {features}"
        )
    return known


def _source(path: Path, features: str) -> Source:
    if path.suffix == ".npz":
        return _of_file(path, "round", features)
    held = load_images(path)
    _check_shape(tuple(held.images.shape[1:]), features)

    def batches(size: int, start: int) -> Iterator[Tensor]:
        for first in range(start, len(held), size):
            yield from_uint8(held.images[first : first + size].permute(0, 2, 3, 1))

    return Source(len(held), held.fingerprint, batches, lambda: held.images)


def _of_file(path: Path, policy: str, features: str) -> Source:
    file = ImageFile(path, policy)
    _check_shape(file.shape, features)
    if features == "inception":
        file.refuse_floats()
    return Source(file.count, _digest(path), file.batches, file.as_bytes)


def _check_shape(shape: tuple[int, ...], features: str) -> None:
    (fidelity.check_channels if features == "inception" else check_shape)(shape)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            digest.update(content)
    return digest.hexdigest()
