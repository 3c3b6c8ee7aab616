"""Parses the options of `edgepipe device fit`."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

from edgepipe.core.errors import InputError
from edgepipe.core.units import Dimension, UnitError, parse
from edgepipe.devices.latency import measurement_table as tables
from edgepipe.devices.latency.profile_fragment import FitRequest


def parse_request(
    table_path: Path,
    target: str | None,
    kind: str,
    clock: str | float,
    neighbours: Collection[str],
    dtype: Literal["int8", "float32"],
    on_chip: str | int | None,
    source: str | None,
    excluded_families: Collection[str],
) -> FitRequest:
    """The request, with every quantity parsed.

    Args:
        table_path: the CSV file of measurements.
        target: device and runtime to fit, as `DEVICE, RUNTIME`; None: the only one in the table.
        kind: the kind of processor, a key of `processor_kinds.KINDS`.
        clock: of the target, such as `480 MHz`.
        neighbours: devices and runtimes to fit together with the target, as `DEVICE, RUNTIME=CLOCK`.
        dtype: the type of the models' activations.
        on_chip: weight memory on the chip, such as `512 KiB`; None: weights do not spill.
        source: the citation of the measurements; None: the name of the table.
        excluded_families: model families to leave out.

    Raises:
        InputError: an invalid quantity or neighbour, or no target although the table does not have exactly one.
    """
    return FitRequest(
        target_group=target or _single_group(table_path),
        kind=kind,
        clock=_parse_quantity("--clock", clock, Dimension.FREQUENCY),
        source=source or f"measurements in {table_path.name}",
        dtype=dtype,
        on_chip_weights=None if on_chip is None else round(_parse_quantity("--on-chip", on_chip, Dimension.BYTES)),
        excluded_families=frozenset(excluded_families),
        neighbour_clocks=dict(_parse_neighbour(text) for text in neighbours),
    )


def _single_group(table_path: Path) -> str:
    group_names = sorted({line.group for line in tables.read(table_path)})
    if len(group_names) != 1:
        group_list = "; ".join(group_names[:10]) + (
            f" and {len(group_names) - 10} more" if len(group_names) > 10 else ""
        )
        raise InputError(
            f"{table_path}: {len(group_names)} devices and runtimes; choose one with --target: {group_list or 'none'}"
        )
    return group_names[0]


def _parse_neighbour(text: str) -> tuple[str, float]:
    group, equals_sign, clock = text.rpartition("=")
    if not equals_sign or not group:
        raise InputError(f"--neighbour '{text}': expected TARGET=CLOCK, for example 'BOARD, 8.1=400 MHz'")
    return group, _parse_quantity(f"--neighbour '{group}'", clock, Dimension.FREQUENCY)


def _parse_quantity(option_name: str, text: str | float, dimension: Dimension) -> float:
    try:
        quantity = parse(text, dimension)
    except UnitError as error:
        raise InputError(f"{option_name}: {error}") from None
    if quantity <= 0:
        raise InputError(f"{option_name}: {text} is not positive")
    return quantity
