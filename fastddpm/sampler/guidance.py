"""Classifier-free guidance: the output moved away from what the network gives without a class.

    output = (1 - w) output(x, null) + w output(x, class)          Ho & Salimans 2022, equation 6

w = 1 + the paper's own w: 0 leaves the class out, 1 is the network's answer to it, more exaggerates
it. Each sample runs as two rows of one batch, with the same state and the same noise; both get the
guided output, so they stay the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.ops.recording import is_recording


class Guidance:
    """The mixture for states of one shape [2B, C, H, W], the classes' rows before the null ones.

    scale: w of the present call, float32 [1] on the device; written for each.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, *, learns_variance: bool):
        self.scale = torch.ones(1, dtype=torch.float32, device=device)
        self._channels = shape[1]
        outputs = shape[1] * (2 if learns_variance else 1)
        of_outputs = (shape[0], outputs, *shape[2:])
        self._buffer = torch.zeros(of_outputs, dtype=torch.float32, device=device)

    def __call__(self, output: Tensor) -> Tensor:
        """Of the network's output [2B, C, H, W], or [2B, 2C, H, W]: a variance is the class's."""
        if not is_recording():
            return self._mixed(output)
        self._buffer.copy_(output)
        ops.host_call_(self._mix_in_place, self._buffer)
        return self._buffer

    def _mixed(self, output: Tensor) -> Tensor:
        of_class, of_null = output.float().chunk(2)
        channels = self._channels
        mixed = (1 - self.scale) * of_null[:, :channels] + self.scale * of_class[:, :channels]
        guided = torch.cat([mixed, of_class[:, channels:]], dim=1)
        return torch.cat([guided, guided])

    def _mix_in_place(self, output: Tensor) -> None:
        output.copy_(self._mixed(output))
