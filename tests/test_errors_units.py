"""Errors and their exit codes, and quantities as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepipe.core import units
from edgepipe.core.errors import (
    ConfigError,
    EdgepipeError,
    ExitCode,
    InputError,
    Problem,
    StorageError,
    ToolError,
    did_you_mean,
)
from edgepipe.core.units import Dimension, UnitError, parse, show


def test_exit_codes_are_those_of_the_design() -> None:
    assert [code.value for code in ExitCode] == [0, 1, 2, 3, 4, 130, 141]
    assert [error.exit_code for error in (EdgepipeError, InputError, StorageError, ConfigError)] == [2, 2, 2, 2]
    assert ToolError.exit_code == 4


def test_problems_are_sorted_by_file_and_line() -> None:
    found = [Problem("b", 1, 1, "x", "m"), Problem("a", 10, 2, "y", "m"), Problem("a", 9, 3, "", "m")]
    error = ConfigError(found)
    assert str(error).splitlines() == ["a:9:3: m", "a:10:2: y: m", "b:1:1: x: m"]
    assert str(Problem("--set seed=x", 0, 0, "seed", "m")) == "--set seed=x: seed: m"


@pytest.mark.parametrize(
    ("name", "allowed", "hint"),
    [
        ("sparsty", ["sparsity", "schedule"], "; did you mean 'sparsity'?"),
        ("zzz", ["b", "a"], "; allowed: a, b"),
        ("zzz", [], ""),
    ],
)
def test_did_you_mean(name: str, allowed: list[str], hint: str) -> None:
    assert did_you_mean(name, allowed) == hint


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("256 KiB", Dimension.BYTES, 262144),
        ("1.5MiB", Dimension.BYTES, 1572864),
        ("64 kB", Dimension.BYTES, 64000),
        ("20 ms", Dimension.SECONDS, 0.02),
        ("3 us", Dimension.SECONDS, 3e-6),
        ("3 µs", Dimension.SECONDS, 3e-6),
        ("9ms", Dimension.SECONDS, 0.009),
        ("120 MHz", Dimension.FREQUENCY, 120e6),
        ("97 %", Dimension.FRACTION, 0.97),
        ("57%", Dimension.FRACTION, 0.57),
        ("1 point", Dimension.FRACTION, 0.01),
        (0.97, Dimension.FRACTION, 0.97),
        ("-1e-2", Dimension.NUMBER, -0.01),
        (" 5 M ", Dimension.COUNT, 5e6),
        (12, Dimension.COUNT, 12),
    ],
)
def test_parse(text: str | float, dimension: Dimension, value: float) -> None:
    assert parse(text, dimension) == value  # exactly: 57 * 0.01 in binary is another number


QUANTITY = "is not a quantity; write a number and a unit, one of:"


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("20", Dimension.SECONDS, "'20' has no unit; allowed: s, ms, us, µs, ns, min"),
        ("20 KiB", Dimension.SECONDS, "'KiB' is not a unit of seconds; allowed: s, ms, us, µs, ns, min"),
        ("20 mS", Dimension.SECONDS, "'mS' is not a unit of seconds; allowed: s, ms, us, µs, ns, min"),
        ("many", Dimension.BYTES, f"'many' {QUANTITY} B, KiB, MiB, GiB, kB, KB, MB, GB"),
        ("", Dimension.BYTES, f"'' {QUANTITY} B, KiB, MiB, GiB, kB, KB, MB, GB"),
        ("1,5 ms", Dimension.SECONDS, f"'1,5 ms' {QUANTITY} s, ms, us, µs, ns, min"),
        ("nan %", Dimension.FRACTION, f"'nan %' {QUANTITY} %, point, points"),
        ("inf", Dimension.NUMBER, f"'inf' {QUANTITY} a bare number"),
        ("1e999 s", Dimension.SECONDS, f"'1e999 s' {QUANTITY} s, ms, us, µs, ns, min"),
        ("1e308 GiB", Dimension.BYTES, "'1e308 GiB' is too large"),
        (True, Dimension.COUNT, f"'True' {QUANTITY} k, M, G"),
        (float("nan"), Dimension.COUNT, f"'nan' {QUANTITY} k, M, G"),
    ],
)
def test_no_quantity(text: str | float, dimension: Dimension, message: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse(text, dimension)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (640, Dimension.BYTES, "640 B"),
        (65536, Dimension.BYTES, "64.0 KiB"),
        (3 * 2**20, Dimension.BYTES, "3.0 MiB"),
        (5 * 2**30, Dimension.BYTES, "5.0 GiB"),
        (0, Dimension.SECONDS, "0.00 ms"),
        (12.3456, Dimension.SECONDS, "12.35 s"),
        (0.0123, Dimension.SECONDS, "12.30 ms"),
        (1.5e-5, Dimension.SECONDS, "15.0 us"),
        (120e6, Dimension.FREQUENCY, "120 MHz"),
        (0.98765, Dimension.FRACTION, "98.77 %"),
        (1234567, Dimension.COUNT, "1,234,567"),
        (0.123456, Dimension.NUMBER, "0.1235"),
    ],
)
def test_show(value: float, dimension: Dimension, text: str) -> None:
    assert show(value, dimension) == text


def test_every_dimension_is_parsed_and_shown() -> None:
    assert set(units.UNIT_FACTORS) == set(Dimension)
    for dimension in Dimension:
        assert show(1.0, dimension)


@given(st.floats(0, 1e12), st.sampled_from([d for d in Dimension if d is not Dimension.COUNT]))
def test_what_is_shown_reads_back_within_its_rounding(value: float, dimension: Dimension) -> None:
    back = parse(show(value, dimension), dimension)
    smallest = {Dimension.SECONDS: 1e-7, Dimension.BYTES: 1, Dimension.FRACTION: 1e-4, Dimension.FREQUENCY: 1}
    assert math.isclose(back, value, rel_tol=0.06, abs_tol=smallest.get(dimension, 1e-9))


@given(st.integers(0, 10**15))
def test_counts_read_back_without_their_commas(value: int) -> None:
    assert parse(show(value, Dimension.COUNT).replace(",", ""), Dimension.COUNT) == value


@given(st.text(), st.sampled_from(list(Dimension)))
def test_any_text_is_a_quantity_or_a_unit_error(text: str, dimension: Dimension) -> None:
    try:
        assert math.isfinite(parse(text, dimension))
    except UnitError as error:
        assert str(error)  # noqa: PT017 - both outcomes are right; nothing else may escape


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1200, "1,200 steps")])
def test_plurals(number: int, text: str) -> None:
    assert units.plural(number, "step") == text
