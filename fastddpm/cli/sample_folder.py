"""A folder of samples that grows by whole shards, so that a long run can stop and go on.

    settings.json                    how the samples are made; written first, removed last
    shards/00000064-00000128.npz     one batch: samples of indices 64 to 127
    samples.png, images/000000.png   written at the end
    samples.npz                      written last; then the shards are removed

What holds of every job's folder is in job_folder.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastddpm.cli.job_folder import JobFolder, save

Images = NDArray[np.uint8] | NDArray[np.float32]

COMMAND = "fastddpm sample"
RESULT, GRID = "samples.npz", "samples.png"
IMAGES = "images"


class SampleFolder(JobFolder):
    """The output of one sampling job; settings have "num" and "format" among them.

    Arguments and errors as JobFolder's.
    """

    parts_name = "shards"
    what = "samples made"

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        super().__init__(folder, COMMAND, settings, (GRID, RESULT), overwrite=overwrite)

    def join(self, parts: list[range]) -> Images:
        """All samples in order, [N, *spatial, C]."""
        return np.concatenate([self.read(part)["samples"] for part in parts])

    def picture(self, i: int) -> Path:
        """Where the picture of one sample goes."""
        return self.folder / IMAGES / f"{i:06d}.png"

    def finish(self, samples: Images, labels: list[int] | None) -> None:
        """Write samples.npz, which ends the job, and remove the shards."""
        classes = {} if labels is None else {"labels": np.array(labels, dtype=np.int64)}
        save(self.folder / RESULT, samples=samples, **classes)
        self.remove_parts()

    def results_of(self, settings: dict[str, Any]) -> list[Path]:
        whole = super().results_of(settings)
        if settings.get("format") != "png":
            return whole
        return [*whole, *(self.picture(i) for i in range(settings["num"]))]

    def is_ours(self, found: dict[str, Any]) -> bool:
        return super().is_ours(found) and isinstance(found.get("num"), int)
