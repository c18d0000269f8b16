"""Our network as a port's code has it: its names, and what that code cannot express."""

from __future__ import annotations

from torch import Tensor

from fastddpm.checkpoint.differences import network_differences
from fastddpm.checkpoint.ports import Port, Survey, config_of, theirs
from fastddpm.unet import UNet, UNetConfig

# Our attention's matrices, which every port's torch code has as 1 × 1 convolutions.
_CONVOLVED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


def nearest(config: UNetConfig) -> Survey:
    """What a port's state dict would show of this network, or of the one nearest to it."""
    channels = config.block_out_channels
    return Survey(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        # The codes multiply the first width with integers.
        channels=tuple(channels[0] * max(c // channels[0], 1) for c in channels),
        layers=config.layers_per_block,
        attends=tuple(kind.startswith("Attn") for kind in config.down_block_types),
        has_resampling=config.downsample_type != "pool",
    )


def differences(port: Port, config: UNetConfig, survey: Survey) -> list[str]:
    """The fields of a config that the port's network with these levels has otherwise."""
    try:
        again = config_of(port, survey, "its code", None, config.dropout)
    except ValueError as error:
        return [str(error)]
    return network_differences(config, again)


def port_state(port: Port, unet: UNet, survey: Survey) -> dict[str, Tensor]:
    """The network's state dict under the port's names, in its shapes, on the CPU."""
    state = unet.state_dict()
    names = theirs(port, survey, state)
    return {
        names[key]: (value[:, :, None, None] if key.endswith(_CONVOLVED) else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in state.items()
    }
