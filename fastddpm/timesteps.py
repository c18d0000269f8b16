"""Subsets of the T training timesteps: which steps a shorter chain keeps.

Every function returns an ascending int64 tensor of original indices in [0, T), ready for
`NoiseSchedule.respace`.  With s = T/n:

    leading    t_i = i ⌊s⌋ + offset              diffusers; starts at 0, misses T-1
    linspace   t_i = round(i (T-1)/(n-1))         both ends
    trailing   t_i = round(T - (n-1-i) s) - 1     ends at T-1 (Lin et al. 2023, table 2)
    quad       t_i = ⌊(i √(.8T)/(n-1))²⌋          DDIM (Song et al. 2020, D.3): dense at small t
    sections   OpenAI's section counts and "ddimN" strides (Nichol & Dhariwal 2021)

Rounding is half to even throughout, as in numpy and Python, so the lists equal the peers'.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def leading(T: int, n: int, offset: int = 0) -> Tensor:
    """n multiples of ⌊T/n⌋, plus offset: int64 [n].

    The last entry passes T - 1 if offset is too large for n, as in diffusers (steps_offset=1
    with n = T gives T); `NoiseSchedule.respace` refuses such a list.
    Raises ValueError unless 1 ≤ n ≤ T and offset ≥ 0.
    """
    _check_count(T, n)
    if offset < 0:
        raise ValueError(f"expected an offset of at least 0, got {offset}")
    return torch.arange(n) * (T // n) + offset


def linspace(T: int, n: int) -> Tensor:
    """n evenly spaced timesteps, 0 and T-1 included (n = 1 gives 0): int64 [n].

    Raises ValueError unless 1 ≤ n ≤ T.
    """
    _check_count(T, n)
    return torch.from_numpy(np.linspace(0, T - 1, n).round().astype(np.int64))


def trailing(T: int, n: int) -> Tensor:
    """n timesteps counted down from T-1 in strides of T/n: int64 [n].

    Raises ValueError unless 1 ≤ n ≤ T.
    """
    _check_count(T, n)
    # np.arange, not i * T/n: ties must round as they do in diffusers. It may run one entry over.
    descending = np.round(np.arange(T, 0, -T / n)).astype(np.int64)[:n] - 1
    return torch.from_numpy(descending[::-1].copy())


def quad(T: int, n: int) -> Tensor:
    """DDIM's quadratic stride up to .8 T: int64 [n].

    Where squares crowd into one integer, consecutive integers are taken instead, so there are
    always n distinct steps.  Raises ValueError unless 1 ≤ n ≤ T.
    """
    _check_count(T, n)
    squares = (np.linspace(0, np.sqrt(0.8 * T), n) ** 2).astype(np.int64)
    return torch.from_numpy(np.maximum(squares, np.arange(n)))


def openai_sections(T: int, sections: str | Sequence[int]) -> Tensor:
    """OpenAI's respacing: "ddim50", "250", "10,15,20" or [10, 15, 20]; int64 [sum of counts].

    T is cut into as many nearly equal sections as there are counts, and each section gives its
    count of evenly spaced steps, first and last included.  "ddimN" takes every k-th step, with k
    such that exactly N remain; as in OpenAI's code an N that no k gives is an error.

    Raises ValueError if a section is smaller than its count, if no stride gives N, or if the text
    is neither.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        return _stride(T, _count(sections.removeprefix("ddim"), sections))
    if isinstance(sections, str):
        counts = [_count(word, sections) for word in sections.split(",")]
    else:
        counts = [int(count) for count in sections]
    if not counts or min(counts) < 0 or sum(counts) == 0:
        raise ValueError(f"expected section counts like '10,15,20', got {sections!r}")
    smaller, larger = divmod(T, len(counts))
    chosen: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = smaller + (i < larger)
        if count > size:
            raise ValueError(
                f"section {i} of {T} timesteps in {len(counts)} sections holds {size} steps, "
                f"got a count of {count}"
            )
        chosen += [start + offset for offset in _evenly(size, count)]
        start += size
    return torch.tensor(chosen, dtype=torch.int64)


def spaced(name: str, T: int, n: int) -> Tensor:
    """n of T timesteps by the name of the spacing: "leading", "linspace", "trailing", "quad".

    Raises ValueError for an unknown name (the message lists them) or n outside [1, T].
    """
    if not isinstance(name, str) or name not in SPACINGS:
        raise ValueError(f"expected a spacing in {', '.join(SPACINGS)}, got {name!r}")
    return SPACINGS[name](T, n)


def chosen(T: int, steps: int | str | Sequence[int] | Tensor, spacing: str = "linspace") -> Tensor:
    """The timesteps of a shorter chain, however they are told: int64, ascending.

    steps: how many, spread by ``spacing``; a text for `openai_sections`, "10,15,20" or "ddim50";
           or the timesteps themselves, in any order.

    Raises ValueError as `spaced` and `openai_sections` do, and for timesteps that repeat or lie
    outside of [0, T).
    """
    if isinstance(steps, str):
        return openai_sections(T, steps)
    # numpy's integers are integers, too; True is none.
    if isinstance(steps, int | np.integer) and not isinstance(steps, bool):
        return spaced(spacing, T, int(steps))
    listed = np.asarray(steps)
    integers = listed.ndim == 1 and listed.dtype.kind in "iu"
    different = integers and len(np.unique(listed)) == listed.size > 0
    if not different or listed.min() < 0 or listed.max() >= T:
        raise ValueError(
            "expected how many timesteps, sections like '10,15,20', or a list of different "
            f"timesteps in [0, {T}); got {reprlib.repr(steps)}"
        )
    return torch.from_numpy(np.sort(listed).astype(np.int64))


SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "quad": quad,
}


def _evenly(size: int, count: int) -> list[int]:
    """count evenly spaced integers of [0, size)."""
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    offsets = []
    position = 0.0
    for _ in range(count):
        offsets.append(round(position))
        # Accumulated, not i * stride: OpenAI's rounding of ties depends on it.
        position += stride
    return offsets


def _stride(T: int, n: int) -> Tensor:
    """Every k-th timestep, k the smallest stride that leaves n."""
    _check_count(T, n)
    k = -(-T // n)
    if -(-T // k) != n:
        near = sorted({-(-T // (k - 1)), -(-T // k)})
        raise ValueError(
            f"expected N with an integer stride through {T} timesteps, got ddim{n} (nearest: "
            f"{', '.join(f'ddim{m}' for m in near)}); trailing({T}, {n}) takes any count"
        )
    return torch.arange(0, T, k)


def _count(word: str, sections: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"expected '10,15,20' or 'ddim50', got {sections!r}") from None


def _check_count(T: int, n: int) -> None:
    if T < 1 or not 1 <= n <= T:
        raise ValueError(f"expected between 1 and T = {T} timesteps, got n = {n}")
