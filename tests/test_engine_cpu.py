"""The CPU engine with its kernels: accuracy, identical bits, runs and interrupts."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_program.steps import (
    CPU,
    DIFFUSION,
    LIBRARY,
    NETWORKS,
    call_step,
    error,
    exactly,
    held,
    needs_library,
    plan_of,
    sampler,
)
from torch import Tensor
from unet_networks import conditions, images, network

import fastddpm
from fastddpm import GaussianDiffusion, Sampler, ops
from fastddpm.engine import CannotPrepare, CpuOptions, Plan, eager
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.unet import UNet

pytestmark = needs_library
ISAS = LIBRARY.isas if LIBRARY.handle is not None else ()


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Another instruction set in use; put back after."""
    before = LIBRARY.isa
    LIBRARY.use_isa(request.param)
    yield request.param
    LIBRARY.use_isa(before)


def output(unet: UNet, x: Tensor, t: Tensor, labels: Tensor | None, **options: Any) -> Tensor:
    step = call_step(unet, x, t, labels)
    CpuPrograms(CpuOptions(**options)).prepare(step, plan_of(x))(x)
    return step.output


class TestAccuracy:
    @pytest.mark.parametrize("isa", ISAS, indirect=True)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_error_is_near_torchs_own(self, name: str, isa: str) -> None:
        """Twice torch's, and 4 units in the last place, 2^-24, for Winograd's transforms: these
        networks are small, so torch's sums are short and the transforms' error shows."""
        unet = network(**NETWORKS[name])
        given = (images(unet), *conditions(unet))
        exact = exactly(unet, *given)
        with torch.no_grad():
            torchs = error(unet(*given), exact)
        for memory in ("small", "speed"):
            ours = error(output(unet, *given, memory=memory), exact)
            assert ours <= 2 * torchs + 4 * 2.0**-24

    def test_memory_changes_nothing(self) -> None:
        """Maps of 32x32, from 16x16 doubled among them."""
        unet = network(**NETWORKS["ho"])
        x = torch.randn(2, unet.config.in_channels, 32, 32, generator=torch.Generator())
        small, speed = (
            output(unet, x, *conditions(unet), memory=memory) for memory in ("small", "speed")
        )
        assert torch.equal(small, speed)

    @pytest.mark.parametrize("name", ["ho", "openai", "three_levels"])
    def test_float16_weights_are_near_and_not_the_same(self, name: str) -> None:
        unet = network(**NETWORKS[name])
        given = (images(unet), *conditions(unet))
        off = error(output(unet, *given, weights="float16"), exactly(unet, *given))
        assert 1e-5 < off < 5e-3

    @pytest.mark.slow
    def test_a_whole_chain_of_the_built_in_model_is_the_references(self) -> None:
        unet, diffusion = fastddpm.from_pretrained("mnist")
        ours, theirs = (
            Sampler(unet, diffusion, engine).sample(1, seed=3) for engine in ("cpu", "reference")
        )
        assert (ours - theirs).abs().max() < 1e-3


class TestBits:
    @pytest.mark.parametrize("name", ["ho", "openai", "conditional", "three_levels"])
    def test_an_image_is_the_same_in_every_batch_for_any_number_of_threads(self, name: str) -> None:
        unet = network(**NETWORKS[name])
        labels = [k % 10 for k in range(16)] if unet.config.is_conditional else None
        variance = "learned_range" if unet.config.out_channels == 6 else "fixed_small"
        diffusion = GaussianDiffusion(DIFFUSION.schedule, variance=variance)
        made = []
        for threads, batch in ((1, 16), (2, 16), (2, 3), (1, 1), (3, 5)):
            chain = Sampler(unet, diffusion, "cpu", threads=threads, batch_size=batch)
            made.append(chain.sample(16, seed=7, labels=labels))
        for other in made[1:]:
            assert torch.equal(made[0], other)

    def test_a_call_is_the_same_in_every_batch(self) -> None:
        """And for labels that are embedded by a product, whatever torch makes of it in batches."""
        unet = network(num_class_embeds=None, class_embed_type="timestep")
        x, t, labels = images(unet, 7), torch.arange(7) * 100, torch.linspace(0, 9, 7)
        call = fastddpm.accelerate(unet, "cpu")
        whole = call(x, t, labels)
        chain = Sampler(unet, DIFFUSION, "cpu")
        drawn = chain.sample(7, seed=2, labels=labels)
        for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
            assert torch.equal(call(x[part], t[part], labels[part]), whole[part])
            chosen = range(7)[part]
            again = chain.sample(indices=chosen, seed=2, labels=labels[part])
            assert torch.equal(again, drawn[part])

    def test_stops_change_nothing(self) -> None:
        unet = network()
        chain = sampler(unet)
        plain = chain.sample(2, seed=1)
        counted: list[int] = []
        assert torch.equal(chain.sample(2, seed=1, progress=lambda n, _: counted.append(n)), plain)
        assert counted == [1, 2, 3, 4, 5, 6]
        *_, last = chain.stream(2, seed=1, every=2)
        assert last.t == 0 and torch.equal(last.x_t, plain)


