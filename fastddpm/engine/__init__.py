"""Engines: run one step many times. ``prepare(step, plan) -> Runner``; see engine/plan.py for the
contract."""

from fastddpm.engine.cache import RunnerCache
from fastddpm.engine.cpu.options import CpuOptions
from fastddpm.engine.plan import CannotPrepare, Plan, Prepare, Runner, Step
from fastddpm.engine.precision import precision
from fastddpm.engine.selection import ENGINES, Selection, select
from fastddpm.engine.weights import Fingerprint

__all__ = [
    "ENGINES",
    "CannotPrepare",
    "CpuOptions",
    "Fingerprint",
    "Plan",
    "Prepare",
    "Runner",
    "RunnerCache",
    "Selection",
    "Step",
    "precision",
    "select",
]
