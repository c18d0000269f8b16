"""What a run reports: a JSON-lines file, the running means behind it, and TensorBoard by request.

One record a line: step, loss and grad_norm (means since the last record), learning_rate,
images_per_second, elapsed_seconds; validation_loss where it was measured.  A resumed run first
drops the records beyond its checkpoint, so the file reads as if the run had never stopped.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from fastddpm import atomic


class Meter:
    """Running means of loss and gradient norm, kept on the device: only reading waits for it."""

    def __init__(self, device: torch.device) -> None:
        # The sums of loss and gradient norm, and the number of steps in them.
        self.totals = torch.zeros(3, dtype=torch.float32, device=device)
        # The first step that was not finite; 0: none.
        self.first_bad = torch.zeros(1, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, grad_norm: Tensor, step: int) -> None:
        """Counts the step number `step` (1, 2, ...) with its loss [] and gradient norm []."""
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self.first_bad = torch.where(finite | (self.first_bad > 0), self.first_bad, step)
        self.totals += torch.stack([loss, grad_norm, torch.ones_like(loss)]).float()

    def check(self) -> None:
        """Raises FloatingPointError, naming the step, once a loss or gradient was not finite."""
        step = int(self.first_bad)
        if step:
            raise FloatingPointError(
                f"step {step}: the loss or its gradient is not finite; the last checkpoint stays "
                "(try a lower learning_rate, a longer warmup_steps or precision = float32)"
            )

    def take(self) -> dict[str, float]:
        """The means since the last call, which start anew."""
        loss, norm, count = self.totals.tolist()
        self.totals.zero_()
        return {"loss": loss / max(1.0, count), "grad_norm": norm / max(1.0, count)}


class Writer(Protocol):
    """Takes one record of a run."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """An append-only JSON-lines file that starts by dropping the records after `step`."""

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _is_before(line, step)]
            atomic.write(path, "".join(line + "\n" for line in kept))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Forces the records to the disk: done before the checkpoint that comes after them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:
        return False  # The last line of a killed run may be cut short.


class TensorBoard:
    """The same records as TensorBoard scalars.

    Raises ImportError, saying what to install, if TensorBoard is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard = true needs TensorBoard: pip install 'fastddpm[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()
