"""cvt: conversions between integer and floating-point types, with every rounding made explicit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floats import flushed
from .form import Form
from .operation import Operation, build
from .scalars import FLOATS, PACKED, SIGNED, UNSIGNED, Array, encode, join, width

TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def convert(form: Form) -> Operation:
    """cvt.<rounding>.<to>.<from>, and cvt.rn.bf16x2.f32 d, high, low."""
    if form.left[-2:-1] and form.left[-2] in PACKED:
        return _pack(form)
    if form.left[-1:] and form.left[-1] in PACKED:
        raise form.unsupported("a packed source")
    source, result = form.kind(), form.kind()
    if source in FLOATS and result in FLOATS:
        return _float_to_float(form, source, result)
    if source in FLOATS:
        return _float_to_integer(form, source, result)
    if result in FLOATS:
        return _integer_to_float(form, source, result)
    return _integer_to_integer(form, source, result)


def _pack(form: Form) -> Operation:
    form.kind("f32")
    result = form.kind("bf16x2", "f16x2")
    form.one_of("rn")
    form.done(operands=3)
    half = PACKED[result]

    def evaluate(high: Array, low: Array) -> Array:
        low, high = (v.view(np.float32).astype(np.float64) for v in (low, high))
        return join(encode(low, half), encode(high, half), result)

    return Operation(result, ("f32", "f32"), evaluate)


def _float_to_float(form: Form, source: str, result: str) -> Operation:
    if source == result:
        rounding = TO_INTEGER[form.one_of(*TO_INTEGER)]
        return build(form, result, [source], flushed(form, result, rounding))
    if width(result) < width(source):
        form.one_of("rn")
    # Halves are encoded from float64.
    number = np.float32 if result == "f32" else np.float64
    return build(
        form, result, [source], flushed(form, result, lambda values: values.astype(number))
    )


def _float_to_integer(form: Form, source: str, result: str) -> Operation:
    rounding = form.one_of(*TO_INTEGER)
    if width(result) == 64 or source == "f64":
        raise form.unsupported("another result for NaN than 0")
    if form.flag("ftz") and rounding in ("rmi", "rpi"):
        # To nearest and toward zero, a subnormal number becomes zero anyway.
        raise form.unsupported(".ftz with a directed rounding")
    form.flag("sat")  # the conversion always saturates
    numbers = np.iinfo((SIGNED if result[0] == "s" else UNSIGNED)[width(result)])

    def function(values: Array) -> Array:
        whole = TO_INTEGER[rounding](values.astype(np.float64))
        top = whole >= float(numbers.max)
        inside = np.where(top | np.isnan(whole), 0, np.maximum(whole, float(numbers.min)))
        return np.where(top, numbers.dtype.type(numbers.max), inside.astype(numbers.dtype))

    return build(form, result, [source], function)


def _integer_to_float(form: Form, source: str, result: str) -> Operation:
    form.one_of("rn")
    wide = {"f32": np.float32, "f64": np.float64}.get(result)
    if wide is None and width(source) > 32:
        raise form.unsupported("a 64-bit integer to a half, which rounds twice through float64")
    return build(form, result, [source], lambda values: values.astype(wide or np.float64))


def _integer_to_integer(form: Form, source: str, result: str) -> Operation:
    number = (SIGNED if result[0] == "s" else UNSIGNED)[width(result)]
    if not form.flag("sat"):
        return build(form, result, [source], lambda values: values.astype(number))
    limits = np.iinfo(number)

    def clamped(values: Array) -> Array:
        own = np.iinfo(values.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        return np.clip(values, low, high).astype(number)

    return build(form, result, [source], clamped)
