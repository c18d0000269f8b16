"""The kernels that must agree with their reference bit for bit: noise, reverse step, q_sample.

Their inputs are drawn from the counter-based noise, which is the same on every machine, so the
hashes of their results are, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastddpm import noise, ops
from fastddpm.kernels.ancestral_step import cases as step_cases
from fastddpm.kernels.ancestral_step.call import StepCall
from fastddpm.kernels.ancestral_step.reference import LEARNED_VARIANCES
from fastddpm.kernels.normal import cases as normal_cases
from fastddpm.kernels.q_sample import cases as q_cases
from fastddpm.kernels.q_sample import reference as q_reference
from fastddpm.kernels.torch_normal import cases as torch_normal_cases
from fastddpm.noise import Purpose
from fastddpm.ops import torch_normal as draws
from fastddpm.ops.ancestral_step import step_in_place
from fastddpm.ops.backends import interpreting
from fastddpm.selfcheck.outcome import Bits, Outcome


def drawn(number: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal values for an input, the same on every machine; number tells them apart."""
    return noise.normal(0, torch.tensor([number]), 0, shape, Purpose.INITIAL)[0]


def normal(backend: str, device: torch.device) -> Outcome:
    """ops.normal on a backend against fastddpm.noise."""
    bits = Bits()
    for case in normal_cases.CASES:
        # Made one by one: a range to 2^63 - 1 would end beyond int64.
        indices = torch.tensor([case.first_index + k for k in range(case.batch)]).long()
        for purpose in (Purpose.INITIAL, Purpose.REVERSE):
            settings = (case.step, case.shape, purpose)
            z = ops.normal(case.seed, indices.to(device), *settings, backend=backend)
            bits.add(f"{case.name} {purpose.name}", z, noise.normal(case.seed, indices, *settings))
    return bits.outcome(f"normal, {backend}")


def torch_normal() -> Outcome:
    """What the library draws from torch's generator against torch.randn."""
    bits = Bits()
    for case in torch_normal_cases.CASES:
        own, theirs = (torch.Generator().manual_seed(case.seed) for _ in range(2))
        for generator in (own, theirs):
            torch.rand(case.before, generator=generator)
        expected = torch.randn(case.shape, generator=theirs)
        bits.add(case.name, draws.randn(case.shape, own), expected)
        bits.add(f"{case.name} state", own.get_state(), theirs.get_state())
    return bits.outcome("torch_normal, cpu")


def ancestral_step(backend: str, device: torch.device) -> Outcome:
    """ops.ancestral_step_ with every variance: all that it writes."""
    bits = Bits()
    interpreted = backend == "triton" and interpreting()
    for name, call in _steps(backend, interpreted=interpreted):
        results, expected = _stepped(call, backend, device), _stepped(call)
        for written, result in results.items():
            bits.add(f"{name} {written}", result, expected[written])
    left_out = "bfloat16 and learned variances, which the interpreter rounds otherwise"
    return bits.outcome(f"ancestral_step, {backend}", left_out if interpreted else "")


def q_sample(backend: str, device: torch.device) -> Outcome:
    """ops.q_sample on a backend: x_t and the noise in it."""
    bits = Bits()
    spread = torch.arange(11, dtype=torch.float32) / 8
    table = torch.stack([1 / (1 + spread), spread / (1 + spread)], dim=1)
    for case in q_cases.CASES:
        batch = case.shape[0]
        indices = torch.tensor([case.first_index + k for k in range(batch)]).long()
        steps = 7 * torch.arange(batch) + 1 if case.step_each else torch.tensor([999])
        x_0, t = drawn(1, case.shape), (3 * torch.arange(batch)) % len(table)
        z = noise.normal(case.seed, indices, steps, case.shape[1:], Purpose.FORWARD)
        x_t, used = ops.q_sample(
            *(x_0.to(device), t.to(device), table.to(device)),
            *(noise.seed_tensor(case.seed, device), indices.to(device), steps.to(device)),
            backend=backend,
        )
        bits.add(f"{case.name} x_t", x_t, q_reference.q_sample(x_0, t, table, z))
        bits.add(f"{case.name} noise", used, z)
    return bits.outcome(f"q_sample, {backend}")


def _steps(backend: str, *, interpreted: bool) -> Iterator[tuple[str, StepCall]]:
    """(name, call on the CPU) of every case, at a row with noise and at the last, without."""
    for case in (*step_cases.CASES, *step_cases.NETWORK_CASES):
        if backend == "cpu" and case.output != torch.float32:
            continue  # The C++ kernel reads float32 outputs only, and says so.
        if interpreted and _interpreted_otherwise(case):
            continue
        for i in (1, 2):
            call = case.call(i)
            places = ("x", "model_output", "noise")
            named = {name: call.tensors[name] for name in places if name in call.tensors}
            values = {
                name: torch.empty_like(tensor).copy_(drawn(number, tuple(tensor.shape)))
                for number, (name, tensor) in enumerate(named.items())
            }
            yield f"{case.name} row {i}", call._replace(**values)


def _interpreted_otherwise(case: step_cases.Case) -> bool:
    """Whether Triton's interpreter rounds otherwise than a GPU: it truncates to bfloat16, and its
    fused multiply-adds, which learned variances take, are not."""
    truncated = case.network is not None and case.network.dtype == torch.bfloat16
    return truncated or case.variance in LEARNED_VARIANCES


def _stepped(
    call: StepCall, backend: str = "reference", device: torch.device | None = None
) -> dict[str, Tensor]:
    """What a step has written, by argument; the call itself stays as it is."""
    place = device or torch.device("cpu")
    own = {name: _copied(name, tensor, place) for name, tensor in call.tensors.items()}
    step_in_place(call._replace(**own), backend)
    written = ("x", "x_0", "network_input", "first_nonfinite")
    return {name: own[name] for name in written if name in own}


def _copied(name: str, tensor: Tensor, device: torch.device) -> Tensor:
    """A copy in the same layout; what the step only writes starts as NaN, so that gaps show."""
    copy = torch.empty_like(tensor, device=device)
    return copy.fill_(torch.nan) if name in ("x_0", "network_input") else copy.copy_(tensor)
