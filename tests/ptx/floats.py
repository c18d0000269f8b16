"""Floating-point instructions as functions of numbers, correctly rounded.

The approximate ones (ex2.approx, rcp.approx, div.full, ...) are modelled as correctly rounded: a
GPU's own answer lies within two units in the last place, by the PTX ISA's tables.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .form import Form
from .operation import Operation, build
from .scalars import FLOATS, PACKED, Array, flush, odd_sum

Function = Callable[..., Array]


def fused(a: Array, b: Array, c: Array) -> Array:
    """a b + c in float64 rounded to odd; exact products of float32 and narrower numbers."""
    return odd_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))


def fma(a: Array, b: Array, c: Array) -> Array:
    """a b + c rounded once to the operands' type."""
    return fused(a, b, c).astype(a.dtype)


def minimum(a: Array, b: Array) -> Array:
    """The number if one is NaN; −0 is less than +0."""
    smaller = np.fmin(a, b)
    return np.where(a == b, np.where(np.signbit(a), a, b), smaller)


def maximum(a: Array, b: Array) -> Array:
    """The number if one is NaN; +0 is more than −0."""
    larger = np.fmax(a, b)
    return np.where(a == b, np.where(np.signbit(a), b, a), larger)


def nan_minimum(a: Array, b: Array) -> Array:
    """NaN if one is."""
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), minimum(a, b))


def nan_maximum(a: Array, b: Array) -> Array:
    """NaN if one is."""
    return np.where(np.isnan(a) | np.isnan(b), np.array(np.nan, a.dtype), maximum(a, b))


def in_double(function: Function) -> Function:
    """A function of float32 computed in float64 and rounded."""
    return lambda x: function(x.astype(np.float64)).astype(np.float32)


ARITHMETIC: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": fma,
    "min": minimum,
    "max": maximum,
    "neg": np.negative,
    "abs": np.abs,
}
ARITY = {"fma": 3, "neg": 1, "abs": 1}

UNARY: dict[str, Function] = {
    "sqrt": np.sqrt,
    "rcp": in_double(lambda x: 1 / x),
    "rsqrt": in_double(lambda x: 1 / np.sqrt(x)),
    "ex2": in_double(np.exp2),
    "lg2": in_double(np.log2),
    "sin": in_double(np.sin),
    "cos": in_double(np.cos),
    "tanh": in_double(np.tanh),
}


def arithmetic(form: Form) -> Operation:
    """add, sub, mul, fma, min, max, neg, abs of floating-point numbers, packed or not."""
    opcode = form.instruction.opcode
    kind = form.kind(*FLOATS, *PACKED)
    if kind in ("f16", "bf16") and form.left[-1:] == ["f32"]:
        return mixed(form, kind)
    form.flag("rn")  # the only rounding that is modelled, and the default
    function = ARITHMETIC[opcode]
    if opcode in ("min", "max") and form.flag("NaN"):
        function = nan_minimum if opcode == "min" else nan_maximum
    arity = ARITY.get(opcode, 2)
    if opcode in ("min", "max") and len(form.instruction.operands) == 4:
        arity, function = 3, _three(function)
    if opcode == "fma" and kind == "f64":
        raise form.unsupported("fma.f64, which needs more than float64")
    return build(form, kind, [kind] * arity, flushed(form, kind, function))


def _three(function: Function) -> Function:
    """The smallest or largest of three (sm_100)."""
    return lambda a, b, c: function(function(a, b), c)


def mixed(form: Form, narrow: str) -> Operation:
    """add.f32.bf16 and such (sm_100): the first operand, or a product's two, are narrow."""
    form.kind("f32")
    form.flag("rn")
    opcode = form.instruction.opcode
    if opcode == "fma":
        function: Function = lambda a, b, c: fused(a, b, c).astype(np.float32)  # noqa: E731
        return build(form, "f32", [narrow, narrow, "f32"], function)
    if opcode not in ("add", "sub"):
        raise form.unsupported("mixed precision")
    plain = ARITHMETIC[opcode]
    return build(form, "f32", [narrow, "f32"], lambda a, b: plain(a.astype(np.float32), b))


def divide(form: Form) -> Operation:
    """div.rn, div.full, div.approx of float32 and div.rn of float64."""
    kind = form.kind("f32", "f64")
    form.one_of("rn", "full", "approx")
    return build(form, kind, [kind, kind], flushed(form, kind, np.divide))


def unary(form: Form) -> Operation:
    """sqrt, rcp, rsqrt, ex2, lg2, sin, cos, tanh of float32."""
    kind = form.kind("f32")
    form.one_of("rn", "approx")
    function = UNARY[form.instruction.opcode]
    return build(form, kind, [kind], flushed(form, kind, function))


def flushed(form: Form, kind: str, function: Function) -> Function:
    """The function with .ftz and .sat applied, where they stand in the instruction."""
    ftz, saturate = form.flag("ftz"), form.flag("sat")
    if not (ftz or saturate):
        return function
    if kind not in ("f32", "f32x2"):
        raise form.unsupported(f".ftz or .sat of {kind}")

    def apply(*values: Array) -> Array:
        result = function(*(flush(v) for v in values)) if ftz else function(*values)
        result = flush(result) if ftz else result
        # .sat makes NaN zero.
        return np.fmin(np.fmax(result, np.float32(0)), np.float32(1)) if saturate else result

    return apply
