"""A training run from its settings to an exported model.

    out/
      config.toml       the resolved settings
      log.jsonl         one record every log_every steps
      checkpoints/      the state of the run, newest keep_checkpoints
      samples/          grids of samples, one PNG every sample_every steps
      model/            the averaged model in the diffusers layout
      tensorboard/      by request

Run again with the same settings, it goes on from the newest checkpoint.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastddpm import atomic
from fastddpm.checkpoint import save_pretrained
from fastddpm.train.config import TrainConfig
from fastddpm.train.log import JsonLines, TensorBoard
from fastddpm.train.optimizer import learning_rate
from fastddpm.train.preview import save_preview
from fastddpm.train.settings import to_toml
from fastddpm.train.state import (
    checkpoint_path,
    checkpoints,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from fastddpm.train.stop import StopRequest
from fastddpm.train.trainer import Trainer

Reason = Literal["finished", "interrupted", "time limit"]


@dataclass(frozen=True)
class Progress:
    """After a step: steps done by now, at the start of this call, and in all when finished.

    `record` is the line of the log, if one was due.
    """

    step: int
    first: int
    steps: int
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: after which step, why, and where checkpoint and model lie.

    `model` is None after an interruption, which saves the run but does not export.
    """

    step: int
    reason: Reason
    checkpoint: Path
    model: Path | None


def train(config: TrainConfig, on_step: Callable[[Progress], None] | None = None) -> Outcome:
    """Trains, or goes on training, what `config` describes; everything lands in `config.out`.

    Torch's global generator and thread count are put back afterwards.

    Raises:
        ValueError: data that is damaged or does not fit, or a resume with changed settings.
        FloatingPointError: a loss or gradient that is not finite; the last checkpoint stays.
        OSError: unreadable data, or a full disk; the last checkpoint stays.
    """
    with _torch_settings(config):
        return Run(config).train(on_step)


class Run:
    """The folder of a run around its Trainer: log, checkpoints, samples, export."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.out = config, Path(config.out)
        self.trainer = Trainer(config)
        self.elapsed = 0.0
        folder = self.out / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        if found := checkpoints(folder):
            tensors, record = read_checkpoint(found[-1])
            self.trainer.restore(tensors, record)
            self.elapsed = record["elapsed_seconds"]
        self.first = self.trainer.completed
        atomic.write(self.out / "config.toml", to_toml(config))

    def train(self, on_step: Callable[[Progress], None] | None = None) -> Outcome:
        """Steps until the end, the time limit or a signal; then saves and, unless stopped, exports.

        The time limit counts from this call; the log's elapsed time from the start of the run.
        """
        self._began = self._last_record = time.monotonic()
        self._elapsed_before = self.elapsed
        limit = self.config.max_minutes * 60.0 or float("inf")
        reason: Reason = "finished"
        with StopRequest() as stop, JsonLines(self.out / "log.jsonl", self.first) as log:
            board = self._board()
            while self.trainer.completed < self.config.steps:
                self.trainer.step()
                record = self._after_step(log, board)
                if on_step is not None:
                    on_step(Progress(self.trainer.completed, self.first, self.config.steps, record))
                if stop.requested:
                    reason = "interrupted"
                    break
                if time.monotonic() - self._began >= limit:
                    reason = "time limit"
                    break
            checkpoint = self._save(log)
            if board is not None:
                board.close()
            model = self.export() if reason != "interrupted" else None
        return Outcome(self.trainer.completed, reason, checkpoint, model)

    def _after_step(self, log: JsonLines, board: TensorBoard | None) -> dict[str, Any] | None:
        config, step = self.config, self.trainer.completed

        def due(every: int) -> bool:
            return every > 0 and step % every == 0

        if any(
            map(
                due,
                (
                    config.log_every,
                    config.checkpoint_every,
                    config.sample_every,
                    config.export_every,
                ),
            )
        ):
            self.trainer.meter.check()
        record = self._record() if due(config.log_every) else None
        if due(config.validate_every):
            measured = {"validation_loss": self.trainer.validation_loss()}
            record = {"step": step, **(record or {}), **measured}
        if record is not None:
            log.write(record)
            if board is not None:
                board.write(record)
        if due(config.checkpoint_every):
            self._save(log)
        if due(config.sample_every):
            self._sample()
        if due(config.export_every):
            self.export()
        return record

    def _record(self) -> dict[str, Any]:
        now, step = time.monotonic(), self.trainer.completed
        self.elapsed = self._elapsed_before + now - self._began
        since = min(self.config.log_every, step - self.first)
        rate = since * self.config.batch_size / max(now - self._last_record, 1e-9)
        self._last_record = now
        return {
            "step": step,
            **self.trainer.meter.take(),
            "learning_rate": learning_rate(self.config, step - 1),
            "images_per_second": round(rate, 1),
            "elapsed_seconds": round(self.elapsed, 1),
        }

    def _save(self, log: JsonLines) -> Path:
        """A checkpoint, unless the steps since the last one went wrong."""
        self.trainer.meter.check()
        folder = self.out / "checkpoints"
        path = checkpoint_path(folder, self.trainer.completed)
        if not path.exists():
            self.elapsed = self._elapsed_before + time.monotonic() - self._began
            log.sync()
            record = {**self.trainer.record(), "elapsed_seconds": self.elapsed}
            write_checkpoint(path, self.trainer.tensors(), record)
        prune(folder, self.config.keep_checkpoints)
        return path

    def _sample(self) -> None:
        folder = self.out / "samples"
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{self.trainer.completed:08d}.png"
        save_preview(path, self.trainer.averaged, self.trainer.diffusion, self.config)

    def export(self) -> Path:
        """The averaged model in the diffusers layout, in place of an earlier one."""
        folder = self.out / "model"
        save_pretrained(folder, self.trainer.averaged, self.trainer.diffusion)
        return folder

    def _board(self) -> TensorBoard | None:
        if not self.config.tensorboard:
            return None
        return TensorBoard(self.out / "tensorboard", self.first)


@contextmanager
def _torch_settings(config: TrainConfig) -> Iterator[None]:
    """The run's thread count and its own random generators, for as long as it lasts."""
    threads = torch.get_num_threads()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
