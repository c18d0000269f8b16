"""A folder of a job that goes part by part, so that it can stop and go on.

    settings.json                   what is computed; written first, removed last
    parts/00000064-00000128.npz     what has been found of images 64 to 127
    the results                     written at the end, the last of them ends the job

Every file appears whole or not at all. A folder with other settings is refused, because its parts
would be mixed with those of another model, and nothing but what a job of these settings writes is
ever replaced or removed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastddpm import atomic
from fastddpm.checkpoint.files import read_json

SETTINGS = "settings.json"
# The .partial of a process that was killed while it wrote is ours as well.
_PART = re.compile(rf"[0-9]{{8}}-[0-9]{{8}}\.npz({re.escape(atomic.PARTIAL)})?")


class JobFolder:
    """The output of one job.

    folder:    where; made if missing.
    command:   who writes it, in words.
    settings:  plain values; the same settings go on where an earlier run stopped.
    results:   names of the files written at the end; the last one ends the job.
    overwrite: remove what an earlier run of the command wrote there, whatever its settings.

    Raises ValueError when the folder holds work done with other settings, or files of unknown
    origin in the places of ours.
    """

    # Where the parts lie, and what they are, in messages.
    parts_name = "parts"
    what = "work done"

    def __init__(
        self,
        folder: Path,
        command: str,
        settings: dict[str, Any],
        results: Sequence[str],
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.command = command
        self.results = results
        self.settings = json.loads(json.dumps({"command": command, **settings}))
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
        self._parts_folder.mkdir(exist_ok=True)

    @property
    def complete(self) -> bool:
        """Whether the job is finished."""
        return (self.folder / self.results[-1]).exists()

    def has(self, part: range) -> bool:
        """Whether this part is done."""
        return self._part(part).exists()

    def write(self, part: range, **arrays: NDArray[Any]) -> None:
        """Keep what was found of this part."""
        save(self._part(part), **arrays)

    def read(self, part: range) -> dict[str, NDArray[Any]]:
        """What ``write`` kept."""
        with np.load(self._part(part)) as arrays:
            return dict(arrays)

    def remove_parts(self) -> None:
        """Once all results are written."""
        for part in self._parts():
            part.unlink()
        remove_if_empty(self._parts_folder)

    def results_of(self, settings: dict[str, Any]) -> list[Path]:
        """The files, there or not, that a job with these settings writes at its end."""
        return [self.folder / name for name in self.results]

    def is_ours(self, found: dict[str, Any]) -> bool:
        """Whether a job of this command has written these settings."""
        return found.get("command") == self.command

    @property
    def _parts_folder(self) -> Path:
        return self.folder / self.parts_name

    def _part(self, part: range) -> Path:
        return self._parts_folder / f"{part.start:08d}-{part.stop:08d}.npz"

    def _parts(self) -> list[Path]:
        return [p for p in self._parts_folder.glob("*") if _PART.fullmatch(p.name)]

    def _written_with(self, settings: dict[str, Any]) -> list[Path]:
        """The files there that a job with these settings writes, besides settings.json."""
        return [*(path for path in self.results_of(settings) if path.exists()), *self._parts()]

    def _found(self) -> dict[str, Any] | None:
        """The settings of an earlier run, or None."""
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            found = read_json(path)
        except ValueError:
            found = {}
        if not self.is_ours(found):
            raise ValueError(f"{path} was not written by {self.command}: choose another --out")
        return found

    def _clear(self, found: dict[str, Any]) -> None:
        written = self._written_with(found)
        for path in written:
            path.unlink()
        for folder in {path.parent for path in written} | {self._parts_folder}:
            if folder != self.folder:
                remove_if_empty(folder)
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
        # A run that failed before its first part leaves nothing that could be mixed.
        if other and (self.complete or self._parts()):
            raise ValueError(
                f"{self.folder} holds {self.what} with other settings ({', '.join(other)}): "
                "choose another --out, or --overwrite"
            )


def save(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an .npz: whole or not at all."""
    # A file, because numpy would add .npz to the temporary name.
    with atomic.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing any more."""
    with contextlib.suppress(OSError):
        folder.rmdir()
