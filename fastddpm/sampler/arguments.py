"""What callers hand to the sampler, checked and converted; a ValueError says what came instead."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = np.ndarray[Any, Any]
Indices: TypeAlias = Iterable[int] | Tensor | Array
Labels: TypeAlias = int | Sequence[int] | Sequence[float] | Tensor | Array

# Networks of these kinds embed floating numbers of the caller's; the others look classes up.
FLOATING_LABELS = ("timestep", "identity")


def integer(name: str, value: Any) -> int:
    """An integer of any type (numpy's, a tensor's) as an int; neither 2.0 nor True is one."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass  # The message is the same.
    raise ValueError(f"{name} must be an integer, got {_described(value)}")


def step_indices(name: str, value: Any) -> tuple[list[int], bool]:
    """One integer or several, at least one; and whether they came as several."""
    plain = _plain(value)
    several = isinstance(plain, Iterable)
    listed = _integers(name, plain) if several else [integer(name, plain)]
    if not listed:
        raise ValueError(f"{name} must hold at least one step")
    return listed, several


def positive(name: str, value: Any) -> int:
    """An integer of at least 1."""
    number = integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def number(name: str, value: Any) -> float:
    """A number as a float."""
    if is_number(value):
        return float(value)
    raise ValueError(f"{name} must be a number, got {_described(value)}")


def is_number(value: Any) -> bool:
    """Of Python's or numpy's real ones; neither "1", True nor a tensor is one."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def sample_shape(shape: Any) -> tuple[int, ...]:
    """The shape of a sample, (C, *spatial)."""
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise ValueError(f"shape must be the sizes (C, H, W), got {_described(shape)}")
    sizes = tuple(positive("each size of shape", size) for size in shape)
    if len(sizes) < 2:
        raise ValueError(f"shape must be the sizes (C, H, W), got {sizes}")
    return sizes


def sample_indices(n: int | None, indices: Indices | None) -> Tensor:
    """The sample indices, int64 [n] on the host: the first n, or those listed."""
    if (n is None) == (indices is None):
        raise ValueError("give either n, the number of images, or indices=")
    if indices is None:
        count = integer("n", n)
        if count < 0:
            raise ValueError(f"n must be at least 0, got {count}")
        return torch.arange(count, dtype=torch.int64, device="cpu")
    listed = _integers("indices", indices)
    if any(i < 0 or i >= 1 << 63 for i in listed):
        raise ValueError(f"indices must lie in 0 to 2^63 - 1, got {min(listed)} to {max(listed)}")
    return torch.tensor(listed, dtype=torch.int64, device="cpu")


def label_rows(labels: Labels, count: int, model: Any, device: torch.device) -> Tensor:
    """The labels of ``count`` images on the device, as the model's config says that it takes them.

    int64 [count] classes in 0 to num_class_embeds - 1; with class_embed_type "timestep" float32
    [count], with "identity" float32 [count, channels]. One number counts for all images.
    """
    config = getattr(model, "config", None)
    if getattr(config, "class_embed_type", None) in FLOATING_LABELS:
        rows = _floating(labels, device)
        rows = rows.expand(count) if rows.ndim == 0 else rows
    else:
        one = not isinstance(_plain(labels), Iterable)
        classes = _integers("labels", [labels] if one else labels) * (count if one else 1)
        _check_classes(classes, getattr(config, "num_class_embeds", None))
        rows = torch.tensor(classes, dtype=torch.int64, device=device)
    if len(rows) != count:
        raise ValueError(f"labels must be one class or {count}, got shape {list(rows.shape)}")
    return rows


def weights(lambdas: Iterable[float] | Tensor | Array) -> list[float]:
    """The weights of an interpolation, at least one and each finite."""
    listed: list[float] = []
    given = _plain(lambdas)
    if not isinstance(given, Iterable):
        raise ValueError(f"lambdas must be a list of weights, got {_described(lambdas)}")
    for weight in given:
        try:
            number = float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"lambdas must be finite numbers, got {_described(weight)}")
        listed.append(number)
    if not listed:
        raise ValueError("lambdas must hold at least one weight")
    return listed


def images(name: str, value: Any) -> Tensor:
    """A tensor or numpy array of floating-point images."""
    tensor = torch.as_tensor(value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be tensors, got {type(value).__name__}")
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point images in [-1, 1] (fastddpm.sampler.from_uint8 makes "
            f"them of bytes), got {tensor.dtype}"
        )
    return tensor


def within(name: str, images: Tensor, bound: float | None, tolerance: float = 1e-3) -> None:
    """ValueError for images with values beyond the bound of x_0, which no chain leads to."""
    largest = float(images.abs().max()) if images.numel() else 0.0
    # Not so for NaN, either. Last bits of a picture that went through a network do not count.
    if bound is not None and not largest <= bound * (1 + tolerance):
        raise ValueError(
            f"{name} must lie in [{-bound:g}, {bound:g}] (fastddpm.sampler.from_uint8 makes such "
            f"of bytes), got values up to {largest:.4g}"
        )


def guidance(
    model: Any, rows: Tensor | None, *, guidance: float, null_label: int | None = None, **_: Any
) -> tuple[int, float]:
    """The class that stands for none, and w of classifier-free guidance, for label rows."""
    if rows is None or rows.is_floating_point():
        raise ValueError("guidance= needs labels=, one class for each image")
    config = getattr(model, "config", None)
    classes = getattr(config, "num_class_embeds", None)
    if null_label is None:
        if classes is None and config is not None:
            raise ValueError("guidance= needs a network of classes; this one takes no labels")
        if classes is None:
            raise ValueError("the model has no config that tells its classes: give null_label=")
        null_label = classes - 1
    label = integer("null_label", null_label)
    _check_classes([label], classes)
    scale = number("guidance", guidance)
    if not math.isfinite(scale):
        raise ValueError(f"guidance must be finite, got {guidance}")
    return label, scale


def mask(name: str, value: Any, images: Tensor) -> Tensor:
    """A mask of zeros and ones that broadcasts to the images, as bool of their shape."""
    tensor = torch.as_tensor(value, device=images.device)
    if tensor.dtype != torch.bool:
        if not ((tensor == 0) | (tensor == 1)).all():
            raise ValueError(f"{name} must be bool, or 0 and 1")
        tensor = tensor == 1
    try:
        return tensor.expand(images.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the images {list(images.shape)}, got {list(tensor.shape)}"
        ) from None


def _floating(labels: Labels, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(labels, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels must be numbers, got {_described(labels)}") from None


def _check_classes(classes: list[int], known: int | None) -> None:
    wrong = next((c for c in classes if known is not None and not 0 <= c < known), None)
    if known is not None and wrong is not None:
        raise ValueError(f"labels must lie in 0 to {known - 1}, got {wrong}")


def _integers(name: str, values: Any) -> list[int]:
    try:
        return [integer(name, value) for value in _plain(values)]
    except (TypeError, ValueError):
        wanted = "integers" if name == "labels" else "integers in one dimension"
        raise ValueError(f"{name} must be {wanted}, got {_described(values)}") from None


def _plain(values: Any) -> Any:
    """Tensors and arrays as nested lists: Python's numbers tell bool, int and float apart."""
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else values


def _described(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return reprlib.repr(value)
