"""``fastddpm convert``: a checkpoint of one family as one of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastddpm.cli import model as models


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("convert")(convert)


def convert(
    source: Annotated[str, typer.Argument(help=models.MODEL_HELP)],
    folder: Annotated[Path, typer.Argument(help="Folder to write the checkpoint to.")],
    to: Annotated[
        str,
        typer.Option(
            help="Layout to write: diffusers, openai (state dict and kwargs.json), ho (TensorFlow "
            "checkpoint and kwargs.json), pesser (its state dict, which ermongroup's code reads "
            "too, and Ho's kwargs.json) or pytorch-ddpm (ckpt.pt and flagfile.txt)."
        ),
    ] = "diffusers",
    kwargs: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of the settings that SOURCE was trained with, under its own code's "
            "names. OpenAI's state dicts need it; the others have defaults. [default: the file "
            "that its code writes beside it]"
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the weights themselves, not their averages (EMA).")
    ] = False,
    variant: Annotated[
        str | None, typer.Option(help="Of a diffusers folder: fp16, non_ema, ...")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace a checkpoint of the same layout in FOLDER.")
    ] = False,
) -> None:
    """Read a checkpoint of any family and write it in the layout of another, or of its own.

    Read: diffusers folders, OpenAI's .pt, Ho's TensorFlow checkpoints, and the torch files of
    pesser, ermongroup, pytorch-ddpm and lucidrains' Trainer. The network computes the same
    afterwards, and its noise schedule goes with it. What the other side cannot express is refused.

    Example: fastddpm convert ema_0.9999_500000.pt cifar10 --kwargs flags.json

    Example: fastddpm convert diffusion_cifar10_model/model.ckpt-790000 cifar10
    """
    from fastddpm import checkpoint
    from fastddpm.checkpoint.files import read_json
    from fastddpm.checkpoint.folders import refuse_file_name

    savers = {
        "diffusers": checkpoint.save_pretrained,
        "openai": checkpoint.save_openai,
        "ho": checkpoint.save_ho_bundle,
        "pesser": checkpoint.save_ho,
        "pytorch-ddpm": checkpoint.save_pytorch_ddpm,
    }
    if to not in savers:
        raise ValueError(f"--to is one of {', '.join(savers)}; got {to!r}")
    refuse_file_name(folder)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ValueError(f"{folder} is not empty: choose another folder, or --overwrite")
    arguments = None if kwargs is None else read_json(kwargs)
    unet, diffusion = checkpoint.from_pretrained(
        source, kwargs=arguments, ema=not raw, variant=variant
    )
    savers[to](folder, unet, diffusion)
    count = sum(p.numel() for p in unet.parameters())
    typer.echo(f"{count:,} parameters, {diffusion.num_steps} steps, in {folder} ({to} layout)")
