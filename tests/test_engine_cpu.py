"""The CPU engine with its kernels: accuracy, identical bits, weights that change, interrupts."""

from __future__ import annotations

import copy
import ctypes
import gc
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cpu_program.steps import CPU, MORE, REFUSED, call_step, error, exactly, plan_of
from torch import Tensor, nn
from unet_networks import VARIANTS, conditions, images, network

import fastddpm
from fastddpm import GaussianDiffusion, NoiseSchedule, Sampler, ops
from fastddpm.engine import CannotPrepare, CpuOptions, Plan, eager
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.ops.library import cpu_library
from fastddpm.unet import UNet

LIBRARY = cpu_library()
pytestmark = pytest.mark.skipif(LIBRARY.handle is None, reason=LIBRARY.reason or "never")

NETWORKS = {name: v for name, v in VARIANTS.items() if name not in REFUSED} | MORE
DIFFUSION = GaussianDiffusion(NoiseSchedule.linear(6, 0.05, 0.3))
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


def sampler(unet: UNet, **options: Any) -> Sampler:
    return Sampler(unet, DIFFUSION, "cpu", shape=images(unet).shape[1:], **options)


class TestAccuracy:
    @pytest.mark.parametrize("isa", ISAS, indirect=True)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_error_is_at_most_twice_torchs_own(self, name: str, isa: str) -> None:
        unet = network(**NETWORKS[name])
        given = (images(unet), *conditions(unet))
        exact = exactly(unet, *given)
        with torch.no_grad():
            torchs = error(unet(*given), exact)
        for memory in ("small", "speed"):
            assert error(output(unet, *given, memory=memory), exact) <= 2 * torchs

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


def held(chain: Sampler) -> Any:
    """The runner that a sampler used last."""
    return next(reversed(chain._chain._kept._kept.values())).runner


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


