"""Samplers and accelerated networks on the CPU engine: what they give, say and refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cpu_program.steps import (
    DIFFUSION,
    LIBRARY,
    needs_library,
    sampler,
)
from torch import Tensor, nn
from unet_networks import VARIANTS, conditions, images, network

import fastddpm
from fastddpm import GaussianDiffusion, Sampler
from fastddpm.engine import CannotPrepare, Plan, Runner, Step
from fastddpm.engine.cpu_program import CpuPrograms
from fastddpm.unet import UNet

pytestmark = needs_library


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

    def test_many_pixels_go_in_equal_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the same images: 7 of 8x8, at most 3 at once, are 3, 3 and 1."""
        unet, x, t = network(), torch.randn(7, 3, 8, 8), torch.arange(7)
        steps = DIFFUSION.num_steps
        called = fastddpm.accelerate(unet, "cpu")(x, t)
        whole = Sampler(unet, DIFFUSION, "cpu").sample(7, seed=1)
        made: list[int] = []
        prepare = CpuPrograms.prepare

        def noted(self: CpuPrograms, step: Step, plan: Plan) -> Runner:
            made.append(plan.shape[0])
            return prepare(self, step, plan)

        monkeypatch.setattr(CpuPrograms, "prepare", noted)
        monkeypatch.setattr(CpuPrograms, "pixels", 3 * 64 + 1)
        progress: list[tuple[int, int]] = []
        parts = Sampler(unet, DIFFUSION, "cpu").sample(
            7, seed=1, progress=lambda done, total: progress.append((done, total))
        )
        assert torch.equal(parts, whole) and made == [3, 1]
        assert progress[-1] == (3 * steps, 3 * steps)
        assert torch.equal(fastddpm.accelerate(unet, "cpu")(x, t), called) and made == [3, 1, 3, 1]
        Sampler(unet, DIFFUSION, "cpu", batch_size=2).sample(4, seed=1)
        assert made[4:] == [2]

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
    @pytest.mark.parametrize("name", ["small", "fourier"])
    def test_a_callers_float_timesteps_stay_the_callers(self, name: str) -> None:
        unet = network(**VARIANTS[name])
        call, x = fastddpm.accelerate(unet, "cpu"), torch.randn(2, 3, 8, 8)
        t = torch.full((2,), 400.0)
        first = call(x, t)
        call(x, t - 100)
        assert t.tolist() == [400, 400]
        assert torch.equal(call(x, 400.0), first)
        assert torch.equal(call(x, 400.0), first)

    def test_labels_are_one_for_each_sample(self) -> None:
        call = fastddpm.accelerate(network(**VARIANTS["conditional"]), "cpu")
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 400])
        call(x, t, torch.tensor([1, 2]))
        for labels in (torch.tensor([1]), torch.tensor([1, 2, 3]), torch.tensor(1)):
            with pytest.raises(ValueError, match="a label for each of 2 samples"):
                call(x, t, labels)

    def test_a_place_that_was_refused_is_refused_again(self) -> None:
        unet, x = network(), torch.randn(1, 3, 8, 8)
        call = fastddpm.accelerate(unet, "cpu")
        call(x, 3)
        unet.half()
        for _ in range(2):
            with pytest.raises(ValueError, match="float32"):
                call(x, 3)

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

    def test_a_network_that_has_more_than_instructions_runs_otherwise(self) -> None:
        class Wavy(UNet):
            def denoise(self, x: Tensor, rows: Tensor, t: Tensor) -> Tensor:
                return super().denoise(x, rows, t).sin()

        unet = network()
        unet.__class__ = Wavy
        fast = fastddpm.accelerate(unet)
        x, (t, _) = images(unet), conditions(unet)
        with torch.no_grad():
            torch.testing.assert_close(fast(x, t), unet(x, t))
        assert "engine: eager" in fast.explain() and "aten.sin" in fast.explain()

    def test_a_network_that_divides_by_each_samples_time(self) -> None:
        """By the time of this call, for all or for each."""
        unet = network(**VARIANTS["fourier"])
        fast = fastddpm.accelerate(unet, "cpu")
        x, close = images(unet, 3), {"rtol": 1e-4, "atol": 1e-6}
        with torch.no_grad():
            for t in (torch.tensor([900, 3, 50]), torch.tensor([7, 1, 2]), torch.tensor(400)):
                torch.testing.assert_close(fast(x, t), unet(x, t), **close)
            torch.testing.assert_close(fast(x[:1], 5), unet(x[:1], torch.tensor([5])), **close)
