"""A step whose estimate of x_0 goes through a function: the one affine step, taken in two.

    x_0 = clip(x̂_0(x, output));    x <- d x + s z;    x_0 <- edit(x_0);    x <- x + c x_0

The function is whatever a caller has written in torch, or a threshold. Where x_0 of the step before
stands for z it is an edited one, and comes in with the second half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastddpm import ops
from fastddpm.diffusion import GaussianDiffusion
from fastddpm.kernels.ancestral_step.reference import STEP_COLUMNS
from fastddpm.sampler.methods import Method

# x_0 [B, C, H, W] -> x_0, a tensor like it; or x_0 itself, written in place. Each row by itself:
# see ``Options.on_x_0`` for what B is.
Edit = Callable[[Tensor], Tensor]


class Halves(Protocol):
    """How the affine step is taken; ``ReverseStep._step``."""

    def __call__(
        self,
        x: Tensor,
        output: Tensor,
        z: Tensor | ops.Draw,
        i: Tensor,
        rows: Tensor,
        x_0: Tensor | None,
        *,
        of_x_0: bool = False,
    ) -> None: ...


class EditedEstimate:
    """The two halves of a table, and the estimate between them.

    edits: what x_0 goes through, in order. rows: float32 [S, 10]. shape: [B, C, H, W].
    stochastic: whether z is noise.
    """

    def __init__(
        self, edits: Sequence[Edit], rows: Tensor, shape: tuple[int, ...], *, stochastic: bool
    ) -> None:
        self._edits = tuple(edits)
        self._stochastic = stochastic
        self.before = torch.empty_like(rows)
        self.after = torch.empty_like(rows)
        self._x_0 = torch.zeros(shape, dtype=torch.float32, device=rows.device)
        self.load(rows)

    def load(self, rows: Tensor) -> None:
        """Take over other rows."""
        columns = {name: rows[:, k] for k, name in enumerate(STEP_COLUMNS)}
        nothing, one = torch.zeros_like(rows[:, 0]), torch.ones_like(rows[:, 0])
        from_x0, sigma = columns["mean_from_x0"], columns["sigma"]
        before = columns | {"mean_from_x0": nothing}
        after = dict.fromkeys(STEP_COLUMNS, nothing) | {
            "x0_from_output": one,
            "mean_from_x0": from_x0,
            "mean_from_x": one,
        }
        if not self._stochastic:
            before |= {"sigma": nothing, "noise_gate": nothing}
            after |= {"sigma": sigma}
        for table, values in ((self.before, before), (self.after, after)):
            table.copy_(torch.stack([values[name] for name in STEP_COLUMNS], dim=1))

    def step(
        self,
        affine: Halves,
        x: Tensor,
        output: Tensor,
        z: Tensor | ops.Draw,
        i: Tensor,
        x_0: Tensor | None,
    ) -> None:
        """Take the step; x_0 receives the edited estimate, if it is not None. It may be z."""
        affine(x, output, z, i, self.before, self._x_0)
        ops.host_call_(self._edit_in_place, self._x_0)
        # Where the second half adds no z, any finite numbers stand for it.
        late = self._x_0 if self._stochastic else z
        affine(x, self._x_0, late, i, self.after, x_0, of_x_0=True)

    def _edit_in_place(self, x_0: Tensor) -> None:
        for edit in self._edits:
            edited = edit(x_0)
            if not isinstance(edited, Tensor) or edited.shape != x_0.shape:
                got = list(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__
                raise ValueError(
                    f"on_x_0 must return a tensor of the shape {list(x_0.shape)} that it is "
                    f"given, got {got}"
                )
            if edited is not x_0:
                x_0.copy_(edited)


def rows_for_edits(diffusion: GaussianDiffusion, method: Method) -> Tensor:
    """The method's rows with a mean that is made of x_0, where the network's output is the mean
    itself."""
    if method.prediction != "previous_sample":
        return method.rows
    rows = method.rows.clone()
    for name, column in (
        ("mean_from_x0", diffusion.schedule.posterior_mean_coef1),
        ("mean_from_x", diffusion.schedule.posterior_mean_coef2),
        ("mean_from_output", torch.zeros_like(rows[:, 0])),
    ):
        rows[:, STEP_COLUMNS.index(name)] = column
    return rows
