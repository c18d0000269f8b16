"""The suite's options, what its JSON says of the machine, and the fixture that compares.

    pytest benchmarks --benchmark-only [--benchmark-json FILE]

Every test is one comparison: contenders that take turns (side_by_side.py), checked against each
other before they are timed. Its figures go to extra_info, of which report.py makes tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from benchmarks import origin
from benchmarks.cpu import machine, networks
from benchmarks.side_by_side import CLOCK, Turn, side_by_side


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastddpm's benchmarks")
    group.addoption("--rounds", type=int, default=5, help="turns of each contender (5)")
    group.addoption(
        "--threads", type=int, default=torch.get_num_threads(), help="of each (torch's number)"
    )
    group.addoption("--steps", type=int, default=10, help="of each chain, of its 1000 (10)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


# ---- what the JSON says


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info.clear()
    machine_info |= machine.described(config.getoption("threads"))


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    for key in commit_info.keys() - {"id", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json["origin"] = origin.described()
    for one in output_json["benchmarks"]:
        # What extra_info has, too.
        one["stats"].pop("data", None)
        one["params"] = None
        one["options"].pop("timer", None)


# ---- fixtures


class Folders(dict[str, Path]):
    """Written when they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, name: str) -> Path:
        self[name] = self._root / name
        networks.write(name, self[name])
        return self[name]


class Compare(Protocol):
    def __call__(self, subject: str, case: str, turns: dict[str, Turn], **facts: Any) -> None: ...


@pytest.fixture
def threads(pytestconfig: pytest.Config) -> Iterator[int]:
    """Of every contender."""
    before, asked = torch.get_num_threads(), pytestconfig.getoption("threads")
    torch.set_num_threads(asked)
    yield asked
    torch.set_num_threads(before)


@pytest.fixture
def steps(pytestconfig: pytest.Config) -> int:
    """Of a chain."""
    count: int = pytestconfig.getoption("steps")
    return count


@pytest.fixture
def compare(benchmark: Any, pytestconfig: pytest.Config, threads: int) -> Compare:
    """compare(subject, case, turns, **facts): runs the rounds and keeps what they give. subject:
    the title of its table; case: of its row."""

    def run(subject: str, case: str, turns: dict[str, Turn], **facts: Any) -> None:
        benchmark.group = subject
        # Before the rounds: pytest-benchmark reads it when they end.
        benchmark.extra_info |= {"subject": subject, "case": case, "threads": threads, **facts}
        benchmark.extra_info |= side_by_side(benchmark, turns, pytestconfig.getoption("rounds"))

    return run


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Holds the workers of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The networks that are compared, by name, in diffusers' layout."""
    return Folders(tmp_path_factory.mktemp("networks"))
