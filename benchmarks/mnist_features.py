"""Trains the small MNIST classifier, and makes of it the network of features that is shipped.

Run: python -m benchmarks.mnist_features [--data FOLDER]
Writes fastddpm/assets/mnist_features/model.safetensors (float16) and
benchmarks/results/mnist_features.json.  The bar: accuracy on the test set ≥ 98 %.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.origin import RESULTS, described, write
from fastddpm.evaluation.mnist_features import classifier, shipped
from fastddpm.train.data import ImageData, load_images

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = RESULTS / "mnist_features.json"
ASSET = REPOSITORY / "fastddpm/assets/mnist_features/model.safetensors"
SEED, EPOCHS, BATCH = 0, 3, 128
ACCURACY_BAR = 0.98


def train_classifier(data: ImageData, epochs: int = EPOCHS, batch_size: int = BATCH) -> nn.Module:
    """The classifier after `epochs` passes over the labelled images, from seed 0."""
    torch.manual_seed(SEED)
    network = classifier().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    assert data.labels is not None
    for _ in range(epochs):
        for index in torch.randperm(len(data)).split(batch_size):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(network(as_input(data.images[index])), data.labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def as_input(images: Tensor) -> Tensor:
    """uint8 [N, 1, H, W] -> float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


@torch.inference_mode()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities [N, 10] of uint8 images [N, 1, 28, 28]."""
    parts = [network(as_input(part)).softmax(1) for part in images.split(500)]  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def accuracy(network: nn.Module, test: ImageData) -> float:
    """Share of the images that are read right."""
    assert test.labels is not None
    return float((probabilities(network, test.images).argmax(1) == test.labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(REPOSITORY / "../shared/data/mnist"))
    arguments = parser.parse_args()
    network = train_classifier(load_images(arguments.data))
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    ASSET.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, ASSET)
    test = load_images(Path(arguments.data) / "t10k-images-idx3-ubyte.gz")
    report = {
        "command": "python -m benchmarks.mnist_features",
        **{"seed": SEED, "epochs": EPOCHS, "batch_size": BATCH},
        "test_accuracy": accuracy(network, test),
        "test_accuracy_as_shipped": accuracy(shipped(), test),
        "bytes": ASSET.stat().st_size,
        **described(),
    }
    write(RESULT, report)
    print(json.dumps(report, indent=2))
    if report["test_accuracy_as_shipped"] < ACCURACY_BAR:
        raise SystemExit(f"the shipped network's accuracy is below {ACCURACY_BAR}")


if __name__ == "__main__":
    main()
