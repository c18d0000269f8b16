"""One call of a network, run by an engine: ``call(x, t, labels) -> output``.

What is compiled or captured is prepared once for each kind of input and kept; the tensors of a call
are copied into those of the capture, and its output out of them.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastddpm.engine import Plan, Runner, RunnerCache
from fastddpm.sampler.model import Model, evaluated, isolated
from fastddpm.sampler.network import Network, network_of
from fastddpm.sampler.place import Place
from fastddpm.sampler.unet_network import PlainNetwork

# Kinds of input kept prepared; each holds its buffers and, on a GPU, a graph.
KEPT = 8


class CallStep:
    """The network as a chain of one step, whose state is the input and which leaves it alone."""

    def __init__(self, network: Network, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        self.output: Tensor | None = None
        self._t = t.clone()
        self._labels = None if labels is None else labels.clone()
        self._network = network
        self._input = network.input_buffer(tuple(x.shape))

    def load(self, t: Tensor, labels: Tensor | None) -> None:
        """Make t and labels the next call's."""
        self._t.copy_(t)
        if self._labels is not None and labels is not None:
            self._labels.copy_(labels)

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        network_input = x
        if self._input is not None:
            self._input[:, : x.shape[1]].copy_(x)
            network_input = self._input
        # A graph writes every replay to where the captured output lies.
        self.output = self._network(network_input, self._t, self._labels)
        return x


class PlainCallStep:
    """The same for a recorded program: the time rows are computed before it, and the output goes
    to a place of its own."""

    def __init__(self, network: PlainNetwork, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        self._network = network
        # Its own memory, also where t is a caller's float32.
        self._t = t.float().contiguous().clone()
        self._embedding = network.embedded(t, labels).expand(len(x), -1).clone()
        of_output = (len(x), network.out_channels, *x.shape[2:])
        self.output = torch.zeros(of_output, dtype=torch.float32, device=x.device)

    def load(self, t: Tensor, labels: Tensor | None) -> None:
        self._t.copy_(t)
        self._embedding.copy_(self._network.embedded(t, labels))

    def __call__(self, x: Tensor, i: Tensor) -> Tensor:
        # Here, as a replay needs no modes.
        with evaluated(self._network.modules):
            self.output.copy_(self._network.denoise(x, self._embedding, self._t))
        return x


class Prepared(NamedTuple):
    """A step and the runner that an engine made of it."""

    step: CallStep | PlainCallStep
    runner: Runner


class NetworkCall:
    """``model`` as a function of (x, t, labels), run at its place without gradients, one call at a
    time: threads wait for each other."""

    def __init__(self, model: Model, place: Place) -> None:
        self._place = place
        no_steps = torch.empty(0, dtype=torch.int64, device=place.device)
        given = (model, place.device, place.dtype, no_steps, place.engine)
        self._make = partial(network_of, *given)
        self._turn = threading.Lock()
        self._network: Network | None = None
        self._kept: RunnerCache[Prepared] = RunnerCache(KEPT)

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, *, reread: bool = False
    ) -> Tensor:
        """The output for x [B, C, H, W], t [B] and labels [B, ...], a fresh tensor in x's dtype.

        reread: read the weights anew even if they seem unchanged (``Network.refresh``).
        """
        with self._turn, isolated(self._place.device, tf32=self._place.tf32):
            return self._called(self._refreshed(reread), x, t, labels, reread)

    def _called(
        self, network: Network, x: Tensor, t: Tensor, labels: Tensor | None, reread: bool
    ) -> Tensor:
        # A program's state is float32; other networks convert what they get.
        dtype = torch.float32 if isinstance(network, PlainNetwork) else x.dtype
        device = self._place.device
        x_here, t = x.to(device, dtype).contiguous(), t.to(device)
        labels = None if labels is None else labels.to(device)
        if labels is not None and (labels.ndim == 0 or len(labels) != len(x)):
            raise ValueError(
                f"expected a label for each of {len(x)} samples, got shape {list(labels.shape)}"
            )
        size = self._place.engine.batch(len(x_here), x_here.shape[1:])
        parts = [slice(k, k + size) for k in range(0, max(len(x_here), 1), size)]
        outputs = [
            self._run(
                *(network, x_here[part], t[part], None if labels is None else labels[part]),
                reread=reread and part.start == 0,
            )
            for part in parts
        ]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).to(x.device, x.dtype)

    def _run(
        self, network: Network, x: Tensor, t: Tensor, labels: Tensor | None, *, reread: bool
    ) -> Tensor:
        """Of a batch that the engine takes at once."""
        key = tuple((v.shape, v.dtype) for v in (x, t, labels) if v is not None)
        make = partial(self._prepare, network, x, t, labels)
        # A program that is replayed has no modes; its step sets them when it is recorded.
        modules = () if isinstance(network, PlainNetwork) else network.modules
        with evaluated(modules), self._kept.borrow(key, make) as (step, runner):
            step.load(t, labels)
            if reread:
                runner.reread()
            for _ in runner.iterate(x):
                pass
            assert step.output is not None
            return step.output.clone()

    def _refreshed(self, reread: bool) -> Network:
        if self._network is None or self._network.refresh(reread=reread):
            self._kept.clear()
            self._network = self._make()
        return self._network

    def _prepare(self, network: Network, x: Tensor, t: Tensor, labels: Tensor | None) -> Prepared:
        plain = isinstance(network, PlainNetwork)
        make: Any = PlainCallStep if plain else CallStep
        step = make(network, x, t, labels)
        plan = Plan(tuple(x.shape), 1, self._place.device, x.dtype, network.fused)
        runner = self._place.engine.prepare(step, plan)
        network.settle()
        return Prepared(step, runner)
