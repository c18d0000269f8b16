"""What to run and how thoroughly."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PARTS = ("correctness", "ceilings", "kernels", "convolutions", "throughput")
DTYPES = ("float32", "tf32", "bfloat16")
# torch.compile's modes that the rival is given; the fastest counts.
MODES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Options:
    """quick: fewer checks, one compile mode. batches, dtypes: what throughput is measured for.

    modes:    torch.compile's, which the rival is given.
    rounds:   timed chains of each contender.
    workers:  contenders prepared side by side, at most (but all of one batch and dtype always).
    patience: seconds that a contender may take to prepare.
    """

    quick: bool = False
    batches: tuple[int, ...] = (1, 16, 64, 256)
    dtypes: tuple[str, ...] = DTYPES
    modes: tuple[str, ...] = MODES
    rounds: int = 7
    workers: int = 16
    patience: float = 1800.0

    @classmethod
    def of(
        cls,
        *,
        quick: bool = False,
        batches: tuple[int, ...] | None = None,
        dtypes: tuple[str, ...] | None = None,
        **others: Any,
    ) -> Options:
        """The defaults, or those of --quick, but for what is given and not None.

        Raises ValueError for an unknown dtype or a batch below 1.
        """
        if unknown := set(dtypes or ()) - set(DTYPES):
            raise ValueError(f"dtypes are {', '.join(DTYPES)}; got {', '.join(sorted(unknown))}")
        if wrong := [batch for batch in batches or () if batch < 1]:
            raise ValueError(f"batches are at least 1; got {wrong}")
        own = cls(quick=quick)
        if quick:
            own = cls(True, (16,), ("bfloat16",), MODES[:1], rounds=5)
        given = {"batches": batches, "dtypes": dtypes, **others}
        return cls(**(vars(own) | {name: value for name, value in given.items() if value}))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
