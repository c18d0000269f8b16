"""`pytest benchmarks`: it runs, its contenders take turns, and its JSON becomes tables."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# benchmarks/ is no part of the package. Appended, so that nothing installed is shadowed.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import origin, report
from benchmarks.side_by_side import CLOCK, OURS, side_by_side

# One of each kind of comparison: an op, a scheduler, a checkpoint, workers, fresh processes.
SELECTED = "torchs_normal or ddpm_last or (load and mnist) or (pipeline and mnist_1) or openai"
KIND = {"DDPMPipeline", "Scheduler step", "Checkpoint load", "Ops"}


class FakeBenchmark:
    """pedantic as pytest-benchmark has it, by the clock of the turns."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def pedantic(
        self, target: Callable[[], Any], setup: Callable[[], Any], rounds: int, iterations: int
    ) -> None:
        for _ in range(rounds):
            assert setup() is None
            begin = CLOCK()
            target()
            self.seconds.append(CLOCK() - begin)


def test_contenders_take_turns() -> None:
    order, benchmark = [], FakeBenchmark()

    def turn(name: str, times: list[float]) -> Callable[[], float]:
        def take() -> float:
            order.append(name)
            return times[sum(one == name for one in order) - 1]

        return take

    turns = {OURS: turn(OURS, [2.0, 1.0, 4.0]), "rival": turn("rival", [4.0, 4.0, 4.0])}
    found = side_by_side(benchmark, turns, 3)
    assert order == ["rival", OURS] * 3
    # Round by round: 2, 4 and 1.
    assert found["times_faster_than"]["rival"]["median"] == 2
    assert found["milliseconds"][OURS]["samples"] == [2.0, 1.0, 4.0]
    assert benchmark.seconds == pytest.approx([2e-3, 1e-3, 4e-3])


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a few of its comparisons, one round of each."""
    pytest.importorskip("diffusers")
    file = tmp_path_factory.mktemp("suite") / "found.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-k", SELECTED]
    command += ["--rounds", "1", "--steps", "2", "--threads", "1", "-q", "-p", "no:cacheprovider"]
    command += ["--benchmark-json", str(file)]
    ran = subprocess.run(command, cwd=origin.REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return file


@pytest.mark.slow
def test_the_suite_runs(suite: Path) -> None:
    found = json.loads(suite.read_text())
    by_subject = {one["extra_info"]["subject"]: one for one in found["benchmarks"]}
    assert set(by_subject) >= KIND
    for one in found["benchmarks"]:
        facts = one["extra_info"]
        assert facts["threads"] == 1 and facts["batch"] >= 1
        for rival, ratio in facts["times_faster_than"].items():
            own, theirs = (facts["milliseconds"][name]["median"] for name in (OURS, rival))
            assert ratio["median"] == pytest.approx(theirs / own)
        # pytest-benchmark's own table shows a call's time.
        assert one["stats"]["median"] == pytest.approx(facts["milliseconds"][OURS]["median"] / 1e3)
    assert platform.node() not in suite.read_text()


@pytest.mark.slow
def test_its_json_becomes_tables_and_a_plot(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, plot = tmp_path / "README.md", tmp_path / "plot.svg"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    arguments = [str(suite), "--plot", str(plot), "--readme", str(readme)]
    assert report.main(arguments) == 0
    first = readme.read_text(), plot.read_bytes()
    assert "| DDPMPipeline | × diffusers |" in first[0] and "old" not in first[0]
    assert first[0].startswith("before\n") and first[0].endswith("\nafter\n")
    assert "| DDPMPipeline |" in capsys.readouterr().out
    # The same again, byte for byte.
    report.main(arguments)
    assert (readme.read_text(), plot.read_bytes()) == first


# ---- the report


def row(subject: str, case: str, ratio: float, rival: str = "diffusers") -> dict[str, Any]:
    spread = {"median": ratio, "low": ratio - 0.5, "high": ratio + 0.25}
    own = {OURS: {"median": 0.0625}, rival: {"median": 0.0625 * ratio}}
    return {
        "subject": subject,
        "case": case,
        "batch": 16,
        "threads": 2,
        "milliseconds": own,
        "times_faster_than": {rival: spread},
    }


def written(file: Path, *rows: dict[str, Any]) -> Path:
    machine = {"processor": "P", "cores": 2, "isa": "avx2", "load_average_before": 0.5}
    place = {"commit": 40 * "a", "uncommitted_changes": True, "versions": {"torch": "2", "x": None}}
    found = {"machine_info": machine, "origin": place}
    file.write_text(json.dumps(found | {"benchmarks": [{"extra_info": one} for one in rows]}))
    return file


def test_a_table_has_ratios_first_and_their_spread(tmp_path: Path) -> None:
    file = written(
        tmp_path / "a.json",
        row("Scheduler step", "ddpm", 4.0),
        row("Scheduler step", "openai", 8.0, "improved-diffusion"),
    )
    rows, places = report.read([file])
    assert report.tables(rows).splitlines() == [
        "| Scheduler step | × diffusers | × improved-diffusion | fastddpm | batch | threads |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| ddpm | **4.00** (3.50 to 4.25) |  | 62.5 µs | 16 | 2 |",
        "| openai |  | **8.00** (7.50 to 8.25) | 62.5 µs | 16 | 2 |",
    ]
    source = report.section(rows, places).splitlines()[-1]
    assert source == (
        "P, 2 cores, avx2; torch 2; commit aaaaaaaaaa with changes; load average before: 0.5."
    )


def test_the_last_file_counts_and_subjects_have_their_order(tmp_path: Path) -> None:
    old = written(tmp_path / "a.json", row("Ops", "normal", 1.0), row("DDPMPipeline", "x", 2.0))
    new = written(tmp_path / "b.json", row("Ops", "normal", 3.0))
    rows, _ = report.read([old, new])
    assert [(one["subject"], one["times_faster_than"]["diffusers"]["median"]) for one in rows] == [
        ("DDPMPipeline", 2.0),
        ("Ops", 3.0),
    ]


def test_many_rows_are_one_line_in_the_readme(tmp_path: Path) -> None:
    many = [row("Layers", f"layer {k}", 1.0 + k, "torch") for k in range(report.MANY + 1)]
    rows, places = report.read([written(tmp_path / "a.json", *many)])
    assert report.section(rows, places).splitlines()[0] == (
        "Layers: 7.0 times faster than torch in the median of 13, from 1.0 (layer 0) to "
        "13.0 (layer 12)."
    )
    assert "layer 5" in report.tables(rows)


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="expected <!-- benchmarks: begin -->"):
        report.into("no markers", "x")
    other = tmp_path / "other.json"
    other.write_text('{"benchmarks": []}')
    with pytest.raises(ValueError, match=r"other\.json: expected the JSON of `pytest benchmarks`"):
        report.read([other])
    for file in (other, tmp_path / "missing.json"):
        with pytest.raises(SystemExit) as ended:
            report.main([str(file)])
        assert ended.value.code == 1
        assert file.name in capsys.readouterr().err
