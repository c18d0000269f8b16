"""A folder of samples that grows by whole shards, so that a long run can stop and go on.

    settings.json                    how the samples are made; written first
    shards/00000064-00000128.npz     one batch: samples of indices 64 to 127
    samples.png, samples.npz         written at the end, in this order; then the shards are removed

Every file appears whole or not at all (written beside its place, then renamed). A folder with other
settings is refused, because its shards would be mixed with samples of another model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]

SETTINGS, SHARDS, RESULT = "settings.json", "shards", "samples.npz"


class SampleFolder:
    """The output of one sampling job.

    folder:    where; made if missing.
    settings:  plain values; the same settings go on where an earlier run stopped.
    overwrite: remove what an earlier run wrote there, whatever its settings.

    Raises ValueError when the folder holds samples made with other settings, or of unknown origin.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        if overwrite:
            self._clear()
        self._check()
        if self.complete:
            return
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.settings, indent=2) + "\n"
        write_whole(folder / SETTINGS, lambda file: file.write(text.encode()))

    @property
    def complete(self) -> bool:
        """Whether the job is finished."""
        return (self.folder / RESULT).exists()

    def has(self, part: range) -> bool:
        """Whether the samples with these indices are done."""
        return self._shard(part).exists()

    def write(self, part: range, samples: Images) -> None:
        """Keep the samples of these indices: uint8 [len(part), H, W, C]."""
        write_whole(self._shard(part), lambda file: np.savez(file, samples=samples))

    def join(self, parts: list[range]) -> Images:
        """All samples in order, uint8 [N, H, W, C]."""
        return np.concatenate([_read(self._shard(part)) for part in parts])

    def finish(self, samples: Images, labels: list[int] | None) -> None:
        """Write samples.npz, which ends the job, and remove the shards."""
        if labels is None:
            write_whole(self.folder / RESULT, lambda file: np.savez(file, samples=samples))
        else:
            classes = np.array(labels, dtype=np.int64)
            write_whole(
                self.folder / RESULT,
                lambda file: np.savez(file, samples=samples, labels=classes),
            )
        shutil.rmtree(self.folder / SHARDS)

    def _shard(self, part: range) -> Path:
        return self.folder / SHARDS / f"{part.start:08d}-{part.stop:08d}.npz"

    def _clear(self) -> None:
        for name in (RESULT, "samples.png", SETTINGS):
            (self.folder / name).unlink(missing_ok=True)
        for name in (SHARDS, "images"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _check(self) -> None:
        path = self.folder / SETTINGS
        if not path.exists():
            if any((self.folder / name).exists() for name in (RESULT, SHARDS)):
                raise ValueError(
                    f"{self.folder} holds samples but no {SETTINGS}: choose another --out, or "
                    "--overwrite"
                )
            return
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = {}
        names = sorted({*found, *self.settings})
        other = [name for name in names if found.get(name) != self.settings.get(name)]
        if other:
            raise ValueError(
                f"{self.folder} holds samples made with other settings ({', '.join(other)}): "
                "choose another --out, or --overwrite"
            )


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that it appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> Images:
    with np.load(path) as arrays:
        samples: Images = arrays["samples"]
    return samples
