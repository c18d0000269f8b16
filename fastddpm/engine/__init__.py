"""Engines: run one step many times. ``prepare(step, plan) -> Runner``; see engine/plan.py for the
contract."""

from fastddpm.engine.plan import Plan, Prepare, Runner, Step
from fastddpm.engine.selection import ENGINES, Selection, select

__all__ = ["ENGINES", "Plan", "Prepare", "Runner", "Selection", "Step", "select"]
