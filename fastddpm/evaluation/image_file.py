"""Images of an .npz file in batches, of which one is held at a time.

    samples.npz     array "samples" of ``fastddpm sample``, or "images", "arr_0" (OpenAI's)
                    uint8 [N, H, W, C], or floats [N, H, W, C] in [-1, 1]

Bytes are taken as they are. Floats are first what a picture would hold of them, by one of the
policies of ``fastddpm.sampler.images``: "float" (nothing is lost; Ho et al.), "round" (diffusers,
PIL) or "truncate" (OpenAI's scripts). FID tells them apart.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.sampler.images import ARRAYS, PIXELS, as_pixels, from_uint8

# Images that ``as_bytes`` takes at a time.
READ = 512
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, SyntaxError)


class ImageFile:
    """The images at ``path``; ValueError for a file without such an array, or another policy.

    count: N. shape: (C, H, W).
    """

    def __init__(self, path: Path, policy: str = "round") -> None:
        if policy not in PIXELS:
            raise ValueError(f"expected a policy in {', '.join(PIXELS)}, got {policy!r}")
        self.path = path
        self._policy = policy
        with self._opened() as (_, shape, dtype):
            if len(shape) != 4 or dtype not in (np.uint8, np.float16, np.float32, np.float64):
                raise ValueError(
                    f"{path}: expected uint8 or floating images [N, H, W, C], got {dtype} "
                    f"{list(shape)}"
                )
            self.holds_bytes = dtype == np.uint8
            self.count = shape[0]
            self.shape = (shape[3], shape[1], shape[2])

    def batches(self, size: int, start: int = 0) -> Iterator[Tensor]:
        """Images start, start + 1, ..., float32 [b, C, H, W] in [-1, 1], ``size`` at a time.

        ValueError at one that holds NaN or Inf, of which a policy would make a byte.
        """
        with self._opened() as (array, shape, dtype):
            one = dtype.itemsize * int(np.prod(shape[1:]))
            array.seek(start * one, 1)
            for first in range(start, self.count, size):
                count = min(size, self.count - first)
                content = array.read(count * one)
                if len(content) < count * one:
                    raise ValueError(f"{self.path}: truncated at image {first}")
                rows = np.frombuffer(content, dtype).reshape(count, *shape[1:])
                whole = np.isfinite(rows).all((1, 2, 3))
                if not whole.all():
                    raise ValueError(f"{self.path}: NaN or Inf in image {first + whole.argmin()}")
                yield self._images(torch.from_numpy(rows.copy()))

    def as_bytes(self) -> Tensor:
        """All of them as bytes, uint8 [N, C, H, W]. ValueError for the policy "float"."""
        self.refuse_floats()
        whole = torch.empty(self.count, *self.shape, dtype=torch.uint8)
        for first, images in zip(range(0, self.count, READ), self.batches(READ), strict=True):
            # Exact: what a byte became is nearest to it.
            whole[first : first + READ] = ((images + 1) * 127.5).round()
        return whole

    def refuse_floats(self) -> None:
        """ValueError where images are not bytes: the policy "float" of a file of floats."""
        if not self.holds_bytes and self._policy == "float":
            raise ValueError(f"{self.path} holds floats: round or truncate them to get bytes")

    def _images(self, rows: Tensor) -> Tensor:
        if rows.dtype == torch.uint8:
            return from_uint8(rows)
        images = rows.movedim(-1, 1).float()
        return images if self._policy == "float" else from_uint8(as_pixels(images, self._policy))

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The array's bytes, its shape and its dtype."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                held = set(archive.namelist())
                name = next((n for n in ARRAYS if f"{n}.npy" in held), None)
                if name is None:
                    raise ValueError(f"expected an array {' or '.join(ARRAYS)}, got {sorted(held)}")
                with archive.open(f"{name}.npy") as array:
                    version = np.lib.format.read_magic(array)
                    read = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, columns_first, dtype = read(array)
                    if columns_first or dtype.hasobject:
                        raise ValueError(f"expected an array of numbers in C order, got {dtype}")
                    yield array, shape, dtype
        except _DAMAGED as error:
            text = str(error) or type(error).__name__
            named = text if str(self.path) in text else f"{self.path}: {text}"
            raise ValueError(named) from error
