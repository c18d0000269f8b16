"""The CPU benchmarks without rivals: what is refused, chosen, counted, and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from op_backends import needs_library
from torch import Tensor

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

import fake_contenders as fakes

import fastddpm
from benchmarks import compare_cpu, cpu_accuracy, profile_cpu, timing
from benchmarks.cpu import (
    calls,
    chain,
    contenders,
    instructions,
    measure,
    memory,
    networks,
    onnx_rivals,
    peak,
    program,
    work,
)
from benchmarks.cpu.contenders import Contender, Setup
from benchmarks.cpu.steady import Steady
from benchmarks.turns import Ended, Rounds
from fastddpm import UNet, UNetConfig, timesteps
from fastddpm.ops.program_abi import (
    Attention,
    Conv3x3,
    Convolution,
    Input,
    Layout,
    Output,
    Packing,
    Pointwise,
    Resample,
)

PEAK = peak.Peak(1e9, 1.0)._asdict()


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """The built-in network, two samples."""
    folder = tmp_path_factory.mktemp("networks") / "mnist"
    networks.write("mnist", folder)
    networks.write_expected(folder, 2)
    return Setup(folder, batch=2, threads=1)


@pytest.fixture
def small(tmp_path: Path) -> Setup:
    """A network of two levels on images of 8×8, three samples."""
    config = UNetConfig.ho(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    _, diffusion = fastddpm.from_pretrained("mnist")
    fastddpm.save_pretrained(tmp_path / "small", networks.randomised(UNet(config)), diffusion)
    networks.write_expected(tmp_path / "small", 3)
    return Setup(tmp_path / "small", batch=3, threads=1)


def contender(
    name: str, make: Callable[..., Any] = fakes.right, setting: str = "a setting", **options: Any
) -> Contender:
    return Contender(name, setting, make, options, path=fakes.FOLDER)


class Fixed:
    """A worker whose turns give this answer."""

    found = 0.0
    has_ended = False

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def turn(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end(self) -> None:
        self.has_ended = True


def steady() -> Steady:
    """A machine that always gives all it has."""
    return Steady(Fixed(PEAK))


def ready(name: str, milliseconds: float) -> measure.Ready:
    return measure.Ready(contender(name), Fixed(milliseconds), 0.0)


# ---- networks


def test_random_weights_are_seeded_and_do_something(small: Setup) -> None:
    unet, _ = fastddpm.from_pretrained(small.folder)
    again = networks.randomised(UNet(unet.config))
    assert all(
        torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True)
    )
    x, t = networks.inputs(unet, 3)
    exact = networks.exact(unet, x, t)
    assert exact.dtype == torch.float64 and exact.shape == (3, 3, 8, 8)
    assert 0.1 < exact.std() < 10
    assert next(unet.parameters()).dtype == torch.float32


def test_diffusers_reads_the_same_network(small: Setup) -> None:
    x, t = networks.inputs(fastddpm.from_pretrained(small.folder)[0], 3)
    sources = contenders.networks_of(small)
    with torch.no_grad():
        theirs, own = (sources[name]()(x, t) for name in contenders.SOURCES)
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)


def test_unknown_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cifar10, mnist; got 'cifar'"):
        networks.write("cifar", tmp_path)


# ---- agreement


def test_agreement() -> None:
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert calls.agreement([3.0, 4.5], expected) == pytest.approx(0.1)
    assert calls.agreement([[3.0, 4.0]], expected) == float("inf")
    assert calls.agreement(torch.tensor([3.0, 4.0]), expected) == 0


@pytest.mark.parametrize("factor", [1.01, 0.0, float("nan")])
def test_a_wrong_output_is_refused(small: Setup, factor: float) -> None:
    given = [contender("a"), contender("b", factor=factor)]
    with ExitStack() as running, pytest.raises(measure.Disagreement, match=r"b \(a setting\): rel"):
        measure.best_settings(small, given, "wall", running, steady())


def test_a_tolerance_is_the_contenders_own(small: Setup) -> None:
    rough = contender("half", factor=1.005)
    _, error = calls.checked(small, rough)
    assert error == pytest.approx(0.005, rel=1e-3)
    measure.require_agreement(replace(rough, tolerance=contenders.HALF_TOLERANCE), error)
    with pytest.raises(measure.Disagreement, match=r"relative error 5\.0e-03 against float64"):
        measure.require_agreement(rough, error)


def test_who_is_absent_is_named_with_the_reason(small: Setup) -> None:
    """One runs, one is not installed, one is right and then crashes."""
    given = [contender("a"), contender("b", fakes.missing), contender("c", fakes.crashing)]
    with ExitStack() as running:
        trial = measure.best_settings(small, given, "wall", running, steady())
    assert list(trial.chosen) == ["a"] and list(trial.setting_ms) == ["a (a setting)"]
    assert list(trial.absent) == ["b (a setting)", "c (a setting)"]
    assert trial.absent["b (a setting)"] == "exit code 1\nNo module named 'rival'"
    assert trial.absent["c (a setting)"].startswith("SIGABRT")


@needs_library
def test_errors_stand_beside_torchs() -> None:
    one = instructions.measured(1)[7]
    assert one.name == "conv3x3_4_256_256"
    with torch.inference_mode():
        found = cpu_accuracy._layer(one)
    assert 0 < found["ours"] < 1e-5 and 0 < found["torch"] < 1e-5
    assert found["times_torchs"] == pytest.approx(found["ours"] / found["torch"])
    assert f"| {one.name} |" in cpu_accuracy.table("layers", {one.name: found})


def test_contenders_travel_as_json() -> None:
    for one in contenders.all_contenders():
        assert json.loads(json.dumps(one.as_json()))
        again = Contender.from_json(json.loads(json.dumps(one.as_json())))
        assert replace(again, modules=tuple(again.modules)) == one


def test_rivals_that_are_there_or_not_are_all_named() -> None:
    everyone = contenders.all_contenders()
    assert len({one.label for one in everyone}) == len(everyone)
    names = list(dict.fromkeys(one.name for one in everyone))
    assert names[0] == contenders.OURS
    rivals = {"torch", "torch channels_last", "ONNX Runtime", "OpenVINO", "MNN"}
    assert rivals == {one.name for one in everyone if not one.is_ours}


def test_another_build_of_mnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(onnx_rivals.MNN_AVX512, raising=False)
    assert onnx_rivals.mnn_avx512_version() is None
    before = contenders.all_contenders()
    monkeypatch.setenv(onnx_rivals.MNN_AVX512, "/a/folder")
    added = [one for one in contenders.all_contenders() if one not in before]
    assert {(one.name, one.path) for one in added} == {("MNN with AVX-512", "/a/folder")}
    assert [one.setting for one in added] == [one.setting for one in before if one.name == "MNN"]


# ---- measuring


def test_contenders_see_falling_timesteps(small: Setup) -> None:
    seen: list[Tensor] = []
    call = calls.falling(small, lambda x, t: seen.append(t))
    for _ in range(1001):
        call()
    assert [int(t[0]) for t in seen[:3]] == [999, 998, 997]
    assert int(seen[999][0]) == 0 and int(seen[1000][0]) == 999
    assert all(t.shape == (3,) for t in seen)


def test_the_fastest_setting_of_each_library_goes_on(
    small: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [("a", "slow", 5.0), ("b", "only", 3.0), ("a", "fast", 4.0)]
    given = [contender(name, setting=setting) for name, setting, _ in settings]
    workers = {f"{name} ({setting})": Fixed(ms) for name, setting, ms in settings}

    def started(setup: Setup, asked: list[Contender], *others: Any) -> dict[str, Fixed]:
        return {one.label: workers[one.label] for one in asked}

    monkeypatch.setattr(measure, "_started", started)
    trial = measure.best_settings(small, given, "wall", ExitStack(), steady())
    chosen = {name: one.contender.setting for name, one in trial.chosen.items()}
    assert chosen == {"a": "fast", "b": "only"}
    assert trial.setting_ms["a (slow)"]["median"] == 5 and len(trial.setting_ms) == 3
    assert [one.has_ended for one in workers.values()] == [True, False, False]


def test_figures(small: Setup) -> None:
    chosen = {
        contenders.OURS: ready(contenders.OURS, 2.0),
        "slow": ready("slow", 8.0),
        "fast": ready("fast", 3.0),
        "gone": measure.Ready(contender("gone"), Fixed(Ended("SIGSEGV")), 0.0),
    }
    found = measure.measured(small, chosen, steady(), 3)
    assert json.loads(json.dumps(found)) == found
    assert found["best_rival"] == "fast" and found["absent"] == {"gone": "SIGSEGV"}
    faster = found["times_faster_than"][contenders.OURS]
    assert {name: ratio["median"] for name, ratio in faster.items()} == {"slow": 4, "fast": 1.5}
    flop = 3 * work.asked(fastddpm.from_pretrained(small.folder)[0])
    own = found["contenders"][contenders.OURS]
    assert found["flop"] == flop > 0
    assert own["effective_flop_per_second"] == pytest.approx(flop / 2e-3)
    assert own["effective_share_of_peak"] == pytest.approx(flop / 2e-3 / 1e9)
    assert own["images_per_second"] == pytest.approx(1500)
    said = compare_cpu.table("small, batch 3", found)
    assert "| slow | 8.00 |" in said and "busy" not in said
    busy = Steady(Fixed(PEAK | {"processor_share": 0.5}))
    found = measure.measured(small, chosen, busy, 3)
    assert found["contenders"]["slow"]["disturbed_turns"] == 3
    said = compare_cpu.table("small, batch 3", found)
    assert "busy: 9 turns never had all of it" in said


def test_an_end_of_ours_is_an_error(small: Setup) -> None:
    own = measure.Ready(contender(contenders.OURS), Fixed(Ended("SIGSEGV")), 0.0)
    with pytest.raises(Ended, match="fastddpm: SIGSEGV"):
        measure.measured(small, {contenders.OURS: own}, steady(), 1)


def test_nobody_to_compare_with() -> None:
    found = measure.compared({contenders.OURS: [1.0]}, [contenders.OURS])
    assert found == {"best_rival": None, "times_faster_than": {contenders.OURS: {}}}


def test_a_turn_is_filled_after_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clock = iter([10.0, 10.1, 10.15, 10.5])
    monkeypatch.setattr(timing.time, "process_time", lambda: next(clock))
    assert timing.processor_milliseconds(lambda: calls.append(1)) == pytest.approx(500 / 3)
    assert len(calls) == 4


# ---- what is counted


def test_flop_of_instructions() -> None:
    x, y = Input(channels=(5, 3)), Output(channels=7)
    # Two images of 6×9 are 2×3 tiles each.
    assert work.flop(Conv3x3(x=x, y=y, batch=2, height=6, width=9)) == 2 * 36 * 12 * 8 * 7
    wide = Convolution(x=x, y=y, batch=2, height=6, width=9, kernel=3, stride=2)
    doubled = Conv3x3(x=x, y=y, batch=1, height=32, width=28, doubled=1)
    assert work.flop(doubled) == 2 * 100 * 16 * 8 * 7
    small = Conv3x3(x=x, y=y, batch=1, height=16, width=16, doubled=1)
    assert work.flop(small) == 2 * 36 * 16 * 8 * 7
    assert work.flop(wide) == 2 * 2 * 54 * 72 * 7
    assert work.flop(Attention(batch=2, tokens=10, heads=3, head_dim=4)) == 4 * 2 * 100 * 12
    assert work.flop(Layout(batch=2, channels=3, pixels=4)) == 0
    assert work.executed([wide, wide]) == 2 * work.flop(wide)
    assert work.described(wide) == "6×9 5+3→7 3×3 stride 2"


def test_bytes_of_instructions() -> None:
    x, y = Input(channels=(5, 3)), Output(channels=7, residual=1)
    # Maps of 108 pixels: two read, one written, one added.
    half = Conv3x3(x=x, y=y, batch=2, height=6, width=9, packing=Packing.FLOAT16)
    assert work.bytes_moved(half) == 4 * 108 * (8 + 7 + 7) + 2 * 9 * 8 * 7
    half.packing = Packing.TRANSFORMED
    assert work.bytes_moved(half) == 4 * 108 * (8 + 7 + 7) + 4 * 36 * 8 * 7
    y = Output(channels=7)
    strided = Convolution(
        x=x, y=y, batch=2, height=3, width=4, input_height=6, input_width=8, kernel=1
    )
    assert work.bytes_moved(strided) == 4 * (96 * 8 + 24 * 7 + 8 * 7)
    halved = Pointwise(x=x, y=y, batch=2, height=3, width=4, resample=Resample.HALVE)
    assert work.bytes_moved(halved) == 4 * (96 * 8 + 24 * 7)
    assert work.bytes_moved(Attention(batch=2, tokens=10, heads=3, head_dim=4)) == 4 * 4 * 240
    assert work.bytes_moved(Layout(batch=2, channels=3, pixels=4)) == 0


def test_flop_that_a_network_asks_for(small: Setup) -> None:
    """As counted by the layers of diffusers' network, and for attention by hand."""
    network = contenders.networks_of(small)["diffusers"]()
    counted = 0

    def count(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += 2 * output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    unet, _ = fastddpm.from_pretrained(small.folder)
    with torch.no_grad():
        network(*networks.inputs(unet, 1))
    # Four layers of 4×4 pixels and 16 channels.
    assert work.asked(unet) == counted + 4 * (4 * 16**2 * 16)


@needs_library
def test_every_case_is_right_as_an_instruction() -> None:
    cases = instructions.measured(2)
    assert len({one.name for one in cases}) == len(cases) > 20
    kinds = {name.split("_")[0] for name in (one.name for one in cases)}
    assert kinds == {"conv3x3", "convolution", "attention", "pointwise"}
    for one in cases[::5]:
        one.program(1)()
        output, exact = one.output(), one.exact()
        assert calls.agreement(output, exact.reshape(output.shape)) < 1e-5, one.name
        assert calls.agreement(one.torchs(), exact) < 1e-5, one.name
        assert one.bytes > 0


@needs_library
def test_half_precision_weights_are_fewer_bytes() -> None:
    full, half = (
        {one.name: one.bytes for one in instructions.measured(1, packing)}
        for packing in (Packing.FLOAT32, Packing.FLOAT16)
    )
    name = "conv3x3_4_256_256"
    # 256 · 256 · 9 weights, two bytes fewer each, but for the scales.
    assert full[name] - half[name] == 2 * 256 * 256 * 9 - 4 * 256


# ---- the program


@needs_library
def test_a_profile_adds_up(setup: Setup) -> None:
    runner = program.captured(setup)
    found = profile_cpu.profiled(runner, 3, 1e12)
    assert json.loads(json.dumps(found)) == found
    assert len(found["instructions"]) == len(runner.code)
    assert all(row["ms"] >= 0 for row in found["instructions"])
    for part in ("kinds", "layers"):
        assert sum(row["share"] for row in found[part]) == pytest.approx(1)
        assert sum(row["ms"] for row in found[part]) == pytest.approx(found["step_ms"])
        assert sum(row["count"] for row in found[part]) == len(runner.code)
    assert found["executed_flop"] == work.executed(runner.code) > 0
    kinds = {row["kind"]: row for row in found["kinds"]}
    assert {"Conv3x3", "Convolution", "Attention", "Step", "Layout"} <= set(kinds)
    outside = kinds["Step"]["share"] + kinds["Layout"]["share"]
    assert found["share_outside_of_the_network"] == pytest.approx(outside)
    assert "| Conv3x3 | 28×28 32→32 norm silu" in profile_cpu.table(found)
    lost = sum(row["lost_ms"] for row in found["layers"])
    assert lost == pytest.approx(found["step_ms"] - 1e3 * found["executed_flop"] / 1e12)
    assert len(profile_cpu.lost_table(found).splitlines()) == 2 + profile_cpu.MOST_LOST


@needs_library
def test_chains_of_ours_and_diffusers_are_the_same_loop(small: Setup) -> None:
    """Others draw other noise, but all end in images of the same kind."""
    rivals = [loop(small, fakes.right(small), 4) for loop in chain.LOOPS.values()]
    for draw in [chain.ours(small, 4), *rivals]:
        marks: list[int] = []
        images = draw(lambda marks=marks: marks.append(1))
        assert len(marks) >= 2
        assert images.shape == (3, 3, 8, 8)
        assert images.isfinite().all() and images.abs().max() <= 1


@pytest.mark.parametrize("name", ["variance", "clip"])
def test_the_cheapest_loop_is_the_definitions(small: Setup, tmp_path: Path, name: str) -> None:
    """As GaussianDiffusion.p_step walks with the same noise; clip: without one."""
    unet, diffusion = fastddpm.from_pretrained(small.folder)
    other: dict[str, Any] = {"variance": "fixed_large"} if name == "variance" else {"clip": None}
    diffusion = replace(diffusion, **other)
    fastddpm.save_pretrained(tmp_path / "other", unet, diffusion)
    setup, steps = replace(small, folder=tmp_path / "other"), 5
    images = chain.cheapest(setup, fakes.right(setup), steps)(lambda: None)
    respaced = diffusion.respace(timesteps.linspace(diffusion.num_steps, steps))
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(3, 3, 8, 8).normal_(generator=generator)
    with torch.no_grad():
        for step in reversed(range(steps)):
            t = torch.full((3,), step)
            output = unet(x, respaced.model_timesteps(t))
            noise = torch.empty_like(x).normal_(generator=generator) if step else x
            x = respaced.p_step(output, x, t, noise)
    torch.testing.assert_close(images, x, rtol=1e-4, atol=1e-5)


@needs_library
def test_chains_take_turns(small: Setup) -> None:
    ours = contenders.all_contenders()[0]
    given = [ours, contender("rival"), contender("c", fakes.crashing)]
    found = chain.measured(small, given, 2, 1, "wall", steady())
    assert list(found["step_ms"]) == [contenders.OURS, "rival"]
    assert list(found["times_faster_than"][contenders.OURS]) == ["rival"]
    assert list(found["absent"]) == ["c"] and found["best_rival"] == "rival"
    assert found["settings"]["rival"] == "a setting"
    assert "| rival |" in compare_cpu.step_table("a step", found)


def test_figures_of_a_step() -> None:
    times = {contenders.OURS: [8.0, 8.0], "slow": [24.0, 24.0], "fast": [16.0, 16.0]}
    found = chain.figures(times, 4, [contenders.OURS])
    assert found["step_ms"][contenders.OURS]["median"] == 2
    faster = found["times_faster_than"][contenders.OURS]
    assert {name: ratio["median"] for name, ratio in faster.items()} == {"slow": 3, "fast": 2}
    assert found["best_rival"] == "fast" and found["steps"] == 4


@needs_library
def test_an_end_of_our_chain_is_an_error(small: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = contenders.all_contenders()[0]
    ended = Rounds({}, {contenders.OURS: "SIGSEGV"}, {})
    monkeypatch.setattr(chain, "interleaved", lambda *given: ended)
    with pytest.raises(Ended, match="fastddpm: SIGSEGV"):
        chain.measured(small, [ours], 2, 1, "wall", steady())


# ---- the machine


def test_the_peak_is_a_ceiling(tmp_path: Path) -> None:
    try:
        measured = peak.built(tmp_path, "baseline", 2)()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert measured.flop_per_second > 1e8
    assert 0 < measured.processor_share < 1.5


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        peak.built(tmp_path, "baseline", 1)


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="needs /proc")
def test_memory_of_a_process_of_its_own(setup: Setup) -> None:
    """Its parent's memory, held here, must not show in it."""
    held = torch.ones(1 << 28)  # 1 GiB
    own = next(one for one in contenders.all_contenders() if one.label.startswith("torch (network"))
    found = memory.taken(setup, own)
    assert 0 < found["resting"] <= found["peak"] < held.numel() * 4
    with pytest.raises(Ended, match="No module named 'rival'"):
        memory.taken(setup, contender("nobody", fakes.missing))


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="needs /proc")
def test_peak_memory_is_above_what_rests(setup: Setup) -> None:
    found = memory.measured(setup, contender("greedy", fakes.greedy))
    assert found["peak"] - found["resting"] > 1 << 27


