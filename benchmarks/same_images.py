"""Are the images of an accelerated DDPMPipeline those of diffusers' own?

Both are called alike, with generators of one seed; their uint8 images are compared. The networks:

    mnist     the built-in model, written by save_pretrained and read by UNet2DModel
    cifar10   google/ddpm-cifar10-32's architecture and fixed_large, random weights

Run: python -m benchmarks.same_images
Writes benchmarks/results/same_images.json. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import fastddpm
from benchmarks import origin
from benchmarks.cpu import machine, networks
from benchmarks.cpu.contenders import Setup
from benchmarks.cpu.pipeline import plain

# Of 255, at most, and of all pixels at least.
LEVELS, EQUAL = 2, 0.999
OUT = origin.RESULTS / "same_images.json"


class Chain(NamedTuple):
    """steps: of the network's 1000."""

    network: str
    steps: int
    batch: int
    seed: int = 0


CHAINS = (Chain("mnist", 1000, 8), Chain("cifar10", 50, 2))


def compared(chain: Chain) -> dict[str, Any]:
    """Largest difference of 255, share of equal pixels, and the images' own spread."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / chain.network
        networks.write(chain.network, folder)
        own = plain(Setup(folder, chain.batch, torch.get_num_threads()))
    theirs, ours = (_images(one, chain) for one in (own, fastddpm.accelerate(own)))
    apart = np.abs(theirs - ours)
    return {
        **chain._asdict(),
        "largest_difference": int(apart.max()),
        "equal_pixels": float((apart == 0).mean()),
        "pixels": apart.size,
        "standard_deviation": float(theirs.std()),
    }


def missed(found: dict[str, Any]) -> bool:
    """Whether the images are further apart than they may be, or are no images."""
    near = found["largest_difference"] <= LEVELS and found["equal_pixels"] >= EQUAL
    # Of one grey everything would be equal.
    return not (near and found["standard_deviation"] > 25)


def _images(pipeline: Any, chain: Chain) -> np.ndarray:
    """int16 [B, H, W, C] of the uint8 images."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(chain.seed)
    settings = {"num_inference_steps": chain.steps, "generator": generator}
    found = pipeline(batch_size=chain.batch, output_type="pil", **settings)
    return np.stack([np.asarray(image) for image in found.images]).astype(np.int16)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every bar is kept, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_images", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=OUT, help="JSON to write")
    given = parser.parse_args(arguments)
    result = origin.described() | {"machine": machine.described(torch.get_num_threads())}
    result |= {"bars": {"largest_difference": LEVELS, "equal_pixels": EQUAL}, "chains": []}
    for chain in CHAINS:
        found = compared(chain)
        print(found, flush=True)
        result["chains"].append(found)
        origin.write(given.out, result)
    return 1 if any(missed(found) for found in result["chains"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
