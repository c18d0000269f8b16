"""A check, and what came out of it: the largest difference seen against its bound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    name:       what was compared with its reference.
    passed:     None if it was not run.
    says:       the worst case, why it was not run, or the error.
    difference: the largest absolute difference over all cases; None if there is none to tell.
    bound:      the most that the difference may be, 0 for equality bit for bit.
    sha256:     of all results, as little-endian bytes one after another, where they are the same on
                every machine; else None.
    """

    name: str
    passed: bool | None
    says: str = ""
    difference: float | None = None
    bound: float | None = None
    sha256: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: those become text."""
        values = asdict(self).items()
        odd = {k: str(v) for k, v in values if isinstance(v, float) and not math.isfinite(v)}
        return dict(values) | odd


@dataclass(frozen=True)
class Check:
    """Something to compare with its reference. ``compare`` may raise what kernels raise."""

    name: str
    compare: Callable[[], Outcome]


def not_run(name: str, why: str) -> Check:
    """A check that cannot run here."""
    return Check(name, lambda: Outcome(name, None, why))


def run(check: Check) -> Outcome:
    """The outcome; an error of a kernel or an engine is a failure that says so."""
    try:
        return check.compare()
    except _kernel_errors() as error:
        text = " ".join(str(error).split())
        return Outcome(check.name, False, f"{type(error).__name__}: {text}")


class Bits:
    """Collects results that must be their references to the last bit, and hashes them."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._worst = 0.0
        self._wrong: list[str] = []
        self._cases = 0

    def add(self, case: str, result: Tensor, reference: Tensor) -> None:
        """Compare one result, on any device, with its reference."""
        result, reference = _plain(result), _plain(reference)
        self._hash.update(_bytes(result))
        self._cases += 1
        if result.shape == reference.shape and _bytes(result) == _bytes(reference):
            return
        self._wrong.append(case)
        self._worst = max(self._worst, largest_difference(result, reference))

    def outcome(self, name: str, left_out: str = "") -> Outcome:
        """left_out: what was not looked at, in words."""
        says = f"bit for bit on {self._cases} results"
        if self._wrong:
            says = f"{len(self._wrong)} of {self._cases} results differ: {', '.join(self._wrong)}"
        if left_out:
            says = f"{says}; left out: {left_out}"
        return Outcome(name, not self._wrong, says, self._worst, 0.0, self._hash.hexdigest())


class Errors:
    """Collects errors against a bound of their own each; tells the one nearest to its bound."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float, str]] = []

    def add(self, case: str, difference: float, bound: float) -> None:
        """difference NaN counts as beyond every bound."""
        self._seen.append((difference, bound, case))

    def outcome(self, name: str, of: str = "") -> Outcome:
        """of: what the results are of, in words."""
        if not self._seen:
            return Outcome(name, None, "it has no cases")
        difference, bound, case = max(self._seen, key=_share_of_bound)
        passed = difference <= bound
        says = f"{len(self._seen)} results{of and f' of {of}'}, nearest to its bound: {case}"
        return Outcome(name, passed, says, difference, bound)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b| in float64; NaN where only one of them is finite, or the shapes differ."""
    if a.shape != b.shape:
        return math.nan
    a, b = _plain(a).double(), _plain(b).double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs())
    return float(gap.max()) if gap.numel() else 0.0


def _share_of_bound(seen: tuple[float, float, str]) -> float:
    difference, bound, _ = seen
    if math.isnan(difference):
        return math.inf
    if bound == 0:
        return math.inf if difference > 0 else 0.0
    return difference / bound


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _kernel_errors() -> tuple[type[Exception], ...]:
    """What compiling, launching or preparing raises."""
    known: tuple[type[Exception], ...] = (
        *(RuntimeError, ValueError, ArithmeticError, AssertionError, OSError, ImportError),
    )
    try:
        from triton.errors import TritonError
    except ImportError:
        return known
    return (*known, TritonError)
