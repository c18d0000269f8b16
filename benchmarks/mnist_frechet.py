"""How far the built-in model's samples lie from MNIST's test images, in features of digits.

    samples   N of the model by several ways down the chain; N training images, the least that N
              samples can be expected to reach; N images of bytes drawn alike
    distance  Fréchet, and kernel with its standard error, to the 10,000 test images

Run: python -m benchmarks.mnist_frechet [--samples 1000] [--only NAME]
Writes benchmarks/results/mnist_frechet.json after every row; rows of an earlier run are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastddpm
from benchmarks.mnist_features import as_input
from benchmarks.origin import RESULTS, described, write
from fastddpm.evaluation import (
    FeatureStatistics,
    MnistFeatures,
    frechet_distance,
    kernel_distance,
)
from fastddpm.sampler import from_uint8, to_uint8
from fastddpm.train.data import load_images

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = RESULTS / "mnist_frechet.json"
BATCH = 100
CHAINS: dict[str, dict[str, Any]] = {
    "ancestral, 100 steps": {"steps": 100},
    "ddim, 100 steps": {"steps": 100, "method": "ddim"},
    "dpm-solver++, 20 steps": {"steps": 20, "method": "dpm-solver++"},
    "langevin, 50 steps, 1 correction": {"steps": 50, "method": "langevin"},
    "ancestral, 250 steps": {"steps": 250},
}


def drawn(name: str, count: int) -> Tensor:
    """Images of a chain, seed 0, as bytes give them back: float32 [count, 1, 28, 28]."""
    sampler = fastddpm.Sampler(*fastddpm.from_pretrained("mnist"))
    parts = []
    for first in range(0, count, BATCH):
        indices = range(first, min(first + BATCH, count))
        x_0 = sampler.sample(indices=indices, seed=0, **CHAINS[name])
        parts.append(from_uint8(to_uint8(x_0)))
        print(f"{name}: {indices.stop} of {count}", flush=True)
    return torch.cat(parts)


def features_of(images: Tensor) -> Tensor:
    """[N, 128] of images, float32 [N, 1, 28, 28] in [−1, 1]."""
    features = MnistFeatures()
    return torch.cat([features(part) for part in images.split(500)])  # type: ignore[no-untyped-call]


def distances(images: Tensor, of_data: Tensor) -> dict[str, Any]:
    """Of the images' features to the data's."""
    found = features_of(images)
    kernel = kernel_distance(found, of_data, block=100)
    return {
        "frechet": frechet_distance(FeatureStatistics.of(found), FeatureStatistics.of(of_data)),
        "kernel": kernel.mean,
        "kernel_standard_error": kernel.standard_error,
        "samples": len(images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", choices=list(CHAINS), help="this chain and no other row")
    parser.add_argument("--data", default=str(REPOSITORY / "../shared/data/mnist"))
    arguments = parser.parse_args()
    count = arguments.samples
    test = load_images(Path(arguments.data) / "t10k-images-idx3-ubyte.gz")
    of_data = features_of(as_input(test.images))
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}

    def keep(name: str, images: Tensor) -> None:
        origin = described()
        rows[name] = distances(images, of_data) | {"commit": origin["commit"]}
        write(RESULT, {"data": len(test), "rows": rows, **origin})
        print(name, rows[name], flush=True)

    if arguments.only is None:
        generator = torch.Generator().manual_seed(0)
        train = load_images(arguments.data).images
        chosen = torch.randperm(len(train), generator=generator)[:count]
        keep("training images", as_input(train[chosen]))
        shape = (count, 1, 28, 28)
        noise = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        keep("noise", as_input(noise))
    for name in CHAINS if arguments.only is None else (arguments.only,):
        keep(name, drawn(name, count))


if __name__ == "__main__":
    main()
