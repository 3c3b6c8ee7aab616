"""Reads what a user asks `edgepipe device fit` for."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from edgepipe.core.errors import InputError
from edgepipe.core.units import Dimension, UnitError, parse
from edgepipe.devices.latency import measurement_table as tables
from edgepipe.devices.latency.profile_fragment import Request


def request(
    table: Path,
    target: str | None,
    kind: str,
    clock: str | float,
    neighbours: Collection[str],
    dtype: Literal["int8", "float32"],
    on_chip: str | int | None,
    source: str | None,
    without: Collection[str],
) -> Request:
    """The request, with every quantity parsed.

    Raises:
        InputError: a quantity or a neighbour that cannot be read, or no target where the table has several.
    """
    return Request(
        target=target or _only(table),
        kind=kind,
        clock=_quantity("--clock", clock, Dimension.FREQUENCY),
        source=source or f"measurements in {table.name}",
        dtype=dtype,
        on_chip=None if on_chip is None else round(_quantity("--on-chip", on_chip, Dimension.BYTES)),
        without=frozenset(without),
        neighbours=dict(_neighbour(text) for text in neighbours),
    )


def _only(table: Path) -> str:
    groups = sorted({line.group for line in tables.read(table)})
    if len(groups) != 1:
        shown = "; ".join(groups[:10]) + (f" and {len(groups) - 10} more" if len(groups) > 10 else "")
        raise InputError(f"{table}: {len(groups)} devices and runtimes; say which by --target: {shown or 'none'}")
    return groups[0]


def _neighbour(text: str) -> tuple[str, float]:
    group, sign, clock = text.rpartition("=")
    if not sign or not group:
        raise InputError(f"--neighbour '{text}': expected TARGET=CLOCK, for example 'BOARD, 8.1=400 MHz'")
    return group, _quantity(f"--neighbour '{group}'", clock, Dimension.FREQUENCY)


def _quantity(option: str, text: str | float, unit: Dimension) -> float:
    try:
        value = parse(text, unit)
    except UnitError as error:
        raise InputError(f"{option}: {error}") from None
    if value <= 0:
        raise InputError(f"{option}: {text} is not positive")
    return value
