"""Files of the codec, of images whose best network is known, and what they decode to."""

from __future__ import annotations

from functools import cache
from typing import Any

import gaussian_data as data
import torch
from torch import Tensor

import fastddpm
from fastddpm.codec import Codec, Decoded, Encoded
from fastddpm.sampler import to_uint8

COUNT, STEPS, TARGET = 3, 20, 3.0


def pictures(count: int = COUNT) -> Tensor:
    return to_uint8(data.draws(count))


def codec_of(diffusion: fastddpm.GaussianDiffusion = data.DIFFUSION, model: Any = None) -> Codec:
    return Codec(model or data.network, diffusion)


def encode(codec: Codec, images: Tensor, **options: Any) -> Encoded:
    return codec.encode(images, **{"steps": STEPS, "target": TARGET, **options})


@cache
def encoded_once() -> Encoded:
    return encode(codec_of(), pictures())


@cache
def decoded_once() -> list[Decoded]:
    """What each stage of the whole file decodes to; the pixels image by image."""
    return list(codec_of().stages(encoded_once().data))


def assert_sound(decoded: Decoded, states: list[Decoded]) -> None:
    """What was decoded is what the whole file says at that stage."""
    whole = states[min(decoded.stage, STEPS) - 1]
    assert torch.equal(decoded.x_t, whole.x_t)
    exact = decoded.lossless
    assert torch.equal(decoded.images[exact], pictures()[exact])
    assert torch.equal(decoded.images[~exact], whole.images[~exact])
