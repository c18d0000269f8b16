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

SETTINGS, PARTS = "settings.json", "parts"
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
        self._results = [folder / name for name in results]
        settings = json.loads(json.dumps({"command": command, **settings}))
        found = self._found(command)
        if found is not None and overwrite:
            self._clear()
            found = None
        if found is None:
            self._refuse_foreign_files()
        else:
            self._refuse_other_settings(found, settings)
        if self.complete:
            return
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        atomic.write(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    @property
    def complete(self) -> bool:
        """Whether the job is finished."""
        return self._results[-1].exists()

    def has(self, part: range) -> bool:
        """Whether this part is done."""
        return self._part(part).exists()

    def write(self, part: range, arrays: dict[str, NDArray[Any]]) -> None:
        """Keep what was found of this part."""
        # A file, because numpy would add .npz to the temporary name.
        with atomic.replacing(self._part(part)) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def read(self, part: range) -> dict[str, NDArray[Any]]:
        """What ``write`` kept."""
        with np.load(self._part(part)) as arrays:
            return dict(arrays)

    def remove_parts(self) -> None:
        """Once all results are written."""
        for part in self._parts():
            part.unlink()
        with contextlib.suppress(OSError):
            (self.folder / PARTS).rmdir()

    def _part(self, part: range) -> Path:
        return self.folder / PARTS / f"{part.start:08d}-{part.stop:08d}.npz"

    def _parts(self) -> list[Path]:
        return [p for p in (self.folder / PARTS).glob("*") if _PART.fullmatch(p.name)]

    def _written(self) -> list[Path]:
        """The files there that the job writes, besides its settings."""
        return [*(path for path in self._results if path.exists()), *self._parts()]

    def _found(self, command: str) -> dict[str, Any] | None:
        """The settings of an earlier run, or None."""
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            found = read_json(path)
        except ValueError:
            found = {}
        if found.get("command") != command:
            raise ValueError(f"{path} was not written by {command}: choose another --out")
        return found

    def _clear(self) -> None:
        for path in self._written():
            path.unlink()
        # Last, so that a clear that is stopped can be finished.
        (self.folder / SETTINGS).unlink()

    def _refuse_foreign_files(self) -> None:
        files = self._written()
        if files:
            raise ValueError(
                f"{self.folder} holds {files[0].relative_to(self.folder)} but no {SETTINGS} that "
                "tells its origin: choose another --out"
            )

    def _refuse_other_settings(self, found: dict[str, Any], settings: dict[str, Any]) -> None:
        other = [n for n in sorted({*found, *settings}) if found.get(n) != settings.get(n)]
        # A run that failed before its first part leaves nothing that could be mixed.
        if other and self._written():
            raise ValueError(
                f"{self.folder} holds work done with other settings ({', '.join(other)}): choose "
                "another --out, or --overwrite"
            )