class TestRunner:
    def test_runs_as_the_plain_loop_does(self) -> None:
        table = torch.randn(10, 3)

        def step(x: Tensor, i: Tensor) -> Tensor:
            row = ops.table_row(table, i).expand(2, -1)
            return torch.nn.functional.silu(x) + row[:, :, None, None]

        plan, x = Plan((2, 3, 4, 4), 10, CPU), torch.randn(2, 3, 4, 4)
        ours, theirs = CpuPrograms().prepare(step, plan), eager.prepare(step, plan)
        for start, steps in ((None, None), (4, 2), (0, None), (9, 0), (7, None)):
            torch.testing.assert_close(ours(x, start, steps), theirs(x, start, steps))

        def odd(i: int) -> bool:
            return i % 2 == 1

        seen = [(i, state.clone()) for i, state in ours.iterate(x, 8, stops=odd)]
        assert [i for i, _ in seen] == [7, 5, 3, 1, 0]
        for (_, got), (_, want) in zip(seen, theirs.iterate(x, 8, stops=odd), strict=True):
            torch.testing.assert_close(got, want)

    def test_an_empty_batch_is_empty(self) -> None:
        unet = network()
        step = call_step(unet, images(unet, 0), torch.zeros(0), None)
        runner = CpuPrograms().prepare(step, plan_of(images(unet, 0)))
        assert runner(images(unet, 0)).shape == (0, 3, 8, 8)

    def test_a_state_that_is_not_float32_is_refused(self) -> None:
        plan = Plan((2, 3, 4, 4), 3, CPU, torch.float64)
        with pytest.raises(CannotPrepare, match=r"compute in float32, .* torch\.float64"):
            CpuPrograms().prepare(lambda x, i: x, plan)

    def test_a_running_program_allocates_nothing(self) -> None:
        unet = network()
        chain = sampler(unet, threads=2)
        chain.sample(2)
        runner = held(chain)
        with chain._chain.running():
            runner(images(unet), 5)
            gc.collect()
            before, taken = allocated(), 0
            while taken < 200:
                runner._index.fill_(5)
                taken += runner._program.native.run(runner._index, 6, 0.0)
            assert abs(allocated() - before) < 4096

    def test_an_interrupt_ends_a_chain_between_two_steps(self) -> None:
        unet = network()
        plan = Plan(tuple(images(unet).shape), 2_000_000, CPU)
        runner = CpuPrograms(CpuOptions(threads=2)).prepare(
            call_step(unet, images(unet), *conditions(unet)), plan
        )
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(0.4, signal.pthread_kill, (main, signal.SIGINT))
        before, handler = time.monotonic(), signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                runner(images(unet))
        finally:
            timer.join()
            signal.signal(signal.SIGINT, handler)
        assert time.monotonic() - before < 60
        x = images(unet)
        assert torch.equal(runner(x, 3), runner(x, 3))

    def test_nan_is_reported_with_its_timestep(self) -> None:
        unet = network()
        chain = sampler(unet)
        chain.sample(1)
        with torch.no_grad():
            unet.conv_out.bias[0] = torch.nan
        with pytest.raises(FloatingPointError, match="timestep 5"):
            chain.sample(1)

    def test_programs_of_other_batch_sizes_share_their_weights(self) -> None:
        unet = network()
        chain = sampler(unet)
        sizes = []
        for batch in (1, 4):
            chain.sample(batch)
            sizes.append(next(line for line in chain.explain().splitlines() if "packed" in line))
        assert sizes[0] == sizes[1]
        packed = held(chain)._weights.bytes
        assert packed > sum(p.numel() for p in unet.parameters() if p.dim() == 4) * 4


def allocated() -> int:
    """Bytes that malloc has given out."""

    class Mallinfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        pytest.skip("this C library has no mallinfo2")
    mallinfo.restype = Mallinfo
    info = mallinfo()
    # hblkhd: in pages of their own; uordblks: in use otherwise.
    return int(info.e + info.h)
