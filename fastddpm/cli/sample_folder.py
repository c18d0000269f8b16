"""A folder of samples that grows by whole shards, so that a long run can stop and go on.

    settings.json                    how the samples are made; written first, removed last
    shards/00000064-00000128.npz     one batch: samples of indices 64 to 127
    samples.png, images/000000.png   written at the end
    samples.npz                      written last; then the shards are removed

Every file appears whole or not at all. A folder with other settings is refused, because its shards
would be mixed with samples of another model. Settings also tell which files are ours: nothing else
is ever replaced or removed.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastddpm import atomic
from fastddpm.checkpoint.files import read_json

Images = NDArray[np.uint8] | NDArray[np.float32]

COMMAND = "fastddpm sample"
SETTINGS, RESULT, GRID = "settings.json", "samples.npz", "samples.png"
SHARDS, IMAGES = "shards", "images"
# The .partial of a process that was killed while it wrote is ours as well.
_SHARD = re.compile(rf"[0-9]{{8}}-[0-9]{{8}}\.npz({re.escape(atomic.PARTIAL)})?")


class SampleFolder:
    """The output of one sampling job.

    folder:    where; made if missing.
    settings:  plain values, "num" and "format" among them; the same settings go on where an earlier
               run stopped.
    overwrite: remove what an earlier run wrote there, whatever its settings.

    Raises ValueError when the folder holds samples made with other settings, or files of unknown
    origin in the places of ours.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps({"command": COMMAND, **settings}))
        found = self._found()
        if found is not None and overwrite:
            self._clear(found)
            found = None
        if found is None:
            self._refuse_foreign_files()
        else:
            self._refuse_other_settings(found)
        if self.complete:
            return
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / SETTINGS, json.dumps(self.settings, indent=2) + "\n")
        (folder / SHARDS).mkdir(exist_ok=True)

    @property
    def complete(self) -> bool:
        """Whether the job is finished."""
        return (self.folder / RESULT).exists()

    def has(self, part: range) -> bool:
        """Whether the samples with these indices are done."""
        return self._shard(part).exists()

    def write(self, part: range, samples: Images) -> None:
        """Keep the samples of these indices: uint8 or float32 [len(part), *spatial, C]."""
        _save(self._shard(part), samples=samples)

    def join(self, parts: list[range]) -> Images:
        """All samples in order, [N, *spatial, C]."""
        return np.concatenate([_read(self._shard(part)) for part in parts])

    def picture(self, i: int) -> Path:
        """Where the picture of one sample goes."""
        return self.folder / IMAGES / f"{i:06d}.png"

    def finish(self, samples: Images, labels: list[int] | None) -> None:
        """Write samples.npz, which ends the job, and remove the shards."""
        classes = {} if labels is None else {"labels": np.array(labels, dtype=np.int64)}
        _save(self.folder / RESULT, samples=samples, **classes)
        for shard in self._shards():
            shard.unlink()
        _remove_if_empty(self.folder / SHARDS)

    def _shard(self, part: range) -> Path:
        return self.folder / SHARDS / f"{part.start:08d}-{part.stop:08d}.npz"

    def _shards(self) -> list[Path]:
        return [p for p in (self.folder / SHARDS).glob("*") if _SHARD.fullmatch(p.name)]

    def _written_with(self, settings: dict[str, Any]) -> list[Path]:
        """The files there that a job with these settings writes, besides settings.json."""
        names = {f"{i:06d}.png" for i in range(settings["num"])}
        pictures = (self.folder / IMAGES).glob("*.png") if settings["format"] == "png" else ()
        whole = [self.folder / name for name in (RESULT, GRID)]
        return [
            *(path for path in whole if path.exists()),
            *(path for path in pictures if path.name in names),
            *self._shards(),
        ]

    def _found(self) -> dict[str, Any] | None:
        """The settings of an earlier run, or None."""
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            found = read_json(path)
        except ValueError:
            found = {}
        if found.get("command") != COMMAND or not isinstance(found.get("num"), int):
            raise ValueError(f"{path} was not written by {COMMAND}: choose another --out")
        return {"format": None, **found}

    def _clear(self, found: dict[str, Any]) -> None:
        for path in self._written_with(found):
            path.unlink()
        for name in (SHARDS, IMAGES):
            _remove_if_empty(self.folder / name)
        # Last, so that a clear that is stopped can be finished.
        (self.folder / SETTINGS).unlink()

    def _refuse_foreign_files(self) -> None:
        files = self._written_with(self.settings)
        if files:
            raise ValueError(
                f"{self.folder} holds {files[0].relative_to(self.folder)} but no {SETTINGS} that "
                "tells its origin: choose another --out"
            )

    def _refuse_other_settings(self, found: dict[str, Any]) -> None:
        names = sorted({*found, *self.settings})
        other = [name for name in names if found.get(name) != self.settings.get(name)]
        # A run that failed before its first shard leaves nothing that could be mixed.
        if other and (self.complete or self._shards()):
            raise ValueError(
                f"{self.folder} holds samples made with other settings ({', '.join(other)}): "
                "choose another --out, or --overwrite"
            )


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    # A file, because numpy would add .npz to the temporary name.
    with atomic.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> Images:
    with np.load(path) as arrays:
        samples: Images = arrays["samples"]
    return samples


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
