"""What no checkpoint exceeds: a hostile file is refused before it takes memory or time.

The largest published network of these families has 46 residual blocks, the longest chain 4000
steps.
"""

from __future__ import annotations

from fastddpm.unet import UNetConfig

MAX_BLOCKS = 1000
MAX_WIDTH = 2**31
MAX_STEPS = 1_000_000


def check_blocks(config: UNetConfig, source: str) -> None:
    """Raise ValueError for a network of more than MAX_BLOCKS residual blocks."""
    blocks = len(config.block_out_channels) * (2 * config.layers_per_block + 1)
    if blocks > MAX_BLOCKS:
        raise ValueError(
            f"{source}: expected at most {MAX_BLOCKS} residual blocks, found {blocks} "
            f"(layers_per_block={config.layers_per_block} on {len(config.block_out_channels)} "
            "levels)"
        )


def check_steps(steps: int, source: str) -> None:
    """Raise ValueError for a chain of no steps, or of more than MAX_STEPS."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"{source}: expected 1 to {MAX_STEPS} diffusion steps, found {steps}")
