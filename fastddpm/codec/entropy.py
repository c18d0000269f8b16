"""Symbols to bytes and back, by constriction's range coder (Bamler 2022), with running checks.

The bytes are one stream: the words of the coder, the most significant byte first, without zero
bytes at the end. A stream that is cut off still settles all symbols but its last few: exactly those
that come out alike whether zeros or ones follow.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastddpm.codec.damage import DamagedError, ExhaustedError

CHECK_BITS = 16
# More than any symbol looks ahead.
_PADDING = 16
# How far a code may be from the coder's own probabilities, which have 24 bits.
_INEXACT = 1.01

Probabilities = NDArray[np.float64]


def range_coding() -> Any:
    """constriction.stream; ImportError with the way to get it."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "the codec needs the package constriction: pip install constriction"
        ) from error
    return constriction.stream


class Writer:
    """Symbols of an encoder. bits: what each part of the file has cost so far."""

    def __init__(self) -> None:
        self._stream = range_coding()
        self._coder = self._stream.queue.RangeEncoder()
        self._sum = 0
        self.bits: defaultdict[str, float] = defaultdict(float)

    def put(self, part: str, symbol: int, probabilities: Probabilities) -> None:
        """A symbol from 0 on, under a law [symbols]."""
        self._coder.encode(symbol, self._stream.model.Categorical(probabilities, perfect=False))
        self._sum = summed(self._sum, symbol)
        self.bits[part] -= float(np.log2(probabilities[symbol]))

    def put_uniform(self, part: str, symbol: int, size: int) -> None:
        """A symbol of 0 to size - 1, all as likely; size at most 2^24."""
        if size > 1:
            self._coder.encode(symbol, self._stream.model.Uniform(size))
            self.bits[part] += float(np.log2(size))
        self._sum = summed(self._sum, symbol)

    def put_rows(self, part: str, symbols: NDArray[np.uint8], laws: Probabilities) -> None:
        """Symbols [n], each under its own law: laws [n, symbols]."""
        family = self._stream.model.Categorical(perfect=False)
        self._coder.encode(symbols.astype(np.int32), family, laws)
        self._sum = zlib.crc32(symbols.tobytes(), self._sum)
        chosen = np.take_along_axis(laws, symbols[:, None].astype(np.int64), 1)
        # The coder gives no symbol less than 2^-24.
        self.bits[part] -= float(np.log2(np.maximum(chosen, 2.0**-24)).sum())

    def put_check(self) -> None:
        """What lets the reader find out that all symbols until here are right."""
        self._coder.encode(self._sum & 0xFFFF, self._stream.model.Uniform(1 << CHECK_BITS))
        self.bits["checks"] += CHECK_BITS

    def content(self) -> bytes:
        """All until here."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype(">u4").tobytes().rstrip(b"\0")


class Reader:
    """The symbols back, from a whole stream or the beginning of one.

    Raises ExhaustedError where the beginning does not settle a symbol, DamagedError for bytes that
    no encoder wrote or a check that fails.
    """

    def __init__(self, content: bytes, *, whole: bool) -> None:
        self._stream = range_coding()
        self._coders = [self._coder(content, end) for end in ((0,) if whole else (0, 255))]
        self._sum = 0
        # Bits that symbols may still cost: so that a short stream cannot ask for long work.
        self._left = 8 * len(content) * _INEXACT + 32 * _PADDING

    def get(self, probabilities: Probabilities) -> int:
        model = self._stream.model.Categorical(probabilities, perfect=False)
        symbol = int(self._agreed(model))
        self._spend(-float(np.log2(probabilities[symbol])))
        self._sum = summed(self._sum, symbol)
        return symbol

    def get_uniform(self, size: int) -> int:
        symbol = int(self._agreed(self._stream.model.Uniform(size))) if size > 1 else 0
        self._spend(float(np.log2(size)))
        self._sum = summed(self._sum, symbol)
        return symbol

    def get_rows(self, laws: Probabilities) -> NDArray[np.uint8]:
        family = self._stream.model.Categorical(perfect=False)
        symbols = np.asarray(self._agreed(family, laws)).astype(np.uint8)
        self._sum = zlib.crc32(symbols.tobytes(), self._sum)
        return symbols

    def check(self) -> None:
        """Read a check; DamagedError if a symbol before it is not what was written."""
        if int(self._agreed(self._stream.model.Uniform(1 << CHECK_BITS))) != self._sum & 0xFFFF:
            raise DamagedError("a check within the file fails")

    def _agreed(self, *model: Any) -> Any:
        """What every continuation of the stream says."""
        try:
            first, *others = (coder.decode(*model) for coder in self._coders)
        # constriction's word for a stream that its encoder cannot have written.
        except AssertionError as error:
            if len(self._coders) > 1:
                raise ExhaustedError("the stream ends") from error
            raise DamagedError("not a stream of symbols") from error
        if not all(np.array_equal(first, other) for other in others):
            raise ExhaustedError("the stream ends")
        return first

    def _spend(self, bits: float) -> None:
        self._left -= bits
        if self._left < 0:
            raise DamagedError("the file says more than its bytes hold")

    def _coder(self, content: bytes, end: int) -> Any:
        count = _PADDING + -len(content) % 4
        words = np.frombuffer(content + bytes([end]) * count, ">u4").astype(np.uint32)
        return self._stream.queue.RangeDecoder(words)


def summed(before: int, symbol: int) -> int:
    """The checksum with one more symbol."""
    return zlib.crc32(symbol.to_bytes(4, "little"), before)
