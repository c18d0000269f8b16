"""Whether a turn had the whole machine, told by the peak right before it and right after it.

A virtual machine's processors move: for seconds at a time two of them share one core of the machine
below, and all libraries are slowed, each in its own way (here multiply-adds fall to half their
rate and reads of L1 to a quarter). Nothing inside tells but the speed itself.
"""

from __future__ import annotations

from typing import Any

from benchmarks import timing
from benchmarks.turns import Turns

# Of the best rate seen so far, and of a processor's time: less is not the whole machine.
SHARE = 0.9


class Steady:
    """Looks at the machine by turns of peak.prepared."""

    def __init__(self, peak: Turns) -> None:
        self._peak = peak
        self._found: list[dict[str, float]] = []

    def __call__(self) -> bool:
        """Whether the machine gives all that it has given so far."""
        found: dict[str, float] = self._peak.turn()
        self._found.append(found)
        return found["processor_share"] >= SHARE and found["flop_per_second"] >= self._least()

    def figures(self) -> dict[str, Any]:
        """The peak of the whole machine, and how often a look found all of it."""
        rates = [one["flop_per_second"] for one in self._found]
        whole = [rate for rate in rates if rate >= self._least()]
        shares = [one["processor_share"] for one in self._found]
        return {
            "peak_flop_per_second": timing.summary(whole),
            "processor_share": timing.summary(shares),
            "looks": len(rates),
            "looks_at_the_whole_machine": len(whole),
        }

    def _least(self) -> float:
        return SHARE * max(one["flop_per_second"] for one in self._found)
