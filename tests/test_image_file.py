"""Images of .npz files batch by batch, and what each policy keeps of floats."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastddpm.evaluation import ImageFile
from fastddpm.sampler import from_uint8, to_uint8
from fastddpm.sampler.images import as_pixels

SHAPE = (23, 5, 6, 3)


def saved(path: Path, array: Any, name: str = "samples", compressed: bool = False) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **{name: array})
    return path


def drawn_bytes() -> Any:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def drawn_floats() -> Any:
    return np.random.default_rng(1).uniform(-1.1, 1.1, SHAPE).astype(np.float32)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["samples", "images", "arr_0"])
def test_bytes_are_taken_as_they_are(tmp_path: Path, name: str, compressed: bool) -> None:
    array = drawn_bytes()
    path = saved(tmp_path / "images.npz", array, name, compressed)
    expected = from_uint8(torch.from_numpy(array))
    for policy in ("round", "truncate", "float"):
        file = ImageFile(path, policy)
        assert (file.count, file.shape, file.holds_bytes) == (23, (3, 5, 6), True)
        for size, start in ((4, 0), (23, 0), (100, 0), (5, 7), (1, 22)):
            parts = list(file.batches(size, start))
            assert max(map(len, parts)) <= size
            assert torch.equal(torch.cat(parts), expected[start:])
        assert torch.equal(file.as_bytes(), torch.from_numpy(array).permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_what_the_policy_keeps(tmp_path: Path, dtype: Any) -> None:
    array = drawn_floats().astype(dtype)
    path = saved(tmp_path / "images.npz", array)
    x = torch.from_numpy(array).permute(0, 3, 1, 2).float()

    def read(policy: str) -> Tensor:
        return torch.cat(list(ImageFile(path, policy).batches(10)))

    assert torch.equal(read("float"), x)
    levels = (array.astype(np.float32) + 1) * np.float32(127.5)
    rounded = torch.from_numpy(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    # OpenAI's scripts: ((sample + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    truncated = torch.from_numpy(levels).clamp(0, 255).to(torch.uint8)
    assert torch.equal(read("round"), from_uint8(rounded))
    assert torch.equal(read("truncate"), from_uint8(truncated))
    assert torch.equal(ImageFile(path, "round").as_bytes(), rounded.permute(0, 3, 1, 2))
    assert torch.equal(ImageFile(path, "truncate").as_bytes(), truncated.permute(0, 3, 1, 2))
    assert not torch.equal(rounded, truncated)
    with pytest.raises(ValueError, match="round or truncate them to get bytes"):
        ImageFile(path, "float").as_bytes()


def test_pixels_of_a_tensor() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0]).reshape(1, 1, 2, 3)
    assert as_pixels(x, "round").flatten().tolist() == [0, 0, 128, 255, 255, 255]
    assert as_pixels(x, "truncate").flatten().tolist() == [0, 0, 127, 254, 255, 255]
    assert torch.equal(as_pixels(x, "float"), x.permute(0, 2, 3, 1))
    assert torch.equal(as_pixels(x, "round"), to_uint8(x))
    with pytest.raises(ValueError, match="round, truncate, float, got 'floor'"):
        as_pixels(x, "floor")


def test_files_that_hold_no_images(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"file\.npz"):
        ImageFile(path)
    for array, message in (
        (np.zeros((3, 4, 4)), r"images .N, H, W, C., got float64 .3, 4, 4."),
        (np.zeros((3, 4, 4, 1), np.int64), "got int64"),
        (np.asfortranarray(drawn_bytes()), "C order"),
        (np.array([{}]), "array of numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFile(saved(path, array))
    with pytest.raises(
        ValueError, match=r"expected an array samples or images or train_images or arr_0, got"
    ):
        ImageFile(saved(path, drawn_bytes(), "pictures"))
    with pytest.raises(ValueError, match="a policy in round, truncate, float, got 'floor'"):
        ImageFile(saved(path, drawn_bytes()), "floor")


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, compressed: bool) -> None:
    """Python's and numpy's, counted; one batch of 50 is 150 kB, the larger file 6 MB."""

    def peak(count: int) -> int:
        array = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        path = saved(tmp_path / "images.npz", array, compressed=compressed)
        del array
        tracemalloc.start()
        try:
            for _ in ImageFile(path).batches(50):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2000) < 1.1 * peak(200)


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    """The array says 23 images and holds 22, in an archive that is whole."""
    whole, short = saved(tmp_path / "whole.npz", drawn_bytes()), tmp_path / "short.npz"
    with zipfile.ZipFile(whole) as given, zipfile.ZipFile(short, "w") as made:
        made.writestr("samples.npy", given.read("samples.npy")[: -5 * 6 * 3])
    with pytest.raises(ValueError, match=r"short.npz: truncated at image 20"):
        list(ImageFile(short).batches(10))


@pytest.mark.parametrize("policy", ["round", "truncate", "float"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_policy_hides_nan(tmp_path: Path, policy: str, value: float) -> None:
    array = drawn_floats()
    array[17, 2, 3, 1] = value
    file = ImageFile(saved(tmp_path / "images.npz", array), policy)
    with pytest.raises(ValueError, match=r"images\.npz: NaN or Inf in image 17$"):
        list(file.batches(5, 2))
    assert len(next(file.batches(17))) == 17
