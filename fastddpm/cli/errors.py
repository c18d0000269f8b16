"""What a user sees when a command fails: one line on stderr and an exit code, no traceback.

Exit codes: 0 done, 1 failed, 2 wrong arguments (typer's own), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

FAILED, INTERRUPTED = 1, 130


class Commands(TyperGroup):
    """The group of commands, with errors that a user can act on turned into one line.

    Errors of our own making (TypeError, KeyError, assertions) still show their traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        if ctx.params.get("debug") or os.environ.get("FASTDDPM_DEBUG"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _report("stopped")
            raise typer.Exit(INTERRUPTED) from None
        # A closed pipe (`fastddpm ... | head`) is nobody's mistake; typer ends quietly.
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        # RuntimeError is torch's error for memory, and for a full disk while it writes a file.
        except (ValueError, OSError, ArithmeticError, MemoryError, ImportError, RuntimeError) as e:
            _report(describe(e))
            raise typer.Exit(FAILED) from None


def describe(error: Exception) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:
        where = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{where}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk is full{where}"
    return text or type(error).__name__


def _report(message: str) -> None:
    print(f"fastddpm: {message}", file=sys.stderr)
