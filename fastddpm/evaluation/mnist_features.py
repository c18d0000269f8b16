"""Features of 28 x 28 digits: the last hidden layer of a small classifier of MNIST.

    x [B, 1, 28, 28] -> conv 32, pool -> conv 64, pool -> h [B, 128] -> 10 classes

h stands for what Inception's last pooling layer is to pictures of things: FID with it tells digits
from near digits, needs no download, and 128 features need only a few hundred samples.
``python -m benchmarks.mnist_features`` trained the one that is shipped, in float16 (843 kB).
"""

from __future__ import annotations

import importlib.resources

import torch
from safetensors.torch import load
from torch import Tensor, nn

from fastddpm.sampler import arguments

WEIGHTS = "assets/mnist_features/model.safetensors"
SHAPE = (1, 28, 28)


def classifier() -> nn.Sequential:
    """A LeNet-sized network over [B, 1, 28, 28] in [-1, 1], with weights drawn anew."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )


class MnistFeatures:
    """h of images, float32 [B, 1, 28, 28] in [-1, 1] -> float32 [B, 128], on the images' device.

    network: a ``classifier``; None: the one that is shipped.
    """

    name = "mnist"
    dimensions = 128

    def __init__(self, network: nn.Sequential | None = None) -> None:
        self._hidden = (network or shipped())[:9].eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Raises ValueError for images of another shape or dtype, or beyond [-1, 1]."""
        check_shape(tuple(images.shape[1:]))
        arguments.within("images", arguments.images("images", images), 1.0)
        features: Tensor = self._hidden.to(images.device)(images.float())
        return features


def check_shape(shape: tuple[int, ...]) -> None:
    """ValueError for images of another shape (C, H, W) than these are features of."""
    if shape != SHAPE:
        raise ValueError(f"the features of MNIST are of images {list(SHAPE)}, got {list(shape)}")


def shipped() -> nn.Sequential:
    """The classifier that comes with the package, float32 on the CPU, in evaluation mode."""
    stored = load((importlib.resources.files("fastddpm") / WEIGHTS).read_bytes())
    network = classifier()
    network.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    return network.eval()
