"""Parts in processes of their own: what a part has found is on disk before it can fail.

A kernel that reads where it must not ends its process and nothing else. A part is a generator of
(name, finding); the child writes a piece after each, the parent puts the pieces together.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import origin

Part = Iterator[tuple[str, Any]]
# Of what a failed part has printed, so many lines are kept.
LAST_LINES = 20


def write_piece(part: Part, piece: Path) -> None:
    """Run a part and write all that it has found so far after each finding."""
    found: dict[str, Any] = {}
    for name, finding in part:
        found[name] = finding
        origin.write(piece, found)


def run_part(command: list[str], piece: Path, limit: float) -> dict[str, Any]:
    """Run a part's command; its findings, seconds and, if it failed, the error.

    limit: seconds after which it is stopped.
    """
    piece.unlink(missing_ok=True)
    began = time.monotonic()
    error = _error_of(command, limit)
    found = json.loads(piece.read_text()) if piece.is_file() else {}
    piece.unlink(missing_ok=True)
    result = {"seconds": round(time.monotonic() - began, 1), "found": found}
    return result if error is None else result | {"error": error}


def run_all(
    parts: list[str],
    command_of: Callable[[str, Path], list[str]],
    out: Path,
    header: dict[str, Any],
    limit: float,
) -> dict[str, Any]:
    """Run the parts in order and write ``out`` after each; the whole result.

    command_of(part, piece): the command that runs a part and writes its findings to the piece.
    limit: seconds for all of them together; what does not get its turn says so.
    """
    deadline = time.monotonic() + limit
    result: dict[str, Any] = {**header, "parts": {}}
    for part in parts:
        left = deadline - time.monotonic()
        piece = out.with_name(f"{out.name}.{part}")
        if left > 0:
            result["parts"][part] = run_part(command_of(part, piece), piece, left)
        else:
            result["parts"][part] = {"error": "no time was left for it"}
        origin.write(out, result)
    return result


def _error_of(command: list[str], limit: float) -> str | None:
    """Why a command failed, with its last lines; None if it did not. Its output is shown, too."""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    stopped = threading.Event()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=origin.REPOSITORY
    ) as process:

        def stop() -> None:
            stopped.set()
            process.kill()

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        code = process.wait()
        timer.cancel()
    if stopped.is_set():
        return f"stopped after {limit:.0f} s"
    return None if code == 0 else "\n".join([f"exit code {code}", *lines])
