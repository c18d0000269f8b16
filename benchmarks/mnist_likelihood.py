"""The built-in model's bits per dimension and its rate–distortion curve on MNIST's test images.

    bound   prior + Σ_t vb_t of every image, estimated from K timesteps drawn for each and t = 0;
            with both decoders
    curve   the means of the terms of 50 timesteps an image, summed along the chain (figure 5)

Run: python -m benchmarks.mnist_likelihood [--images 10000]
Writes benchmarks/results/mnist_likelihood.json and mnist_rate_distortion.{csv,png}. The figures
depend on the seed, 0, and on no batch, thread or machine beyond rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import fastddpm
from benchmarks.origin import REPOSITORY, RESULTS, described, write
from fastddpm.evaluation import Bound, DataSetBound, RateDistortion, bound_of_data
from fastddpm.train.data import load_images

RESULT, CURVE = RESULTS / "mnist_likelihood.json", RESULTS / "mnist_rate_distortion"
# Timesteps of each image, for the bound and for the curve.
FEW, MANY = 20, 50


def figures(bound: DataSetBound, timesteps: int) -> dict[str, Any]:
    """Bits per dimension, means over images; ± of 95 % intervals."""
    return {
        "timesteps": timesteps,
        "images": bound.images,
        "bits_per_dim": bound.bits_per_dim,
        "interval_95": bound.interval,
        "deviation_of_an_image": float((bound.total.squares / (bound.images - 1)).sqrt()),
        "prior": float(bound.prior.mean),
        "decoder_term": float(bound.vb.mean[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--data", default=str(REPOSITORY / "../shared/data/mnist"))
    arguments = parser.parse_args()
    test = load_images(Path(arguments.data) / "t10k-images-idx3-ubyte.gz")
    images: torch.Tensor = test.images[: arguments.images]
    unet, diffusion = fastddpm.from_pretrained("mnist")
    tanh, erf = (Bound(unet, diffusion, decoder=decoder) for decoder in ("tanh", "erf"))
    few = bound_of_data(tanh, images, timesteps=FEW)
    print(figures(few, FEW), flush=True)
    many = bound_of_data(erf, images, timesteps=MANY)
    curve = RateDistortion.of(many)
    curve.save_csv(CURVE.with_suffix(".csv"))
    curve.save_plot(CURVE.with_suffix(".png"))
    at = {"reverse_step_900": 899, "last": len(curve.rate) - 1}
    write(
        RESULT,
        {
            "tanh": figures(few, FEW),
            "erf": figures(many, MANY),
            "curve": {
                name: {"rate": float(curve.rate[k]), "rmse": float(curve.rmse[k])}
                for name, k in at.items()
            },
            **described(),
        },
    )


if __name__ == "__main__":
    main()
