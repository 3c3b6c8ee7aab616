"""Quantities as people write them ("256 KiB", "20 ms", "97 %") to and from bytes, seconds, hertz and fractions.

Inside edgepipe every size is in bytes, every time in seconds, every share a fraction of one; the units below exist
only where a person reads or writes.
"""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from enum import StrEnum


class Dimension(StrEnum):
    """What a number counts; decides which units are allowed."""

    BYTES = "bytes"
    SECONDS = "seconds"
    FREQUENCY = "hertz"
    FRACTION = "fraction"
    COUNT = "count"
    NUMBER = "number"


UNIT_FACTORS: dict[Dimension, dict[str, float]] = {
    Dimension.BYTES: {
        "B": 1,
        "KiB": 2**10,
        "MiB": 2**20,
        "GiB": 2**30,
        "kB": 10**3,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
    },
    Dimension.SECONDS: {"s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60},
    Dimension.FREQUENCY: {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    Dimension.FRACTION: {"%": 0.01, "point": 0.01, "points": 0.01, "": 1},
    Dimension.COUNT: {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    Dimension.NUMBER: {"": 1},
}
_QUANTITY_PATTERN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-zµ%]*)\s*")


class UnitError(ValueError):
    """A quantity that cannot be read as the dimension it is needed in."""


def parse(text: str | float, dimension: Dimension) -> float:
    """Read `text` as `dimension`; the result is in bytes, seconds, hertz, a fraction, or a bare number.

    Raises:
        UnitError: no number, no unit where one is needed (a bare `20` could be anything), an impossible unit.
    """
    factor_by_unit = UNIT_FACTORS[dimension]
    allowed_units = ", ".join(unit for unit in factor_by_unit if unit) or "a bare number"
    match = _QUANTITY_PATTERN.fullmatch(str(text)) if not isinstance(text, bool) else None
    if match is None or not math.isfinite(float(match[1])):
        raise UnitError(f"'{text}' is not a quantity; write a number and a unit, one of: {allowed_units}")
    if match[2] not in factor_by_unit:
        problem = f"'{match[2]}' is not a unit of {dimension}" if match[2] else f"'{text}' has no unit"
        raise UnitError(f"{problem}; allowed: {allowed_units}")
    # In decimal: 57 * 0.01 is more than 0.57 in binary, and a budget of 57 % would refuse exactly that.
    amount = float(Decimal(match[1]) * Decimal(str(factor_by_unit[match[2]])))
    if not math.isfinite(amount):
        raise UnitError(f"'{text}' is too large")
    return amount


def show(value: float, dimension: Dimension) -> str:
    """`value`, in the base unit of `dimension`, as a person reads it."""
    return _FORMATTERS[dimension](value)


def _format_bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _format_seconds(value: float) -> str:
    if abs(value) >= 1:
        return f"{value:.2f} s"
    if abs(value) >= 1e-3 or value == 0:
        return f"{value * 1e3:.2f} ms"
    return f"{value * 1e6:.1f} us"


def _format_count(value: float) -> str:
    return f"{value:,.0f}"


_FORMATTERS: dict[Dimension, Callable[[float], str]] = {
    Dimension.BYTES: _format_bytes,
    Dimension.SECONDS: _format_seconds,
    Dimension.FREQUENCY: lambda value: f"{value / 1e6:g} MHz",
    Dimension.FRACTION: lambda value: f"{value * 100:.2f} %",
    Dimension.COUNT: _format_count,
    Dimension.NUMBER: lambda value: f"{value:.4g}",
}


def plural(number: int, noun: str, nouns: str = "") -> str:
    """A number with its noun: `1 output`, `2 outputs`; `nouns` is an irregular plural, such as `biases`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
