"""fastddpm doctor --parity: its comparisons pass, can fail, and say what they lack."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastddpm import parity, selfcheck
from fastddpm.cli import app
from fastddpm.parity import diffusers as with_diffusers
from fastddpm.parity import openai as with_openai
from fastddpm.selfcheck import Check, Outcome

needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed"
)
DIFFUSERS = (
    with_diffusers.networks,
    with_diffusers.ddpm,
    with_diffusers.ddim,
    with_diffusers.noise,
    with_diffusers.pipeline,
    with_diffusers.checkpoint,
)


@needs_diffusers
@pytest.mark.parametrize("compare", DIFFUSERS, ids=lambda compare: compare.__name__)
def test_we_compute_what_diffusers_does(compare: Callable[[], Outcome]) -> None:
    outcome = compare()
    assert outcome.passed, outcome.says


@pytest.mark.parametrize("check", with_openai.checks(), ids=lambda check: check.name)
def test_we_compute_what_openai_does(check: Check) -> None:
    outcome = selfcheck.run(check)
    if outcome.passed is None:
        pytest.skip(outcome.says)
    assert outcome.passed, outcome.says


# ---- each of them can fail


@needs_diffusers
@pytest.mark.parametrize("compare", [with_diffusers.networks, with_diffusers.pipeline])
def test_another_network_is_found(
    compare: Callable[[], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_diffusers.accelerate

    def of_others(given: Any) -> Any:
        given = copy.deepcopy(given)
        with torch.no_grad():
            next(getattr(given, "unet", given).parameters()).mul_(1.001)
        return own(given)

    monkeypatch.setattr(with_diffusers, "accelerate", of_others)
    monkeypatch.setattr(with_diffusers, "LEVELS", 1e-4)
    assert compare().passed is False


@needs_diffusers
@pytest.mark.parametrize(
    "compare, name",
    [(with_diffusers.ddpm, "ancestral_rows"), (with_diffusers.ddim, "ddim_rows")],
)
def test_other_steps_are_found(
    compare: Callable[[], Outcome], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastddpm.integrations import schedulers

    own = getattr(schedulers, name)
    monkeypatch.setattr(schedulers, name, lambda *a, **k: own(*a, **k) * (1 + 1e-4))
    assert compare().passed is False


@needs_diffusers
def test_another_draw_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastddpm.ops import torch_normal

    own = torch_normal.randn

    def randn(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        own((16,), generator)
        return own(shape, generator)

    monkeypatch.setattr(torch_normal, "randn", randn)
    assert with_diffusers.noise().passed is False


@needs_diffusers
def test_another_bit_of_a_weight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    own = with_diffusers.save_pretrained

    def save_pretrained(folder: Any, unet: torch.nn.Module, diffusion: Any) -> None:
        own(folder, unet, diffusion)
        with torch.no_grad():
            next(unet.parameters()).view(-1)[:1].view(torch.int32).add_(1)

    monkeypatch.setattr(with_diffusers, "save_pretrained", save_pretrained)
    outcome = with_diffusers.checkpoint()
    assert outcome.passed is False and outcome.says.startswith("1 of ")


# ---- what is not there, and the command


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcomes = [selfcheck.run(check) for check in parity.all_checks()]
    assert len(outcomes) == len(DIFFUSERS) + 5
    assert all(outcome.passed is None for outcome in outcomes)
    assert outcomes[0].says == "diffusers is not installed"
    assert outcomes[-1].says == "neither improved_diffusion nor guided_diffusion can be imported"


@pytest.mark.parametrize("passed, code", [(True, 0), (None, 0), (False, 1)])
def test_the_command(passed: bool | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome("UNet2DModel, diffusers", passed, "3 results", 0.5, 1.0)
    check = Check(outcome.name, lambda: outcome)
    monkeypatch.setattr(parity, "all_checks", lambda: [check])
    result = CliRunner().invoke(app, ["doctor", "--parity"])
    mark = {True: "ok", None: "not run", False: "FAILED"}[passed]
    assert result.exit_code == code, result.output
    line = f"{outcome.name}  {mark}: 3 results; largest difference 0.5, bound 1"
    assert result.output.splitlines()[-1] == line


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.output.startswith("fastddpm 0.")
