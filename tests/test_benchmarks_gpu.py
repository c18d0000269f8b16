"""benchmarks.gpu without a GPU: statistics, parts, options, counts, and what it would run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

import fake_contenders as fakes

from benchmarks import parts, report, timing
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import contenders, convolutions, kernels, profiling, throughput
from benchmarks.gpu.options import PARTS, Options
from benchmarks.gpu.traffic import Traffic, flop_of

# UNet2DModel's arguments for a network of two levels on images of 8×8.
SMALL = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}


@pytest.fixture
def rival() -> nn.Module:
    return contenders.rival_network(config=SMALL)


# ---- the command


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"{command.NO_GPU}\n"


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    given = command._parser().parse_args(["--batch", "1,16", "--parts", "kernels,ceilings"])
    assert (given.batch, given.parts) == ((1, 16), ["kernels", "ceilings"])
    with pytest.raises(SystemExit):
        command._parser().parse_args(["--parts", "kernel"])
    assert "expected some of correctness" in capsys.readouterr().err


def test_a_part_gets_the_same_options() -> None:
    given = command._parser().parse_args(["--quick", "--batch", "4", "--dtype", "tf32,bfloat16"])
    own = command._command(given)("kernels", Path("piece"))[3:]
    again = command._parser().parse_args(own)
    assert (again.quick, again.batch, again.dtype) == (True, (4,), ("tf32", "bfloat16"))
    assert (again.parts, again.piece) == (["kernels"], Path("piece"))


def test_options() -> None:
    assert Options.of().batches == (1, 16, 64, 256)
    assert Options.of(quick=True).batches == (16,)
    assert Options.of(quick=True, batches=(2,)).batches == (2,)
    assert json.loads(json.dumps(Options.of().as_dict()))["dtypes"] == [
        *("float32", "tf32", "bfloat16")
    ]
    with pytest.raises(ValueError, match="got fp8"):
        Options.of(dtypes=("fp8",))
    with pytest.raises(ValueError, match="at least 1"):
        Options.of(batches=(0,))


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_there(name: str) -> None:
    assert isinstance(command._part(name, Options()), Iterator)


def test_a_result_is_sound_if_all_ran_and_was_correct() -> None:
    def result(**correctness: Any) -> dict[str, Any]:
        return {"parts": {"correctness": correctness, "kernels": {"found": {}}}}

    assert command.sound(result(found={"passed": True}))
    assert not command.sound(result(found={"passed": False}))
    assert not command.sound(result(found={"passed": True}, error="exit code 1"))


# ---- parts


def test_a_failing_part_leaves_what_it_had_found(tmp_path: Path) -> None:
    def part() -> parts.Part:
        yield "first", 1
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        parts.write_piece(part(), tmp_path / "piece")
    assert json.loads((tmp_path / "piece").read_text()) == {"first": 1}


def script(text: str) -> Callable[[str, Path], list[str]]:
    """The command of a part: Python code that may write to ``piece`` and knows its ``part``."""
    start = "import json, os, pathlib, sys, time; part = sys.argv[1]; "
    start += "piece = pathlib.Path(sys.argv[2]); found = lambda f: piece.write_text(json.dumps(f));"
    return lambda part, piece: [sys.executable, "-c", start + text, part, str(piece)]


def test_parts_are_written_as_they_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    code = (
        "found({'own': part}); print('hello from', part, flush=True); "
        "os._exit(3 if part == 'bad' else 0)"
    )
    result = parts.run_all(["good", "bad", "last"], script(code), out, {"device": "none"}, 60)
    assert json.loads(out.read_text()) == result and result["device"] == "none"
    for part in ("good", "bad", "last"):
        assert result["parts"][part]["found"] == {"own": part}
    assert [part for part, got in result["parts"].items() if "error" in got] == ["bad"]
    assert result["parts"]["bad"]["error"] == "exit code 3\nhello from bad"
    assert "hello from good" in capfd.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    code = "found({'early': 1}); time.sleep(60)"
    result = parts.run_all(["slow", "next"], script(code), tmp_path / "result.json", {}, 3)
    assert result["parts"]["slow"]["error"].startswith("stopped after")
    assert result["parts"]["slow"]["found"] == {"early": 1}
    assert result["parts"]["next"] == {"error": "no time was left for it"}


def test_origin() -> None:
    found = json.loads(json.dumps(report.origin()))
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])


# ---- statistics


def test_contenders_take_turns() -> None:
    order: list[str] = []
    clock = iter(range(100))

    def timer(call: Callable[[], object]) -> float:
        call()
        return float(next(clock))

    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    assert timing.interleaved(calls, 3, timer) == {"a": [0, 2, 4], "b": [1, 3, 5]}
    assert order == ["a", "b"] * 3


def test_summary() -> None:
    found = timing.summary([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found["low"], found["median"], found["high"]) == (2, 3, 4)
    assert timing.summary([7.0])["low"] == 7
    with pytest.raises(ValueError, match="at least one"):
        timing.summary([])


def test_ratios_are_of_the_same_round() -> None:
    # Both slow down together: the ratio is 2 in every round.
    assert timing.ratio([1.0, 10.0, 2.0], [2.0, 20.0, 4.0])["samples"] == [2, 2, 2]
    with pytest.raises(ValueError, match="2 and 1"):
        timing.ratio([1.0, 2.0], [1.0])


def test_speed_and_comparison() -> None:
    assert throughput.speed([2.0, 4.0, 3.0], 16)["images_per_second"] == pytest.approx(16 / 3)
    eager, slow, fast = contenders.EAGER, "compiled slow", "compiled fast"
    times = {contenders.OURS: [1.0] * 3, eager: [9.0] * 3, slow: [3.0] * 3, fast: [2.0] * 3}
    found = throughput.compared(times)
    assert found["best_compiled"] == fast
    assert {name: r["median"] for name, r in found["times_faster_than"].items()} == {
        **{eager: 9, slow: 3, fast: 2}
    }
    assert throughput.compared({contenders.OURS: [1.0]})["best_compiled"] is None


def test_a_profile_is_counted_by_step() -> None:
    seen = [("gemm", 10.0), ("gemm", 30.0), ("conv", 5.0), ("Memcpy DtoD", 1.0)] * 2
    found = profiling.counted(seen, steps=2)
    assert (found["kernels_per_step"], found["copies_per_step"]) == (3, 1)
    assert found["gpu_ms_per_step"] == pytest.approx(0.046)
    assert found["longest_kernels_us_per_step"]["gemm"] == 40


# ---- what is counted in bytes and operations


def test_traffic_is_inputs_and_results() -> None:
    a, b = torch.ones(8, 4), torch.ones(4, 16)
    with Traffic() as traffic:
        (a @ b).t().reshape(16, 8)[:2]
    # The product reads 32 + 64 and writes 128; a transposed reshape to 16×8 is a view.
    assert traffic.bytes == 4 * (32 + 64 + 128)
    with Traffic() as traffic:
        torch.add(a, torch.ones(1, 4).expand(8, 4))
        torch.empty(100)
    assert traffic.bytes == 4 * (4 + 32 + 4 + 32)  # The ones are written, too.


def test_flop_of_a_convolution() -> None:
    x, layer = torch.zeros(2, 3, 8, 8), nn.Conv2d(3, 5, 3, padding=1)
    assert flop_of(lambda: layer(x)) == 2 * 2 * 5 * 64 * 3 * 9


def test_work_grows_with_the_batch(rival: nn.Module) -> None:
    flop, moved = throughput.work(rival, 2, "float32", "cpu")
    flop_4, moved_4 = throughput.work(rival, 4, "float32", "cpu")
    assert flop_4 == 2 * flop
    # Weights are read once for all.
    weights = 4 * sum(parameter.numel() for parameter in rival.parameters())
    assert moved < moved_4 < 2 * moved
    assert 2 * moved - moved_4 <= weights


def test_shares(rival: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "work", lambda *_: (10**9, 10**8))
    limits = {"flop_per_second": 1e12, "bytes_per_second": 1e12}
    found = throughput.shares(rival, 1, "float32", 2.0, limits)
    assert found["share_of_flop_ceiling"] == pytest.approx(0.5)
    assert found["share_of_memory_ceiling"] == pytest.approx(0.05)


# ---- what would run on the GPU


def test_networks_are_the_same(rival: nn.Module) -> None:
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        theirs, own = rival(x, t).sample, contenders.our_network(rival)(x, t)
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        next(contenders.rival_network(config=SMALL).parameters()), next(rival.parameters())
    )


def test_every_contender_draws(rival: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "DEVICE", "cpu")
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    draws = [
        contenders.ours(rival, 2, "float32", 4, engine="reference")[1],
        contenders.eager(rival, 2, "float32", 4),
        contenders.compiled(rival, 2, "bfloat16", 4, "reduce-overhead"),
    ]
    for draw in draws:
        images = draw()
        assert images.shape == (2, 3, 8, 8) and images.isfinite().all()


def test_contenders_are_prepared_side_by_side_and_take_turns() -> None:
    options = Options(dtypes=("float32",), batches=(2, 3), rounds=3, patience=60.0)
    groups = [throughput.Group("float32", batch) for batch in options.batches]
    with throughput.prepared(groups, options, fakes.drawing, fakes.FOLDER) as workers:
        found = [throughput.measured(workers[group], group.batch, 3) for group in groups]
    for figures, batch in zip(found, options.batches, strict=True):
        said = figures["contenders"]
        assert said[contenders.OURS]["step_ms"]["samples"] == [batch] * 3
        assert said[contenders.OURS]["kernels_per_step"] == 9
        assert "no memory" in said[contenders.EAGER]["error"]
        assert "StopIteration" in said[contenders.compiled_name("max-autotune")]["error"]
        best = contenders.compiled_name("reduce-overhead")
        assert figures["best_compiled"] == best and figures["times_faster_than"].keys() == {best}


def test_a_contender_that_takes_too_long_is_given_up() -> None:
    options = Options(dtypes=("float32",), batches=(2,), modes=(), patience=0.1)
    group = throughput.Group("float32", 2)
    with throughput.prepared([group], options, fakes.drawing, fakes.FOLDER) as found:
        figures = throughput.measured(found[group], 2, 3)
    assert figures["contenders"][contenders.OURS] == {"error": "SIGKILL"}
    assert "times_faster_than" not in figures


def test_waves_hold_whole_groups() -> None:
    groups = [throughput.Group("tf32", batch) for batch in (1, 16, 64)]
    assert throughput.waves(groups, Options(workers=9)) == [groups[:2], groups[2:]]
    assert throughput.waves(groups, Options(workers=1)) == [[group] for group in groups]


def test_chains_are_shorter_where_steps_take_long() -> None:
    steps = [contenders.steps_of(contenders.OURS, batch, "bfloat16") for batch in (1, 64, 256)]
    assert steps == [200, 100, 25]
    assert contenders.steps_of(contenders.OURS, 256, "float32") == 25
    assert contenders.steps_of(contenders.EAGER, 1, "float32") == contenders.EAGER_STEPS


@torch.no_grad()
def test_a_layer_is_the_same_convolution_for_both() -> None:
    both = convolutions.calls(2, 4, 32, 16, device="cpu", backend="reference")
    assert both["torch"].bytes == 2 * (32 * 48 + 9 * 32 * 16)
    results = []
    for measured in both.values():
        torch.manual_seed(0)
        results.append(measured.make()())
    assert torch.equal(*results) and results[0].shape == (2, 16, 4, 4)
    assert convolutions.tile_for(1, 32, 128, 128) is not None
    assert convolutions.tile_for(256, 32, 128, 128) is None


def test_kernel_calls_run() -> None:
    measured = kernels.calls(2, 1, device="cpu", backend="reference")
    assert len({one.name for one in measured}) == len(measured) >= 10
    for one in measured:
        assert one.bytes > 0
        one.make()()


def test_sets_of_tensors_outgrow_the_cache() -> None:
    assert kernels.copies(10 << 30, 50 << 20) == 1
    assert kernels.copies(100 << 20, 50 << 20) == 3  # 256 MiB in sets of 100
    assert kernels.copies(0, 0) > 1


def test_a_traffic_counter_is_transparent() -> None:
    def f(x: Tensor) -> Tensor:
        return (x[:, None] * x[None]).sum(0)

    x = torch.randn(5)
    expected = f(x)
    with Traffic():
        assert torch.equal(f(x), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_whole_command_writes_what_became_of_its_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The parent is told that there is a GPU; the part, a process of its own, finds none."""
    properties = SimpleNamespace(name="A GPU", total_memory=1, multi_processor_count=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert command.main(["--quick", "--parts", "ceilings"]) == 1
    written = json.loads((tmp_path / "gpu_a_gpu.json").read_text())
    assert written["device"] == "A GPU" and written["options"]["batches"] == [16]
    assert written["parts"]["ceilings"]["error"] == f"exit code 1\n{command.NO_GPU}"
