"""Spacings against their definitions, diffusers, and for any T and n."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastddpm import timesteps


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    T = draw(st.integers(1, 2000))
    return T, draw(st.integers(1, T))


@given(counts(), st.sampled_from(sorted(timesteps.SPACINGS)))
def test_spacings_are_n_distinct_ascending_steps_of_the_chain(
    chosen: tuple[int, int], name: str
) -> None:
    T, n = chosen
    steps = timesteps.spaced(name, T, n)
    assert steps.dtype == torch.int64 and steps.shape == (n,)
    assert steps[0] >= 0 and steps[-1] < T
    assert (steps.diff() > 0).all()
    if name == "trailing":
        assert steps[-1] == T - 1
    if name == "linspace" and n > 1:
        assert steps[0] == 0 and steps[-1] == T - 1


@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("T", [1000, 37])
def test_spacings_equal_diffusers(name: str, T: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(T, timestep_spacing=name)
    for n in [n for n in range(1, T + 1) if n < 40 or n % 37 == 0]:
        scheduler.set_timesteps(n)
        expected = scheduler.timesteps[scheduler.timesteps >= 0].flip(0)
        assert timesteps.spaced(name, T, n).tolist() == expected.tolist()[-n:], n


def test_leading_offset_shifts() -> None:
    assert timesteps.leading(10, 3, offset=1).tolist() == [1, 4, 7]
    with pytest.raises(ValueError, match="offset"):
        timesteps.leading(10, 3, offset=-1)


def test_quad_is_ddims_where_that_is_distinct() -> None:
    # (linspace(0, √800, 10))² truncated
    assert timesteps.quad(1000, 10).tolist() == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]


@pytest.mark.parametrize(
    ("T", "sections", "expected"),
    [
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "ddim10", list(range(10))),
        (10, "ddim1", [0]),
        (10, "4", [0, 3, 6, 9]),
        (10, "1,1", [0, 5]),
        (11, [2, 3], [0, 5, 6, 8, 10]),
        (10, [0, 2], [5, 9]),
    ],
)
def test_openai_sections(T: int, sections: str | list[int], expected: list[int]) -> None:
    assert timesteps.openai_sections(T, sections).tolist() == expected


@given(st.integers(1, 300), st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_openai_sections_give_their_counts_or_refuse(T: int, sections: list[int]) -> None:
    smaller, larger = divmod(T, len(sections))
    fits = all(c <= smaller + (i < larger) for i, c in enumerate(sections))
    if fits and sum(sections):
        steps = timesteps.openai_sections(T, sections)
        assert len(steps) == sum(sections) and (steps.diff() > 0).all() and steps[-1] < T
    else:
        with pytest.raises(ValueError):
            timesteps.openai_sections(T, sections)


@given(counts())
def test_a_section_is_evenly_spaced_from_end_to_end(chosen: tuple[int, int]) -> None:
    T, n = chosen
    steps = timesteps.openai_sections(T, [n])
    even = torch.linspace(0, T - 1 if n > 1 else 0, n, dtype=torch.float64)
    assert (steps - even).abs().max() <= 0.5 + 1e-9
    assert steps[0] == 0 and (n == 1 or steps[-1] == T - 1)


@given(st.integers(1, 400), st.integers(1, 400))
def test_ddim_strides_exist_or_are_refused(T: int, n: int) -> None:
    strides = [k for k in range(1, T + 1) if len(range(0, T, k)) == n]
    if strides:
        expected = list(range(0, T, strides[0]))
        assert timesteps.openai_sections(T, f"ddim{n}").tolist() == expected
    else:
        with pytest.raises(ValueError):
            timesteps.openai_sections(T, f"ddim{n}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timesteps.spaced("cubic", 10, 5), "leading, linspace, trailing, quad"),
        (lambda: timesteps.trailing(10, 11), "between 1 and T = 10"),
        (lambda: timesteps.linspace(10, 0), "between 1 and T = 10"),
        (lambda: timesteps.openai_sections(1000, "ddim300"), "nearest: ddim250, ddim334"),
        (lambda: timesteps.openai_sections(30, "20,5"), "holds 15 steps"),
        (lambda: timesteps.openai_sections(30, "fast"), "'fast'"),
        (lambda: timesteps.openai_sections(30, "ddim"), "'ddim'"),
        (lambda: timesteps.openai_sections(30, []), "section counts"),
    ],
)
def test_mistakes_say_what_was_expected(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("steps", "spacing", "expected"),
    [
        (3, "linspace", [0, 50, 99]),
        (np.int64(2), "trailing", [49, 99]),
        (4, "leading", [0, 25, 50, 75]),
        ("ddim20", "quad", list(range(0, 100, 5))),
        ("1,2", "linspace", [0, 50, 99]),
        ([70, 3, 99], "linspace", [3, 70, 99]),
        (range(0, 100, 40), "linspace", [0, 40, 80]),
        (torch.tensor([5, 4]), "linspace", [4, 5]),
        (np.array([8]), "linspace", [8]),
    ],
)
def test_a_chain_is_told_in_any_way(steps: Any, spacing: str, expected: list[int]) -> None:
    chosen = timesteps.chosen(100, steps, spacing)
    assert chosen.dtype == torch.int64 and chosen.tolist() == expected


@pytest.mark.parametrize("spacing", ["cubic", [], None, 3])
def test_spacings_that_are_none(spacing: Any) -> None:
    with pytest.raises(ValueError, match="expected a spacing in leading, linspace, trailing, quad"):
        timesteps.chosen(100, 10, spacing)


LISTS = ([], [1, 1], [100], [-1], [0.5], [[1, 2]], [True], [None, 1], ["1"])


@pytest.mark.parametrize("steps", [*LISTS, True, 5.0, torch.tensor(5), None])
def test_lists_that_are_no_chain(steps: Any) -> None:
    with pytest.raises(ValueError, match="or a list of different timesteps"):
        timesteps.chosen(100, steps)
