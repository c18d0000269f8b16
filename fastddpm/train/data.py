"""Training images: read once into memory as uint8 [N, C, H, W], handed out as x/127.5 − 1.

Three sources, told apart by the path: MNIST IDX (a file, or a folder that holds train-images*), a
folder of images (with one sub-folder a class, or none), and .npz with uint8 NHWC images.
"""

import hashlib
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastddpm.sampler.images import ARRAYS, from_uint8
from fastddpm.train.idx import read_idx
from fastddpm.train.order import Epoch

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# What numpy's and zipfile's readers raise for damaged bytes, as found by flipping them
# (tests/test_train_data.py).
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)
NPZ_LABELS = ("labels", "train_labels", "arr_1")


@dataclass(frozen=True)
class ImageData:
    """`images` uint8 [N, C, H, W] and, where known, `labels` int64 [N]."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of shape and contents: tells whether a resumed run sees the same data."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def split(self, held_out: int) -> tuple["ImageData", "ImageData"]:
        """(training, held-out) data: the last `held_out` images are held out.

        Raises ValueError if no image would be left to train on.
        """
        if not 0 <= held_out < len(self):
            raise ValueError(
                f"validation_images: expected fewer than the {len(self)} images, got {held_out}"
            )
        cut = len(self) - held_out
        labels = (None, None) if self.labels is None else (self.labels[:cut], self.labels[cut:])
        return ImageData(self.images[:cut], labels[0]), ImageData(self.images[cut:], labels[1])

    def batch(self, draws: Epoch) -> tuple[Tensor, Tensor | None]:
        """(x_0 float32 [B, C, H, W] in [−1, 1], labels int64 [B] or None) of the given draws.

        A dropped label is −1 here; the loop turns it into the null class.
        """
        x_0 = from_uint8(self.images[draws.index].permute(0, 2, 3, 1))
        x_0 = torch.where(draws.flip[:, None, None, None], x_0.flip(-1), x_0)
        if self.labels is None:
            return x_0, None
        return x_0, self.labels[draws.index].masked_fill(draws.drop_label, -1)


def load_images(path: str | Path, *, image_size: int = 0, pad_to: int = 0) -> ImageData:
    """The images at `path`, with `image_size` and `pad_to` in pixels as in TrainConfig (0: off).

    Raises ValueError for a path that holds no images, files that are truncated or damaged, images
    of unequal sizes, or labels that do not match; FileNotFoundError if there is no such path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix == ".npz":
        pixels, labels = _read_npz(path)
    elif (images := _idx_images(path)) is not None:
        pixels, labels = _read_mnist(images)
    elif path.is_dir():
        pixels, labels = _read_folder(path, image_size)
    else:
        raise ValueError(f"{path}: expected an IDX file, an .npz file or a folder of images")
    if len(pixels) == 0:
        raise ValueError(f"{path}: expected at least one image, got none")
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(
            f"{path}: expected one label per image, got {len(labels)} labels for "
            f"{len(pixels)} images"
        )
    pixels = _pad(pixels, pad_to) if pad_to else pixels
    images_nchw = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    known = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return ImageData(images_nchw, known)


def _idx_images(path: Path) -> Path | None:
    """The IDX image file meant by `path`: itself, or train-images* in the folder; else None."""
    if path.is_file():
        return path if "idx" in path.name or "ubyte" in path.name else None
    found = sorted(path.glob("train-images*ubyte*"))
    return found[0] if found else None


def _read_mnist(path: Path) -> tuple[Pixels, Labels | None]:
    images = read_idx(path)
    if images.ndim != 3:
        raise ValueError(f"{path}: expected images [N, H, W], got {list(images.shape)}")
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for name in (stem, stem + ".gz"):
        beside = path.with_name(name)
        if beside != path and beside.exists():
            labels = read_idx(beside)
            if labels.ndim != 1:
                raise ValueError(f"{beside}: expected labels [N], got {list(labels.shape)}")
            return images[..., None], labels
    return images[..., None], None


def _read_npz(path: Path) -> tuple[Pixels, Labels | None]:
    # Opened here, so that a file that cannot be opened is not taken for a damaged one.
    with path.open("rb") as file:
        try:
            arrays = _npz_arrays(file)
        except _DAMAGED as error:
            kind = type(error).__name__
            raise ValueError(f"{path}: cannot read: {str(error) or kind}") from error
    (image_key, images), *labelled = arrays.items()
    label_key, labels = labelled[0] if labelled else (None, None)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{path}: expected {image_key} uint8 [N, H, W, C] with C = 1, 3 or 4, "
            f"got {images.dtype} {list(images.shape)}"
        )
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"{path}: expected {label_key} integer [N], got {labels.dtype} {list(labels.shape)}"
        )
    return images, labels


def _npz_arrays(file: BinaryIO) -> dict[str, npt.NDArray[Any]]:
    """The images and, if there are any, the labels, by their names; objects are never unpickled."""
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("expected an archive of named arrays, got a single array (.npy)")
    keys = [next((k for k in names if k in archive), None) for names in (ARRAYS, NPZ_LABELS)]
    if keys[0] is None:
        raise ValueError(f"expected an array named {' or '.join(ARRAYS)}, got {archive.files}")
    return {key: archive[key] for key in keys if key is not None}


def _read_folder(path: Path, image_size: int) -> tuple[Pixels, Labels | None]:
    """Every image below `path` in sorted order; sub-folders, sorted, are the classes 0, 1, ..."""
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{path}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none")
    images = [_read_image(f, image_size) for f in files]
    colour = any(image.shape[2] == 3 for image in images)
    if colour:
        images = [np.broadcast_to(i, (*i.shape[:2], 3)) for i in images]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{file}: expected {list(images[0].shape)} (H, W, C) as in {files[0].name}, got "
                f"{list(image.shape)}; set image_size to resize"
            )
    parents = [f.relative_to(path).parts[:-1] for f in files]
    classes = {name: i for i, name in enumerate(sorted({p[0] for p in parents if p}))}
    labelled = all(parents)
    return np.stack(images), np.array([classes[p[0]] for p in parents]) if labelled else None


def _read_image(file: Path, image_size: int) -> Pixels:
    try:
        with Image.open(file) as opened:
            gray = opened.mode in ("1", "L", "LA", "I;16", "I")
            image = opened.convert("L" if gray else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file}: truncated or not an image: {error}") from error
    if image_size:
        image = _resize_and_crop(image, image_size)
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The shorter side to `size` (bicubic, antialiased), then the centre square."""
    factor = size / min(image.size)
    width, height = (max(size, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _pad(pixels: Pixels, size: int) -> Pixels:
    height, width = pixels.shape[1:3]
    if height > size or width > size:
        raise ValueError(f"pad_to: expected at least the images' {height}x{width}, got {size}")
    top, left = (size - height) // 2, (size - width) // 2
    around = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(pixels, around)
