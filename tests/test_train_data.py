"""Reading images, and the order in which a run takes them."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fastddpm.train.data import ImageData, load_images
from fastddpm.train.idx import read_idx
from fastddpm.train.order import DataOrder

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"


def _idx(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_folder(tmp_path: Path, suffix: str) -> None:
    images, labels = _pixels(5, 28, 28), np.arange(5, dtype=np.uint8)
    pack = gzip.compress if suffix else bytes
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(_idx(images)))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(_idx(labels)))
    for path in (tmp_path, tmp_path / f"train-images-idx3-ubyte{suffix}"):
        data = load_images(path)
        assert data.images.dtype == torch.uint8
        np.testing.assert_array_equal(data.images[:, 0].numpy(), images)
        assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not MNIST.exists(), reason=f"no MNIST in {MNIST}")
def test_mnist_itself() -> None:
    data = load_images(MNIST, pad_to=32)
    assert data.images.shape == (60000, 1, 32, 32)
    assert data.labels is not None and data.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.images[0, 0, 2:30, 2:30].sum() == data.images[0].sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "truncated: its header says"),
        (lambda raw: raw + b"\0", "too long: its header says"),
        (lambda raw: raw[:9], "truncated: the IDX header has 16 bytes"),
        (lambda raw: b"PNG!" + raw, "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
        (lambda raw: raw[:2] + b"\x0d" + raw[3:], r"type uint8 \(8\), got type 13"),
        (lambda raw: gzip.compress(raw)[:-9], "truncated or damaged gzip"),
        (lambda raw: gzip.compress(raw)[:20] + b"\xff" * 40, "truncated or damaged gzip"),
    ],
)
def test_damaged_idx(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(change(_idx(_pixels(3, 4, 4))))
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_labels_must_match(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(_pixels(5, 4, 4)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(_pixels(4)))
    with pytest.raises(ValueError, match="one label per image, got 4 labels for 5 images"):
        load_images(tmp_path)


@pytest.mark.parametrize("key", ["samples", "images", "train_images", "arr_0"])
@pytest.mark.parametrize("channels", [1, 3])
def test_npz(tmp_path: Path, key: str, channels: int) -> None:
    images = _pixels(4, 6, 5, channels)
    np.savez(tmp_path / "x.npz", **{key: images})
    data = load_images(tmp_path / "x.npz")
    assert data.labels is None
    np.testing.assert_array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": _pixels(2, 4, 4, 3)}, "expected an array named samples or images"),
        ({"images": _pixels(2, 4, 4)}, r"expected images uint8 \[N, H, W, C\]"),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "got float32"),
        ({"images": _pixels(0, 4, 4, 3)}, "at least one image"),
        ({"images": np.array([{}], dtype=object)}, r"x\.npz: cannot read"),
        (
            {"images": _pixels(2, 4, 4, 3), "labels": np.array([{}, 1], dtype=object)},
            r"x\.npz: cannot read",
        ),
        (
            {"images": _pixels(2, 4, 4, 3), "labels": _pixels(2, 1)},
            r"expected labels integer \[N\]",
        ),
    ],
)
def test_wrong_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path / "x.npz")


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=_pixels(2, 4, 4, 3))
    raw = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="cannot read"):
        load_images(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("save", "size", "flips"),
    [
        (np.savez, 8, (0x5A,)),
        (np.savez_compressed, 8, (0x5A,)),
        # The header of a large array is read before its checksum is known.
        (np.savez, 64, (0x01, 0x0B, 0x5A, 0x80)),
    ],
)
def test_a_damaged_npz_is_named(
    tmp_path: Path, save: Callable[..., None], size: int, flips: tuple[int, ...]
) -> None:
    path = tmp_path / "x.npz"
    save(path, images=_pixels(2, size, size, 3), labels=np.arange(2))
    raw = path.read_bytes()
    places = range(len(raw)) if size == 8 else range(200)
    for position, flip in itertools.product(places, flips):
        flipped = bytearray(raw)
        flipped[position] ^= flip
        path.write_bytes(flipped)
        try:
            load_images(path)
        except ValueError as error:
            assert "x.npz: " in str(error)


@pytest.mark.parametrize("save", [np.save, lambda file, array: file.write(b"no archive")])
def test_what_is_no_npz_is_named(tmp_path: Path, save) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        save(file, _pixels(2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"x\.npz: cannot read"):
        load_images(tmp_path / "x.npz")


def test_image_folder_with_classes(tmp_path: Path) -> None:
    pixels = _pixels(4, 6, 6, 3)
    for i, name in enumerate(["b/1", "a/1", "a/0", "b/0"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[i]).save(tmp_path / f"{name}.png")
    data = load_images(tmp_path)
    assert data.labels is not None and data.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(data.images.numpy(), pixels[[2, 1, 3, 0]].transpose(0, 3, 1, 2))


def test_image_folder_sizes(tmp_path: Path) -> None:
    Image.fromarray(_pixels(6, 6)).save(tmp_path / "0.png")
    Image.fromarray(_pixels(8, 12)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: expected \[6, 6, 1\].*set image_size"):
        load_images(tmp_path)
    assert load_images(tmp_path, image_size=4).images.shape == (2, 1, 4, 4)


def test_a_resize_of_the_same_size_only_crops(tmp_path: Path) -> None:
    pixels = _pixels(6, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    data = load_images(tmp_path, image_size=6)
    np.testing.assert_array_equal(data.images[0].numpy(), pixels[:, 2:8].transpose(2, 0, 1))


def test_damaged_image(tmp_path: Path) -> None:
    Image.fromarray(_pixels(32, 32, 3)).save(tmp_path / "0.png")
    raw = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"0\.png: truncated or not an image"):
        load_images(tmp_path)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected images"):
        load_images(tmp_path)
    (tmp_path / "x.dat").write_bytes(b"1")
    with pytest.raises(ValueError, match="expected an IDX file"):
        load_images(tmp_path / "x.dat")


def test_padding_is_black_and_centred(tmp_path: Path) -> None:
    pixels = _pixels(2, 3, 4, 1) | 1
    np.savez(tmp_path / "x.npz", images=pixels)
    padded = load_images(tmp_path / "x.npz", pad_to=8).images
    np.testing.assert_array_equal(padded[:, 0, 2:5, 2:6].numpy(), pixels[..., 0])
    assert int((padded != 0).sum()) == pixels.size
    with pytest.raises(ValueError, match="pad_to: expected at least"):
        load_images(tmp_path / "x.npz", pad_to=3)


def test_batch_values_flips_and_dropped_labels() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4)
    data = ImageData(images, torch.arange(16))
    draws = DataOrder(3, 16, flip=True, label_dropout=0.5).draws(5, 40)
    assert 0 < int(draws.flip.sum()) < 40 and 0 < int(draws.drop_label.sum()) < 40
    x_0, labels = data.batch(draws)
    assert labels is not None
    for j in range(40):
        expected = images[draws.index[j]].double() / 127.5 - 1
        expected = expected.flip(-1) if draws.flip[j] else expected
        torch.testing.assert_close(x_0[j].double(), expected, rtol=0, atol=1.2e-7)
        assert labels[j] == (-1 if draws.drop_label[j] else draws.index[j])


@given(st.integers(0, 2**64 - 1), st.integers(1, 30), st.integers(1, 50), st.integers(0, 5))
def test_order_is_the_same_for_every_split(seed: int, count: int, size: int, steps: int) -> None:
    order = DataOrder(seed, count, flip=True)
    whole = order.draws(0, size * (steps + 1))
    part = order.draws(size * steps, size)
    torch.testing.assert_close(part.index, whole.index[-size:])
    torch.testing.assert_close(part.flip, whole.flip[-size:])


def test_every_epoch_takes_every_image_once() -> None:
    order = DataOrder(1, 50)
    epochs = [order.draws(50 * e, 50).index for e in range(4)]
    for index in epochs:
        assert sorted(index.tolist()) == list(range(50))
    assert len({tuple(e.tolist()) for e in epochs}) == 4
    assert order.draws(0, 50).index.tolist() != DataOrder(2, 50).draws(0, 50).index.tolist()
    assert not order.draws(0, 50).flip.any()


def test_split_holds_out_the_end() -> None:
    data = ImageData(_tensor := torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    first, last = data.split(2)
    assert first.labels is not None and last.labels is not None
    assert (first.labels.tolist(), last.labels.tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(ValueError, match="fewer than the 5 images"):
        data.split(5)
    assert len(_tensor) == 5


def test_fingerprint_sees_every_pixel_and_label() -> None:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
    prints = {ImageData(images, labels).fingerprint, ImageData(images, None).fingerprint}
    images[2, 0, 1, 1] = 1
    prints.add(ImageData(images, labels).fingerprint)
    labels[1] = 1
    prints.add(ImageData(images, labels).fingerprint)
    prints.add(ImageData(images.reshape(3, 1, 4, 1), labels).fingerprint)
    assert len(prints) == 5
