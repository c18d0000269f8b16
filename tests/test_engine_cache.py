"""Prepared runners kept for later calls."""

from __future__ import annotations

from typing import Any

import pytest

from fastddpm.engine import RunnerCache


class Made:
    """A factory that counts: the k-th thing made for a key is (key, k)."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def __call__(self, key: Any) -> Any:
        self.made.append(key)
        return key, self.made.count(key)


def borrow(cache: RunnerCache[Any], key: Any, make: Made) -> Any:
    with cache.borrow(key, lambda: make(key)) as runner:
        return runner


def test_the_least_recently_used_goes() -> None:
    cache, make = RunnerCache[Any](2), Made()
    for key in ("a", "b", "a", "c", "a", "b"):
        borrow(cache, key, make)
    assert make.made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    assert "a" in cache and "c" not in cache


def test_who_asks_meanwhile_gets_another_one() -> None:
    cache, make = RunnerCache[Any](2), Made()
    borrow(cache, "a", make)
    with cache.borrow("a", lambda: make("a")) as first:
        with cache.borrow("a", lambda: make("a")) as second:
            assert (first, second) == (("a", 1), ("a", 2))
        assert borrow(cache, "a", make) == second
    assert len(cache) == 1


def test_a_runner_comes_back_after_an_error() -> None:
    cache, make = RunnerCache[Any](1), Made()
    with pytest.raises(KeyError), cache.borrow("a", lambda: make("a")):
        raise KeyError
    assert borrow(cache, "a", make) == ("a", 1)


def test_what_was_borrowed_before_a_clear_does_not_come_back() -> None:
    cache, make = RunnerCache[Any](2), Made()
    with cache.borrow("a", lambda: make("a")):
        cache.clear()
    assert len(cache) == 0
    assert borrow(cache, "a", make) == ("a", 2)


def test_a_cache_holds_at_least_one() -> None:
    with pytest.raises(ValueError, match="capacity=0"):
        RunnerCache(0)
