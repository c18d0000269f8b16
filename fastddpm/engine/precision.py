"""TF32 on or off: torch's settings are global, so they hold inside a ``with`` and are put back.

torch has two sets of names for them, and from 2.9 on reading the old ones raises after a caller has
used the new ones (``fp32_precision``). Inductor reads both, so both are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def precision(*, tf32: bool) -> Iterator[None]:
    """Whether float32 convolutions and products inside may be rounded to TF32 (10 bits of mantissa)
    on a GPU.

    What is compiled or captured inside keeps the setting; what is only run follows the one around.
    """
    products = _read(torch.get_float32_matmul_precision)
    convolutions = _read(lambda: torch.backends.cudnn.allow_tf32)
    named = [setting for setting in _settings() if hasattr(setting, "fp32_precision")]
    names = [setting.fp32_precision for setting in named]
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        for setting in named:
            setting.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        # The old names first: writing them writes some of the new ones.
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            torch.backends.cudnn.allow_tf32 = convolutions
        for setting, name in zip(named, names, strict=True):
            setting.fp32_precision = name


def _settings() -> list[Any]:
    """Where the new names are, for all that the old names set."""
    cudnn = torch.backends.cudnn
    owners = (torch.backends.cuda, "matmul"), (torch.backends.mkldnn, "matmul")
    return [
        getattr(owner, name, None) for owner, name in (*owners, (cudnn, "conv"), (cudnn, "rnn"))
    ]


def _read(setting: Callable[[], T]) -> T | None:
    """Its value; None where the caller has used the new names."""
    try:
        return setting()
    except RuntimeError:
        return None