# ---- the command


def test_parts_get_the_same_options() -> None:
    parser = compare_cpu._parser()
    words = "--batch 1,4 --threads 3 --rounds 5 --steps 7 --clock processor --isa avx2 --only MNN,x"
    words += " --what step"
    given = parser.parse_args(words.split())
    own = compare_cpu._command(given)("mnist_4", Path("piece"))[3:]
    again = parser.parse_args(own)
    assert (again.part, again.piece) == ("mnist_4", Path("piece"))
    same = ("threads", "rounds", "steps", "chain_rounds", "clock", "isa", "only", "what")
    assert all(getattr(again, name) == getattr(given, name) for name in same)


def test_what_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    parser = compare_cpu._parser()
    assert parser.parse_args([]).what == ["network", "step"]
    assert parser.parse_args(["--what", "step"]).what == ["step"]
    for other in ("steps", ""):
        with pytest.raises(SystemExit):
            parser.parse_args(["--what", other])
        assert f"expected some of network,step, got '{other}'" in capsys.readouterr().err


def test_who_is_wanted() -> None:
    given = compare_cpu._parser().parse_args(["--only", "MNN", "--isa", "avx2"])
    wanted = {
        one.name for one in contenders.all_contenders() if compare_cpu._wanted(one.name, given)
    }
    assert wanted == {contenders.OURS, f"{contenders.OURS} float16", "MNN"}
    given.only = []
    assert not compare_cpu._wanted("ONNX Runtime", given) and compare_cpu._wanted("MNN", given)


