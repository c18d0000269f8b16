"""FID, Inception score and KID as papers report them: by torch-fidelity, with Inception's weights.

torch-fidelity (Obukhov et al. 2020) is the port of the original TensorFlow network whose figures
agree with it. It is an optional dependency (the extra ``fidelity``) that needs torchvision, and its
weights are a file of their own. It takes bytes, so FID of floats (Ho et al.) is not in it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.data import Dataset

EXTRACTOR = "inception-v3-compat"
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"
# Of KID's usual subsets; fewer images are one.
SUBSET = 1000


class Pictures(Dataset[Tensor]):
    """What torch-fidelity reads: uint8 [3, H, W] of images uint8 [N, C, H, W], C = 1 or 3."""

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(
                "Inception takes pictures, uint8 [N, C, H, W] with C = 1 or 3; got "
                f"{images.dtype} {list(images.shape)}"
            )
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index].expand(3, -1, -1)


def inception_metrics(
    samples: Tensor,
    data: Tensor,
    *,
    weights: Path | None = None,
    batch_size: int = 64,
    cuda: bool = False,
    extractor: str = EXTRACTOR,
    verbose: bool = False,
) -> dict[str, float]:
    """torch-fidelity's figures by its own names: "frechet_inception_distance",
    "inception_score_mean", "kernel_inception_distance_mean" and the deviations of the last two.

    Args:
        samples, data: uint8 [N, C, H, W], C = 1 or 3; grey pictures are shown to it as RGB.
        weights: Inception's; None: where torch keeps what was downloaded. Nothing is downloaded.
        cuda: run it on the GPU.
        extractor: another of torch-fidelity's registered feature extractors.

    Raises:
        ImportError: torch-fidelity or its torchvision cannot be imported.
        ValueError: images of another kind, or no file of weights, or one that holds more.
    """
    pictures = Pictures(samples), Pictures(data)
    fidelity = _imported()
    found = _weights(weights) if extractor == EXTRACTOR else weights
    return dict(
        fidelity.calculate_metrics(
            input1=pictures[0],
            input2=pictures[1],
            fid=True,
            isc=True,
            kid=True,
            kid_subset_size=min(SUBSET, len(samples), len(data)),
            feature_extractor=extractor,
            feature_extractor_weights_path=None if found is None else str(found),
            batch_size=batch_size,
            cuda=cuda,
            # The images are in memory, and no process need be started to read them.
            save_cpu_ram=True,
            cache=False,
            verbose=verbose,
        )
    )


def required(weights: Path | None) -> None:
    """ImportError or ValueError where ``inception_metrics`` would lack torch-fidelity or its
    weights."""
    _imported()
    _weights(weights)


def check_channels(shape: tuple[int, ...]) -> None:
    """ValueError for images (C, H, W) that are neither grey nor RGB."""
    if shape[0] not in (1, 3):
        raise ValueError(f"Inception takes pictures (C, H, W) with C = 1 or 3; got {list(shape)}")


def _imported() -> ModuleType:
    try:
        import torch_fidelity
    # A torchvision of another torch fails while it registers its operators: RuntimeError.
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            "Inception's figures need torch-fidelity and a torchvision that goes with torch "
            f"{torch.__version__}: pip install torch-fidelity torchvision; here: {error}"
        ) from error
    module: ModuleType = torch_fidelity
    return module


def _weights(given: Path | None) -> Path:
    """The file of weights, which holds tensors and nothing else: torch-fidelity unpickles it."""
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        raise ValueError(
            f"Inception's weights are not at {path}: download {SOURCE} and name the file with "
            "weights= (--weights)"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a file of weights alone: {error}") from error
    return path
