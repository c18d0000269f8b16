"""conv3x3 beside torch's own convolution, cuDNN's, in bfloat16: the CIFAR-10 network's, by batch.

Each call reads weights of its own, in turn, as the layers of a network do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu.kernels import Measured, times
from benchmarks.gpu.options import Options
from benchmarks.timing import summary
from fastddpm import ops
from fastddpm.kernels.conv3x3.triton_kernel import Device, Tile, tile_of
from fastddpm.ops.conv3x3 import MOST_IMAGES

# Size of the map, input and output channels.
LAYERS = (
    *((32, 128, 128), (32, 256, 128), (32, 256, 256), (16, 256, 256), (16, 512, 256)),
    *((8, 256, 256), (8, 512, 256), (4, 256, 256), (4, 512, 256)),
)
DTYPE = torch.bfloat16


def run(options: Options) -> Iterator[tuple[str, Any]]:
    """Yields (name, milliseconds of each, and how many times as fast ours is) of each layer that
    the kernel has a tile for, and whether "auto" takes it."""
    torch.backends.cudnn.benchmark = True  # The process is this part's own.
    for batch in options.batches:
        for layer in LAYERS:
            name, tile = f"batch {batch} {layer}", tile_for(batch, *layer)
            if tile is None:
                yield name, {"tile": None, "auto": False}
                continue
            milliseconds = {who: summary(times(m)) for who, m in calls(batch, *layer).items()}
            ratio = milliseconds["torch"]["median"] / milliseconds["fastddpm"]["median"]
            print(f"conv3x3 {name}: {ratio:.2f} x torch", flush=True)
            yield (
                name,
                {
                    **{"tile": [tile.pixels, tile.outputs], "auto": batch <= MOST_IMAGES},
                    **{"times_faster": ratio, "milliseconds": milliseconds},
                },
            )


def tile_for(batch: int, size: int, inputs: int, outputs: int) -> Tile | None:
    """The kernel's tile on this device, if it has one for the layer."""
    x = torch.empty(0, dtype=DTYPE, device="cuda" if torch.cuda.is_available() else "cpu")
    return tile_of(batch * size**2, inputs, outputs, DTYPE.itemsize, Device.of(x))


def calls(
    batch: int, size: int, inputs: int, outputs: int, device: str = "cuda", backend: str = "triton"
) -> dict[str, Measured]:
    """The two calls to measure."""
    pixels = batch * size**2
    moved = DTYPE.itemsize * (pixels * (inputs + outputs) + 9 * inputs * outputs)

    def made(call: Callable[..., object]) -> Callable[[], Callable[[], object]]:
        def make() -> Callable[[], object]:
            shapes = (batch, inputs, size, size), (outputs, inputs, 3, 3)
            x, weight = (
                torch.randn(shape, device=device).to(DTYPE, memory_format=torch.channels_last)
                for shape in shapes
            )
            return lambda: call(x, weight)

        return make

    def own(x: torch.Tensor, weight: torch.Tensor) -> object:
        return ops.conv3x3(x, weight, backend=backend)

    def theirs(x: torch.Tensor, weight: torch.Tensor) -> object:
        return F.conv2d(x, weight, padding=1)

    return {
        "fastddpm": Measured("conv3x3", made(own), moved),
        "torch": Measured("conv2d", made(theirs), moved),
    }