@needs_library
def test_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sections of a part, with ours alone."""
    monkeypatch.setattr(compare_cpu, "MEMORY_BATCH", 2)
    monkeypatch.setattr(memory, "taken", lambda setup, contender: {"peak": 1})
    line = "--only none --threads 1 --rounds 1 --steps 2 --chain-rounds 1"
    given = compare_cpu._parser().parse_args(line.split())
    found = dict(compare_cpu.measured(given, "mnist", 2))
    assert list(found) == ["absent", "settings_ms", "calls", "step", "program", "memory"]
    assert set(found["calls"]["contenders"]) == {contenders.OURS, f"{contenders.OURS} float16"}
    assert found["calls"]["contenders"][contenders.OURS]["relative_error"] < 1e-5
    assert found["calls"]["best_rival"] is None
    assert found["program"]["executed_flop"] > 0
    assert json.loads(json.dumps(found)) == found


def test_a_wrong_output_leaves_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = contender(contenders.OURS, factor=1.1)
    monkeypatch.setattr(contenders, "all_contenders", lambda: [wrong])
    threads = torch.get_num_threads()
    line = f"--part mnist_1 --piece {tmp_path / 'piece'} --threads 1"
    with pytest.raises(measure.Disagreement):
        compare_cpu.main(line.split())
    torch.set_num_threads(threads)
    assert not (tmp_path / "piece").exists()
