"""What a call runs on the GPU, as torch.profiler sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

# The kernels that take most time, so many of them.
LONGEST = 12


def launches(call: Callable[[], object], steps: int) -> dict[str, Any]:
    """Kernels and copies a step, and the kernels that take most of the time."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    seen = [
        (event.name, event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return counted(seen, steps)


def counted(seen: Iterable[tuple[str, float]], steps: int) -> dict[str, Any]:
    """Of (name, microseconds) of everything that ran in ``steps`` steps."""
    count: Counter[str] = Counter()
    time: Counter[str] = Counter()
    for name, microseconds in seen:
        count[name] += 1
        time[name] += microseconds  # type: ignore[assignment]
    copies = sum(n for name, n in count.items() if name.startswith(("Memcpy", "Memset")))
    longest = {name: round(total / steps, 3) for name, total in time.most_common(LONGEST)}
    return {
        "kernels_per_step": (count.total() - copies) / steps,
        "copies_per_step": copies / steps,
        "gpu_ms_per_step": sum(time.values()) / steps / 1e3,
        "longest_kernels_us_per_step": longest,
    }
