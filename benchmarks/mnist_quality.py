"""Do the built-in model's samples look like digits? A classifier's confidence and class shares.

A small convolutional network is trained on MNIST until it reads at least 98 % of the test set; then

    confident = share of samples whose largest class probability exceeds 0.9
    shares    = share of samples in each of the ten classes

Run: python -m benchmarks.mnist_quality [--model mnist] [--samples 1000] [--steps N] [--npz FILE]
Writes benchmarks/results/mnist_quality.json.  The bar: confident ≥ 85 %, shares in [4 %, 18 %].
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastddpm
from benchmarks.mnist_features import ACCURACY_BAR, accuracy, probabilities, train_classifier
from fastddpm import timesteps
from fastddpm.sampler import to_uint8
from fastddpm.train.data import ImageData, load_images

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks/results/mnist_quality.json"
CONFIDENCE = 0.9
# The bars of the report: least confidence, least and most of a class.
CONFIDENT_BAR, SHARE_BARS = 0.85, (0.04, 0.18)


def draw(model: str, count: int, batch_size: int, steps: int | None) -> Tensor:
    """uint8 [count, 1, 28, 28] from `model`, seed 0; steps None: the whole chain."""
    unet, diffusion = fastddpm.from_pretrained(model)
    # On a CPU torch convolves faster in this layout.
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if steps is not None:
        diffusion = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    sampler = fastddpm.Sampler(unet, diffusion)
    parts = []
    for first in range(0, count, batch_size):
        x_0 = sampler.sample(indices=range(first, min(first + batch_size, count)), seed=0)
        parts.append(to_uint8(x_0).permute(0, 3, 1, 2).contiguous())
        print(f"{first + len(x_0)} of {count} samples", flush=True)
    return torch.cat(parts)


def read_samples(path: Path) -> Tensor:
    """The samples of `fastddpm sample`: array "samples", uint8 [N, H, W, C]."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays["samples"]).permute(0, 3, 1, 2).contiguous()


def measure(network: nn.Module, images: Tensor, test: ImageData) -> dict[str, Any]:
    """The figures of the report."""
    on_test = probabilities(network, test.images).amax(1) > CONFIDENCE
    p = probabilities(network, images)
    shares = torch.bincount(p.argmax(1), minlength=10).double() / len(p)
    return {
        "classifier_test_accuracy": accuracy(network, test),
        "confident_real_test_images": float(on_test.double().mean()),
        "samples": len(images),
        "confident": float((p.amax(1) > CONFIDENCE).double().mean()),
        "class_shares": [round(float(share), 4) for share in shares],
    }


def misses(report: dict[str, Any]) -> list[str]:
    """Which bars the figures miss, in words."""
    of_test, confident, shares = (
        report[key] for key in ("classifier_test_accuracy", "confident", "class_shares")
    )
    bars = {
        f"classifier accuracy {of_test} < {ACCURACY_BAR}": of_test < ACCURACY_BAR,
        f"confident {confident} < {CONFIDENT_BAR}": confident < CONFIDENT_BAR,
        f"class shares {min(shares)} to {max(shares)} outside of {SHARE_BARS}": (
            min(shares) < SHARE_BARS[0] or max(shares) > SHARE_BARS[1]
        ),
    }
    return [text for text, missed in bars.items() if missed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist", help="a built-in name or a checkpoint")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, help="reverse steps; default: all of the chain")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--npz", type=Path, help="measure these samples instead of drawing any")
    parser.add_argument("--data", default=str(REPOSITORY / "../shared/data/mnist"))
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    network = train_classifier(load_images(arguments.data))
    test = load_images(str(Path(arguments.data) / "t10k-images-idx3-ubyte.gz"))
    if arguments.npz:
        images, origin = read_samples(arguments.npz), {"npz": arguments.npz.name}
    else:
        images = draw(arguments.model, arguments.samples, arguments.batch_size, arguments.steps)
        origin = {"model": arguments.model, "steps": arguments.steps or "all"}
    report = origin | measure(network, images, test)
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    report |= {"torch": torch.__version__, "machine": platform.machine(), "commit": commit}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    if missed := misses(report):
        raise SystemExit("; ".join(missed))


if __name__ == "__main__":
    main()
