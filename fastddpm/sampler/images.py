"""From the chain's [-1, 1] to pictures: uint8 = round((x + 1) * 127.5), the inverse of x =
uint8/127.5 - 1; or as other systems have it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastddpm import atomic

# Grey and RGB.
PNG_CHANNELS = (1, 3)
# What is kept of x: a byte, rounded (diffusers, PIL) or truncated (OpenAI's scripts), or x (Ho).
PIXELS = ("round", "truncate", "float")
# What an .npz file calls its images [N, H, W, C]: fastddpm sample "samples", OpenAI's "arr_0".
ARRAYS = ("samples", "images", "train_images", "arr_0")


def to_uint8(x: Tensor) -> Tensor:
    """Images as bytes.

    x: floating [B, C, *spatial] in [-1, 1]; values beyond are clipped.
    Returns uint8 [B, *spatial, C] on the CPU. Rounds to the nearest level (OpenAI's scripts
    truncate).
    """
    if x.ndim < 3:
        raise ValueError(f"expected images [B, C, *spatial], got shape {list(x.shape)}")
    return as_pixels(x, "round")


def as_pixels(x: Tensor, policy: str) -> Tensor:
    """Images as ``policy``, one of PIXELS, keeps them: [B, *spatial, C] on the CPU, uint8 or for
    "float" float32. x as in ``to_uint8``."""
    if policy not in PIXELS:
        raise ValueError(f"expected pixels in {', '.join(PIXELS)}, got {policy!r}")
    levels = x.float()
    if policy != "float":
        levels = (levels + 1) * 127.5
        levels = levels.round() if policy == "round" else levels.trunc()
        levels = levels.clamp(0, 255).to(torch.uint8)
    return levels.movedim(1, -1).contiguous().cpu()


def from_uint8(images: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> float32 [B, C, H, W] in [-1, 1]."""
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(
            f"expected uint8 [B, H, W, C], got {images.dtype} of shape {list(images.shape)}"
        )
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def image_grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay images out row by row on white.

    images:  uint8 [B, H, W, C], B >= 1.
    columns: images in a row; None makes the grid about square.
    gap:     pixels between images and around them.
    Returns uint8 [rows * (H + gap) + gap, columns * (W + gap) + gap, C].
    """
    count, height, width, channels = images.shape
    if count < 1:
        raise ValueError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    size = (rows * (height + gap) + gap, columns * (width + gap) + gap, channels)
    grid = torch.full(size, 255, dtype=torch.uint8, device="cpu")
    for k, image in enumerate(images):
        top = gap + (k // columns) * (height + gap)
        left = gap + (k % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def save_png(path: Path, image: Tensor) -> None:
    """Write one uint8 image [H, W, C], C = 1 or 3, as a PNG: whole or not at all."""
    if image.shape[-1] not in PNG_CHANNELS:
        raise ValueError(f"a PNG has 1 or 3 channels here, got {image.shape[-1]}")
    pixels = image.numpy()
    with atomic.replacing(path) as partial:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(partial, "PNG")


def load_png(path: Path, channels: int) -> Tensor:
    """Read a picture as uint8 [H, W, C] with the given number of channels (1: grey, 3: RGB).

    Raises ValueError for another number of channels, and for a picture that these cannot hold:
    colours in a grey one, transparency, more than 8 bits. OSError when the file is no readable
    picture.
    """
    if channels not in PNG_CHANNELS:
        raise ValueError(f"a picture is read with 1 or 3 channels, got {channels}")
    with Image.open(path) as picture:
        lost = _lost(picture, channels)
        if lost is not None:
            raise ValueError(
                f"{path} has {lost}, which the model's images have not: convert it first"
            )
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).copy())


def _lost(picture: Image.Image, channels: int) -> str | None:
    """What the picture would lose as bytes of so many channels, in words."""
    if picture.mode.startswith(("I", "F")):
        return "more than 8 bits a pixel"
    levels = np.asarray(picture.convert("RGBA")).astype(np.int16)
    if (levels[..., 3] != 255).any():
        return "transparent pixels"
    if channels == 1 and np.ptp(levels[..., :3], axis=-1).any():
        return "colours"
    return None
