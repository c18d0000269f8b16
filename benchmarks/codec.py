"""The codec's real bytes against the ideal rate, on MNIST test images with the built-in model.

    ideal   Σ KL(q ‖ p) - log2 p(x_0|x_1), the bound of the codec's own chain at the states it sent
    real    the bytes of the file, by what they are for

and how long a block's candidate number is beside its information I and the stated I + log2(I+1) + 4
bits. Whether all images come back exactly, from the whole file, and how well from its beginning.

Run: python -m benchmarks.codec [--images 16] [--settings] [--data FOLDER]
Writes benchmarks/results/codec.json and codec.png; --settings adds four images with other blocks
and chains. Times are of this machine's moment, one thread: they say an order of magnitude.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fastddpm
from benchmarks.origin import REPOSITORY, RESULTS, described, write
from fastddpm.codec import Codec, Encoded
from fastddpm.codec.sender import MOST, TOLERANCE, SentBlock
from fastddpm.sampler import image_grid, save_png
from fastddpm.train.idx import read_idx

DATA = REPOSITORY.parent / "shared/data/mnist"
RESULT, PICTURE = RESULTS / "codec.json", RESULTS / "codec.png"
# Shares of the file that are decoded, as rows of the picture; its images.
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
SHOWN = 8
# Steps and bits of a block, beside the default.
OTHERS = ((40, 4.0), (40, 5.0), (40, 7.0), (20, 6.0), (30, 6.0), (60, 6.0))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet, diffusion = fastddpm.from_pretrained("mnist")
    codec = Codec(unet, diffusion, threads=1)
    images = torch.from_numpy(read_idx(options.data / "t10k-images-idx3-ubyte.gz"))
    images = images[: options.images, ..., None]
    result: dict[str, Any] = {**described(), "data": "MNIST test", "images": len(images)}
    result["png_bits"] = png_bits(images)
    result["search"] = {"tolerance": TOLERANCE, "candidates": MOST}
    encoded, result["default"] = measured(codec, images)
    result["beginnings"] = beginnings(codec, encoded.data, images)
    if options.settings:
        few = images[:4]
        result["four_images"] = [measured(codec, few)[1]] + [
            measured(codec, few, steps=steps, target=target)[1] for steps, target in OTHERS
        ]
    write(RESULT, result)


def measured(codec: Codec, images: Tensor, **settings: Any) -> tuple[Encoded, dict[str, Any]]:
    """The file of the images, and its figures; all rates in bits an image."""
    began = time.perf_counter()
    encoded = codec.encode(images, **settings)
    encoding = time.perf_counter() - began
    began = time.perf_counter()
    decoded = codec.decode(encoded.data)
    decoding = time.perf_counter() - began
    count, bits = len(images), 8 * len(encoded.data)
    figures = {
        **settings,
        "exact": bool(torch.equal(decoded.images, images) and decoded.lossless.all()),
        "bytes": len(encoded.data),
        "bits": bits / count,
        "bits_per_dimension": bits / images.numel(),
        "ideal_bits": float(encoded.ideal.sum()) / count,
        "ideal_bits_per_dimension": float(encoded.ideal.sum()) / images.numel(),
        "real_over_ideal": bits / float(encoded.ideal.sum()),
        "ideal_states": float(encoded.ideal[:-1].sum()) / count,
        "ideal_pixels": float(encoded.ideal[-1].sum()) / count,
        "parts": {part: spent / count for part, spent in encoded.parts.items()},
        "blocks": of_blocks(encoded.blocks, count),
        "seconds_an_image": {"encode": encoding / count, "decode": decoding / count},
    }
    print({key: value for key, value in figures.items() if key != "blocks"}, figures["blocks"])
    return encoded, figures


def png_bits(images: Tensor) -> float:
    """Bits an image as a PNG file of its own, for scale."""
    sizes = []
    for image in images:
        held = io.BytesIO()
        Image.fromarray(image[..., 0].numpy()).save(held, "PNG", optimize=True)
        sizes.append(8 * held.tell())
    return sum(sizes) / len(sizes)


def of_blocks(blocks: Sequence[SentBlock], images: int) -> dict[str, float]:
    """Means over all blocks, in bits, and what the search may have missed."""
    information = np.array([block.information for block in blocks])
    code = np.array([block.code for block in blocks])
    missed = np.array([block.missed for block in blocks])
    bound = information + np.log2(information + 1) + 4
    return {
        "an_image": len(blocks) / images,
        "information": float(information.mean()),
        "code": float(code.mean()),
        "code_less_information": float((code - information).mean()),
        "code_less_information_standard_error": float(
            (code - information).std() / len(blocks) ** 0.5
        ),
        "stated_bound": float(bound.mean()),
        "largest_number": max(block.number for block in blocks),
        "missed_mean": float(missed.mean()),
        "missed_most": float(missed.max()),
        "share_that_met_no_tolerance": float((missed > TOLERANCE).mean()),
    }


def beginnings(codec: Codec, data: bytes, images: Tensor) -> list[dict[str, float]]:
    """What shares of the file decode to; draws the picture."""
    rows, figures = [], []
    for share in SHARES:
        cut = data[: round(share * len(data))]
        decoded = codec.decode(cut, partial=True)
        error = (decoded.images.double() - images.double()) ** 2
        figures.append(
            {
                "share": share,
                "bytes": len(cut),
                "stage": decoded.stage,
                "lossless": int(decoded.lossless.sum()),
                "rmse": float(error.mean().sqrt()),
            }
        )
        print(figures[-1])
        rows.append(decoded.images[:SHOWN])
    save_png(PICTURE, image_grid(torch.cat(rows), columns=len(rows[0])))
    return figures


if __name__ == "__main__":
    main()
