"""IDX files, the format of MNIST: a big-endian header, then the array.

    bytes 0-1: 0    byte 2: element type (8 = uint8)    byte 3: number of dimensions
    then one uint32 per dimension, then the elements in C order; the file may be gzipped.

Source: http://yann.lecun.com/exdb/mnist/ (LeCun, Cortes, Burges).
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The uint8 array of an IDX file, plain or gzipped (told by its first bytes, not its name).

    Raises ValueError for a broken gzip stream, a wrong header, or a length that disagrees with the
    header; OSError if the file cannot be read.
    """
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise ValueError(f"{path}: not an IDX file (expected it to start with two zero bytes)")
    if raw[2] != 8:
        raise ValueError(f"{path}: expected IDX elements of type uint8 (8), got type {raw[2]}")
    ndim = raw[3]
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise ValueError(f"{path}: truncated: the IDX header has {header} bytes, got {len(raw)}")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        state = "truncated" if len(raw) < expected else "too long"
        raise ValueError(
            f"{path}: {state}: its header says {list(shape)}, that is {expected} bytes, "
            f"got {len(raw)}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged gzip file: {error}") from error
