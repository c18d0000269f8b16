"""Checkpoints made to run code, to take memory or never to end. None of them is to be read.

`python hostile_checkpoints.py` reads them all in one process, and says how its memory grew.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import hostile_bundles
import hostile_pickles
import hostile_settings
import hostile_tensors
from hostile_cases import CASES, TRACE

from fastddpm import from_pretrained

__all__ = ["CASES", "TRACE"]
# Each has added its own to CASES.
KINDS = (hostile_pickles, hostile_tensors, hostile_bundles, hostile_settings)


def main() -> None:
    """Read every case; print those that were read or failed otherwise, and the growth of memory."""
    with tempfile.TemporaryDirectory() as work:
        hostile_settings.checkpoint(Path(work, "warm"))
        from_pretrained(Path(work, "warm"))
        wrong = []
        paths = {}
        for i, (name, make) in enumerate(CASES.items()):
            Path(work, str(i)).mkdir()
            paths[name] = make(Path(work, str(i)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, path in paths.items():
            try:
                from_pretrained(path)
                wrong.append(f"{name}: read")
            except (ValueError, OSError) as error:
                if not str(error):
                    wrong.append(f"{name}: no message")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    json.dump({"wrong": wrong, "grown_kib": grown}, sys.stdout)


if __name__ == "__main__":
    main()