class TestWeightsThatChange:
    def changes(self) -> dict[str, Any]:
        def write(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].conv2.weight.mul_(-1)

        def write_data(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].conv2.weight.data.mul_(-1)

        def attention(unet: UNet) -> None:
            unet.mid_block.attentions[0].to_k.weight.mul_(-2)

        def attention_bias(unet: UNet) -> None:
            unet.mid_block.attentions[0].to_v.bias.data.add_(2)

        def norm(unet: UNet) -> None:
            unet.conv_norm_out.weight.data.mul_(-1)

        def time(unet: UNet) -> None:
            unet.down_blocks[0].resnets[0].time_emb_proj.weight.data.mul_(-1)

        def replace(unet: UNet) -> None:
            layer = unet.up_blocks[0].resnets[0].conv1
            layer.weight = nn.Parameter(-layer.weight)

        def move(unet: UNet) -> None:
            bias = unet.conv_out.bias
            bias.data = bias.data.clone() + 1

        changes = (write, write_data, attention, attention_bias, norm, time, replace, move)
        return {change.__name__: change for change in changes}

    @pytest.mark.parametrize("name", ["small", "ho", "conditional"])
    def test_are_those_of_the_next_chain(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        labels = 3 if unet.config.is_conditional else None
        chain = sampler(unet)
        before = chain.sample(2, labels=labels)
        for change, apply in self.changes().items():
            with torch.no_grad():
                apply(unet)
            after = chain.sample(2, labels=labels)
            fresh = sampler(copy.deepcopy(unet)).sample(2, labels=labels)
            assert torch.equal(after, fresh), change
            assert not torch.equal(after, before), change
            before = after

    def test_are_those_of_the_next_run_of_a_program(self) -> None:
        """Writes that torch counts, with nobody asking for it."""
        unet = network()
        x, t = images(unet), torch.tensor([3, 700])
        step = call_step(unet, x, t, None)
        runner = CpuPrograms().prepare(step, plan_of(x))
        with torch.no_grad():
            for parameter in (unet.conv_in.weight, unet.conv_in.bias, unet.conv_norm_out.bias):
                parameter.add_(0.5)
                runner(x)
                torch.testing.assert_close(step.output, unet.denoise(x, step._rows, t.float()))
            unet.conv_in.bias.data = unet.conv_in.bias.data * 2
            runner(x)
            torch.testing.assert_close(step.output, unet.denoise(x, step._rows, t.float()))

    def test_another_instruction_set_is_not_mixed_in(self) -> None:
        if len(ISAS) < 2:
            pytest.skip("one instruction set")
        unet, before = network(), LIBRARY.isa
        chain = sampler(unet)
        chain.sample(1)
        try:
            LIBRARY.use_isa(next(isa for isa in ISAS if isa != before))
            with pytest.raises(RuntimeError, match=f"packed weights for {before}"):
                chain.sample(1)
        finally:
            LIBRARY.use_isa(before)
        chain.sample(1)


class TestSampler:
    @pytest.mark.parametrize("name", ["ho", "openai", "conditional", "fourier", "scaled_middle"])
    def test_agrees_with_the_reference(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        learned = unet.config.out_channels == 6
        # Fourier features of timestep 0 are not finite.
        steps = [1, 3, 5] if name == "fourier" else range(6)
        variance = "learned_range" if learned else "fixed_large"
        diffusion = GaussianDiffusion(DIFFUSION.schedule.respace(steps), variance=variance)
        labels = [1, 7] if unet.config.is_conditional else None
        ours, theirs = (Sampler(unet, diffusion, engine) for engine in ("cpu", "reference"))
        torch.testing.assert_close(
            ours.sample(2, seed=5, labels=labels),
            theirs.sample(2, seed=5, labels=labels),
            rtol=1e-3,
            atol=1e-3,
        )
        for a, b in zip(
            ours.stream(2, 5, 2, labels=labels), theirs.stream(2, 5, 2, labels=labels), strict=True
        ):
            assert a.t == b.t
            torch.testing.assert_close(a.x_0, b.x_0, rtol=1e-3, atol=1e-3)

    def test_takes_a_callers_noise_and_interpolates(self) -> None:
        unet = network()

        def noise(step: int, shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=torch.Generator().manual_seed(step))

        a, b = torch.rand(2, 3, 8, 8)
        ours, theirs = (Sampler(unet, DIFFUSION, engine) for engine in ("cpu", "reference"))
        for run in (lambda s: s.sample(2, noise=noise), lambda s: s.interpolate(a, b, t=3, seed=2)):
            torch.testing.assert_close(run(ours), run(theirs), rtol=1e-3, atol=1e-3)

    def test_auto_takes_it_and_says_so(self) -> None:
        chain = Sampler(network(), DIFFUSION, threads=2, memory="speed")
        chain.sample(1)
        said = chain.explain()
        assert "engine: cpu" in said and "UNet as it is" in said
        assert (
            f"threads: 2; weights: float32; memory: speed; instruction set: {LIBRARY.isa}" in said
        )
        assert "Conv3x3" in said and "arena" in said and "packed weights" in said

    @pytest.mark.parametrize(
        ("name", "dtype", "why"),
        [
            ("mish", None, "its activation is SiLU, the network's 'mish'"),
            ("3d", None, "its maps have two dimensions, the network's 3"),
            ("small", torch.bfloat16, r"computes in float32, the network in torch\.bfloat16"),
        ],
    )
    def test_what_it_cannot_take_auto_runs_otherwise(
        self, name: str, dtype: torch.dtype | None, why: str
    ) -> None:
        unet = network(**VARIANTS[name])
        shape = images(unet).shape[1:]
        chain = Sampler(unet, DIFFUSION, dtype=dtype, shape=shape)
        assert chain.sample(1).isfinite().all()
        assert "engine: eager" in chain.explain()
        with pytest.raises(ValueError, match=f"cannot run: .*{why}"):
            Sampler(unet, DIFFUSION, "cpu", dtype=dtype, shape=shape)
        with pytest.raises(
            ValueError, match=f"settings of engine 'cpu', which does not run: .*{why}"
        ):
            Sampler(unet, DIFFUSION, dtype=dtype, shape=shape, threads=2)

    def test_what_it_cannot_record_auto_runs_otherwise_and_names_it(self) -> None:
        unet = network()
        unet.conv_out = nn.Sequential(unet.conv_out, nn.Tanh())
        chain = Sampler(unet, DIFFUSION)
        assert torch.equal(chain.sample(1), Sampler(unet, DIFFUSION).sample(1))
        said = chain.explain()
        assert "engine: eager" in said
        assert "not cpu: fastddpm.ancestral_step_" in said and "reads what aten.tanh" in said
        with pytest.raises(CannotPrepare, match=r"reads what aten\.tanh"):
            Sampler(unet, DIFFUSION, "cpu").sample(1)

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"threads": 0}, "threads must be an integer of at least 1, or None; got 0"),
            ({"threads": 2.0}, r"threads must be .*got 2\.0"),
            ({"threads": True}, "threads must be .*got True"),
            ({"weights": "bfloat16"}, "weights must be one of float32, float16; got 'bfloat16'"),
            ({"memory": "large"}, "memory must be one of small, speed; got 'large'"),
            ({"weights": "float16", "memory": "speed"}, "no float16 form"),
        ],
    )
    def test_wrong_settings_are_refused(self, options: dict[str, Any], why: str) -> None:
        with pytest.raises(ValueError, match=why):
            sampler(network(), **options)

    def test_settings_of_it_need_it(self) -> None:
        with pytest.raises(ValueError, match="engine='reference' was asked for"):
            Sampler(network(), DIFFUSION, "reference", threads=2)

    def test_a_network_in_another_dtype_is_copied(self) -> None:
        unet = network()
        chain = Sampler(copy.deepcopy(unet).double(), DIFFUSION, "cpu", dtype=torch.float32)
        assert torch.equal(chain.sample(1), sampler(unet).sample(1))
        with torch.no_grad():
            chain.model.conv_out.bias.add_(1)  # type: ignore[union-attr]
            unet.conv_out.bias.add_(1)
        assert torch.equal(chain.sample(1), sampler(unet).sample(1))


class TestAccelerate:
    @pytest.mark.parametrize("name", ["ho", "openai", "conditional", "label_is_an_embedding"])
    def test_answers_as_the_model(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        fast = fastddpm.accelerate(unet, threads=2)
        for batch in (2, 1):
            x, (t, labels) = images(unet, batch), conditions(unet)
            given = (x, t[:batch], None if labels is None else labels[:batch])
            with torch.no_grad():
                torch.testing.assert_close(fast(*given), unet(*given), rtol=1e-4, atol=1e-4)
        assert "engine: cpu" in fast.explain() and "threads: 2" in fast.explain()

    def test_a_network_that_divides_by_each_samples_time_runs_otherwise(self) -> None:
        unet = network(**VARIANTS["fourier"])
        fast = fastddpm.accelerate(unet)
        x, (t, _) = images(unet), conditions(unet)
        with torch.no_grad():
            torch.testing.assert_close(fast(x, t), unet(x, t))
        assert "engine: eager" in fast.explain() and "aten.div" in fast.explain()
