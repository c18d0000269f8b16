"""``fastddpm evaluate nll`` and ``rate-distortion``: the bound over a data set, and its curve.

Both compute the same terms; they differ in what they write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, cast, get_type_hints

import torch
import typer

from fastddpm import atomic
from fastddpm.cli import model as models
from fastddpm.cli.job_folder import JobFolder
from fastddpm.cli.progress import Bar
from fastddpm.cli.sample import Spacing, Steps
from fastddpm.evaluation import Bound, DataSetBound, RateDistortion
from fastddpm.evaluation.data_set import PART_SIZE, bounds_of_parts, merged, parts_of
from fastddpm.evaluation.pairs import images_for_bound, images_for_curve
from fastddpm.evaluation.terms import Decoder
from fastddpm.sampler.model import sample_shape
from fastddpm.train.data import ImageData, load_images
from fastddpm.unet import UNet

Data: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Images: an MNIST IDX file, a folder of images, or an .npz with uint8 [N, H, W, C].",
        show_default=False,
    ),
]
ImageSize: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Pixels to which a folder's images are resized and cropped.")
]
PadTo: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Pixels to which images are padded with zeros.")
]
Num: TypeAlias = Annotated[
    int | None, typer.Option("--num", "-n", min=1, help="The first so many images; default: all.")
]
PartSize: TypeAlias = Annotated[
    int, typer.Option("--part-size", min=1, help="Images of a part; each is kept when done.")
]
BatchSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Pairs of an image and a timestep that run at once; default: 64.",
        show_default=False,
    ),
]
DecoderName: TypeAlias = Annotated[
    str, typer.Option(help="The CDF of step 0: tanh, as in Ho's and OpenAI's code, or erf, exact.")
]
Timesteps: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Estimate from so many timesteps an image, drawn by seed, and step 0; default: all T.",
    ),
]
Out: TypeAlias = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Overwrite: TypeAlias = Annotated[
    bool, typer.Option(help="Replace other results of this command in OUT.")
]


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """The options of both commands; what changes a result is among their settings."""

    data: Data
    model: models.Model = "mnist"
    num: Num = None
    seed: models.Seed = 0
    timesteps: Timesteps = None
    decoder: DecoderName = "tanh"
    image_size: ImageSize = 0
    pad_to: PadTo = 0
    part_size: PartSize = PART_SIZE
    batch_size: BatchSize = None
    steps: Steps = None
    spacing: Spacing = "linspace"
    engine: models.Engine = "auto"
    device: models.Device = None
    dtype: models.Dtype = "float32"
    threads: models.Threads = None
    weights: models.Weights = "float32"
    memory: models.Memory = "small"
    out: Out
    overwrite: Overwrite = False


class Measure(NamedTuple):
    """One of the commands.

    results: the files it writes, the last of which ends the job.
    report: writes those before it, and returns the numbers for the last, and a line to print.
    least_images: of T steps of which K are drawn, how many images it takes; ValueError for a K that
        cannot be drawn.
    """

    name: str
    help: str
    results: tuple[str, ...]
    report: Callable[[DataSetBound, Path], tuple[dict[str, Any], str]]
    least_images: Callable[[int, int], int]


def _report_nll(bound: DataSetBound, out: Path) -> tuple[dict[str, Any], str]:
    bound.save_csv(out / "nll.csv")
    bound.save_plot(out / "nll.png")
    found = {
        "bits_per_dim": bound.bits_per_dim,
        "interval_95": bound.interval,
        "prior": float(bound.prior.mean),
        "decoder": float(bound.vb.mean[0]),
    }
    return (
        found,
        f"{bound.bits_per_dim:.4f} ± {bound.interval:.4f} bits/dim of {bound.images} images",
    )


def _report_curve(bound: DataSetBound, out: Path) -> tuple[dict[str, Any], str]:
    curve = RateDistortion.of(bound)
    curve.save_csv(out / "rate_distortion.csv")
    curve.save_plot(out / "rate_distortion.png")
    last = {name: float(values[-1]) for name, values in curve._asdict().items()}
    line = f"{last['rate']:.4f} bits/dim at RMSE {last['rmse']:.4f} of {bound.images} images"
    return last, line


MEASURES = (
    Measure(
        "nll",
        "Bits per dimension of a data set: the bound on -log2 p(x)/D, with its 95 % interval.\n\n"
        "Writes OUT/nll.json, OUT/nll.csv (the mean of every term), OUT/nll.png and "
        "OUT/settings.json. Parts are kept as they finish: after Ctrl-C or a crash the same "
        "command goes on where it stopped.\n\n"
        "Example: fastddpm evaluate nll --data t10k-images-idx3-ubyte.gz --timesteps 20",
        ("nll.csv", "nll.png", "nll.json"),
        _report_nll,
        images_for_bound,
    ),
    Measure(
        "rate-distortion",
        "The chain as a progressive code: bits so far against the error of the estimate.\n\n"
        "Writes OUT/rate_distortion.csv (by reverse step: bits per dimension, mean square error of "
        "images in [-1, 1], RMSE on 0 to 255), OUT/rate_distortion.png and .json, and "
        "OUT/settings.json. Goes on where it stopped, as nll does.\n\n"
        "Example: fastddpm evaluate rate-distortion --data t10k-images-idx3-ubyte.gz --num 64",
        ("rate_distortion.csv", "rate_distortion.png", "rate_distortion.json"),
        _report_curve,
        images_for_curve,
    ),
)


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for measure in MEASURES:
        app.command(measure.name, help=measure.help, no_args_is_help=True)(command(measure))


def command(measure: Measure) -> Callable[..., None]:
    """A function whose parameters are the fields of BoundOptions."""

    def run(**given: Any) -> None:
        evaluate(measure, BoundOptions(**given))

    types = get_type_hints(BoundOptions, include_extras=True)
    defaults = {f.name: f.default for f in fields(BoundOptions) if f.default is not MISSING}
    defaults["out"] = Path(measure.name)
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, ...), annotation=kind)
        for name, kind in types.items()
    ]
    # inspect.signature reads this attribute, which the type of functions does not declare.
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = types
    return run


def evaluate(measure: Measure, options: BoundOptions) -> None:
    """Compute the parts that are not done yet, and write the results."""
    unet, diffusion, place = models.load(
        *(options.model, options.steps, options.spacing, options.device, options.dtype)
    )
    bound = Bound(
        *(unet, diffusion, options.engine, place, getattr(torch, options.dtype)),
        decoder=cast(Decoder, options.decoder),
        batch_size=options.batch_size,
        threads=options.threads,
        weights=options.weights,
        memory=options.memory,
    )
    data = _images(options, unet)
    _check_draws(measure, options, len(data), diffusion.num_steps)
    settings = {
        **models.identity(options.model, unet, diffusion, options.dtype, options.weights),
        **{"data_sha256": data.fingerprint, "num": len(data), "seed": options.seed},
        **{"timesteps": options.timesteps, "decoder": options.decoder},
        **{"steps": diffusion.num_steps, "spacing": options.spacing},
        **{"part_size": options.part_size},
    }
    who, overwrite = f"fastddpm evaluate {measure.name}", options.overwrite
    folder = JobFolder(options.out, who, settings, measure.results, overwrite=overwrite)
    if folder.complete:
        typer.echo(f"{options.out} already holds this result (--overwrite computes it again)")
        return
    parts = parts_of(len(data), options.part_size)
    _run(bound, data, options, folder, parts)
    whole = merged(DataSetBound.from_arrays(folder.read(part)) for part in parts)
    found, line = measure.report(whole, options.out)
    found = {"images": whole.images, "timesteps": options.timesteps or diffusion.num_steps, **found}
    text = json.dumps({k: _or_none(v) for k, v in found.items()}, indent=2) + "\n"
    atomic.write(options.out / measure.results[-1], text)
    folder.remove_parts()
    typer.echo(f"{line}, in {options.out}: {', '.join(measure.results)}")


def _check_draws(measure: Measure, options: BoundOptions, images: int, steps: int) -> None:
    if options.timesteps is None:
        return
    least = measure.least_images(steps, options.timesteps)
    if images < least:
        raise ValueError(
            f"--timesteps {options.timesteps} needs {least} images or more, got {images}: give "
            "more of either, or all timesteps"
        )


def _images(options: BoundOptions, unet: UNet) -> ImageData:
    """The images asked for, and their labels where the network takes any."""
    data = load_images(options.data, image_size=options.image_size, pad_to=options.pad_to)
    config, count = unet.config, options.num or len(data)
    if count > len(data):
        raise ValueError(f"--num is {count}, {options.data} holds {len(data)} images")
    if config.is_conditional and data.labels is None:
        raise ValueError(f"the model has classes, but {options.data} tells none")
    labels = data.labels[:count] if config.is_conditional and data.labels is not None else None
    images, shape = data.images[:count], sample_shape(unet)
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"{options.data} holds images of {list(images.shape[1:])}, the model makes "
            f"{list(shape)}: see --image-size and --pad-to"
        )
    return ImageData(images, labels)


def _run(
    bound: Bound, data: ImageData, options: BoundOptions, folder: JobFolder, parts: list[range]
) -> None:
    left = [part for part in parts if not folder.has(part)]
    terms = 1 + (options.timesteps or bound.diffusion.num_steps - 1)
    try:
        with Bar("evaluating", sum(map(len, left)) * terms, unit="images", scale=1 / terms) as bar:
            found = bounds_of_parts(
                *(bound, data.images, options.seed),
                labels=data.labels,
                timesteps=options.timesteps,
                parts=left,
                advance=bar.advance,
            )
            for part, sums in found:
                folder.write(part, **sums.arrays())
    except KeyboardInterrupt:
        done = sum(len(part) for part in parts if folder.has(part))
        typer.echo(
            f"{done} of {len(data)} images are done and kept in {folder.folder}; "
            "the same command goes on from there",
            err=True,
        )
        raise


def _or_none(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
