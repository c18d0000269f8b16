"""A bound on images, in bits per dimension, in the order of Ho's columns or of OpenAI's."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BitsPerDim(NamedTuple):
    """Bits per dimension of B images and T steps; on the host.

    total: [B], prior + the sum of vb: a bound on -log2 p(x_0)/D, D the numbers of an image. Of a
           subset of the timesteps, an unbiased estimate of it.
    prior: [B], the divergence of q(x_T|x_0) from N(0, I).
    vb:    [B, T]. Column 0 is the decoder's term, column t the divergence at step t.
    mse:   [B, T]. Mean square of x̂_0 - x_0 in [-1, 1], by step t; no bits.

    Columns ascend in t, as in Ho's code; ``openai_order`` turns them. Terms that were not computed
    are NaN.
    """

    total: Tensor
    prior: Tensor
    vb: Tensor
    mse: Tensor

    def openai_order(self) -> BitsPerDim:
        """With t descending, as OpenAI's ``calc_bpd_loop`` returns them."""
        return self._replace(vb=self.vb.flip(1), mse=self.mse.flip(1))
