"""The rules by op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# rule(emitter, *arguments, **keywords) -> the result's value, or a list of those of all results.
# Tensors among the arguments are values; the others are what torch was given.
Rule = Callable[..., Any]
RULES: dict[torch._ops.OpOverload, Rule] = {}


def rule(*ops: torch._ops.OpOverload) -> Callable[[Rule], Rule]:
    """Register the function below as the rule of these ops."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register
