"""``fastddpm doctor``: what is installed, what runs fast, what is missing and what that costs."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastddpm import ops, parity, selfcheck
from fastddpm.checkpoint import from_pretrained
from fastddpm.cli import selfcheck as findings_of
from fastddpm.noise import Purpose, philox4x32

PACKAGES = ("torch", "triton", "numpy", "safetensors", "diffusers", "tensorboard", "scipy")

# Philox4x32-10 of Random123's known-answer file: (every counter and key word) -> four words.
KNOWN_ANSWERS = {
    0x00000000: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    0xFFFFFFFF: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``ok`` is False for what makes the command fail."""

    what: str
    says: str
    ok: bool = True


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("doctor")(doctor)


def doctor(
    compare: Annotated[
        bool,
        typer.Option(
            "--selfcheck",
            help="Also run every kernel and engine of this machine against the reference, for up "
            "to a minute: the largest differences, their bounds, hashes of the bit-exact parts.",
        ),
    ] = False,
    others: Annotated[
        bool,
        typer.Option(
            "--parity",
            help="Also compare networks, schedulers, short chains and checkpoints with diffusers' "
            "and OpenAI's code, where that can be imported, for up to a minute: the largest "
            "differences and their bounds.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="With --selfcheck or --parity: also write the findings here.",
        ),
    ] = None,
) -> None:
    """Report versions, kernels, devices and the built-in model, and check the noise generator.

    Exit code 1 if something is broken; a missing optional part is only reported.
    """
    if json_file is not None and not (compare or others):
        raise typer.BadParameter(
            "it holds the findings of --selfcheck and --parity", param_hint="--json"
        )
    looks: list[Callable[[], Finding]] = [
        _python,
        *(lambda name=name: _package(name) for name in PACKAGES),
        _cpu_library,
        _gpu,
        _built_in_model,
        _noise_words,
        _noise_kernels,
    ]
    findings = [look() for look in looks]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "" if finding.ok else "BROKEN: "
        typer.echo(f"{finding.what:<{width}}  {mark}{finding.says}")
    sound = all(finding.ok for finding in findings)
    checks = []
    if compare:
        checks += selfcheck.all_checks(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if others:
        checks += parity.all_checks()
    if checks:
        sound = findings_of.report(checks, json_file) and sound
    if not sound:
        raise typer.Exit(1)


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.platform()}")


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "not installed")


def _cpu_library() -> Finding:
    return Finding("CPU library", ops.cpu_library_status())


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPU", "none that this torch can use; chains run on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", f"{', '.join(names)} (CUDA {torch.version.cuda})")


def _built_in_model() -> Finding:
    try:
        unet, diffusion = from_pretrained("mnist")
    except (ValueError, OSError) as error:
        return Finding("built-in model", " ".join(str(error).split()), ok=False)
    weights = sum(p.numel() for p in unet.parameters())
    return Finding("built-in model", f"mnist, {weights:,} parameters, {diffusion.num_steps} steps")


def _noise_words() -> Finding:
    for word, expected in KNOWN_ANSWERS.items():
        counter = torch.tensor([word])
        words = philox4x32((counter, counter, counter, counter), (word, word))
        if tuple(int(w) for w in words) != expected:
            return Finding("noise", "Philox does not give its known answers", ok=False)
    return Finding("noise", "Philox4x32-10 gives its known answers")


def _noise_kernels() -> Finding:
    if ops.library.cpu_library().handle is None:
        return Finding("noise kernels", "none: the specification itself runs")
    indices = torch.arange(4)
    draws = [
        ops.normal(7, indices, 11, (3, 5, 7), Purpose.REVERSE, backend=backend)
        for backend in ("auto", "reference")
    ]
    same = torch.equal(*draws)
    says = "bit for bit its specification" if same else "differ from their specification"
    return Finding("noise kernels", says, ok=same)
