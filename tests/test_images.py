"""Pictures as a model's images: what a model's channels cannot hold is refused, not lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastddpm.sampler import load_png, save_png

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def saved(pixels: np.ndarray, folder: Path) -> Path:
    Image.fromarray(pixels).save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_read(channels: int, tmp_path: Path) -> None:
    image = torch.randint(256, (3, 4, channels), dtype=torch.uint8)
    save_png(tmp_path / "a.png", image)
    assert torch.equal(load_png(tmp_path / "a.png", channels), image)


def test_pictures_that_hold_the_same_otherwise(tmp_path: Path) -> None:
    as_colours = np.stack([GREY] * 3, axis=-1)
    opaque = np.concatenate([as_colours, np.full((3, 4, 1), 255, np.uint8)], axis=-1)
    for pixels in (GREY, as_colours, opaque, GREY > 100):
        read = load_png(saved(pixels, tmp_path), 1)[..., 0].numpy()
        assert (read == (255 * pixels if pixels.dtype == bool else GREY)).all()


@pytest.mark.parametrize(
    ("pixels", "channels", "lost"),
    [
        (np.stack([GREY, GREY, GREY + 1], axis=-1), 1, "colours"),
        (np.stack([GREY, GREY], axis=-1), 1, "transparent pixels"),
        (np.stack([GREY] * 4, axis=-1), 3, "transparent pixels"),
        (GREY.astype(np.uint16) * 200, 1, "more than 8 bits"),
    ],
)
def test_pictures_that_hold_more(
    pixels: np.ndarray, channels: int, lost: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"has {lost}"):
        load_png(saved(pixels, tmp_path), channels)
