"""Reads the measurement table of `edgepipe device fit`.

Columns: `family` (rows that are held out together), `device`, `runtime`, `model`, `latency_ms`, and `file`, the
measured .tflite, by default MODEL.tflite. Other columns are ignored.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.input_files import check_ordinary
from edgepipe.devices.latency import operator_features
from edgepipe.devices.latency.feature_names import ChannelTile
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.layer_shapes import build_layer
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model

REQUIRED_COLUMNS = ("family", "device", "runtime", "model", "latency_ms")


@dataclass(frozen=True)
class MeasuredLatency:
    """One line of the table, with its line number."""

    line_number: int
    family: str
    device_name: str
    runtime_name: str
    model_name: str
    file_name: str
    seconds: float

    @property
    def group(self) -> str:
        """Device and runtime as in `--target`."""
        return f"{self.device_name}, {self.runtime_name}" if self.runtime_name else self.device_name


@dataclass(frozen=True)
class MeasurementRows:
    """The rows that can be fitted, and why others cannot: line, model and reason."""

    fit_rows: list[FitRow]
    skip_reasons: list[str]


def read(path: Path) -> list[MeasuredLatency]:
    """The lines of the table.

    Raises:
        InputError: unreadable, missing columns, or a latency that is not a positive number; with file and line.
    """
    check_ordinary(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv_reader = csv.DictReader(file)
            _check_columns(path, csv_reader.fieldnames or ())
            return [_parse_line(path, csv_reader.line_num, line) for line in csv_reader]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8: {error}") from None


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing_columns = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing_columns:
        column_list = ", ".join(columns) or "none"
        raise InputError(
            f"{path}:1: no column {', '.join(missing_columns)}; needed: {', '.join(REQUIRED_COLUMNS)}; "
            f"found: {column_list}"
        )


def _parse_line(path: Path, line_number: int, cells: dict[str, str | None]) -> MeasuredLatency:
    text_by_column = {name: (cells.get(name) or "").strip() for name in (*REQUIRED_COLUMNS, "file")}
    try:
        seconds = float(text_by_column["latency_ms"]) / 1e3
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(
            f"{path}:{line_number}: latency_ms is '{text_by_column['latency_ms']}'; "
            "must be a positive number of milliseconds"
        )
    empty_columns = [name for name in ("family", "device", "model") if not text_by_column[name]]
    if empty_columns:
        raise InputError(f"{path}:{line_number}: {', '.join(empty_columns)} is empty")
    return MeasuredLatency(
        line_number,
        text_by_column["family"],
        text_by_column["device"],
        text_by_column["runtime"],
        text_by_column["model"],
        text_by_column["file"],
        seconds,
    )


def select_group(table_lines: Sequence[MeasuredLatency], group_name: str) -> list[MeasuredLatency]:
    """The lines of the group `group_name`.

    Raises:
        InputError: there is none.
    """
    group_lines = [line for line in table_lines if line.group == group_name]
    if not group_lines:
        group_names = sorted({line.group for line in table_lines})
        raise InputError(f"no rows of '{group_name}'{did_you_mean(group_name, group_names)}")
    return group_lines


def build_rows(
    table_lines: Sequence[MeasuredLatency], folder: Path, tile: ChannelTile, on_chip_weights: int | None
) -> MeasurementRows:
    """The features of each line's model; lines whose model is missing are skipped, with the reason.

    Args:
        table_lines: of the measurement table.
        folder: the folder of the .tflite files.
        tile: channels that the processor computes at once.
        on_chip_weights: how many weights fit on the chip; None: weights do not spill.
    """
    fit_rows, skip_reasons = [], []
    for line in table_lines:
        path = _find_model(line, folder)
        if path is None:
            file_name = line.file_name or f"{line.model_name}.tflite"
            skip_reasons.append(f"line {line.line_number}: {line.model_name}: no file {file_name} in {folder}")
            continue
        fit_rows.append(_build_row(line, _read_model(path), tile, on_chip_weights))
    return MeasurementRows(fit_rows, skip_reasons)


def _build_row(line: MeasuredLatency, model: Model, tile: ChannelTile, on_chip_weights: int | None) -> FitRow:
    operators_and_amounts = list(operator_features.iter_features(model, tile, on_chip_weights))
    return FitRow(
        line.family,
        line.group,
        line.model_name,
        operator_features.sum_features(model, tile, on_chip_weights),
        frozenset(operator.name for operator, _ in operators_and_amounts),
        line.seconds,
        tuple(build_layer(operator, amounts) for operator, amounts in operators_and_amounts),
    )


def _find_model(line: MeasuredLatency, folder: Path) -> Path | None:
    file_names = [line.file_name, Path(line.file_name).name] if line.file_name else [f"{line.model_name}.tflite"]
    return next((folder / name for name in file_names if (folder / name).is_file()), None)


@lru_cache(maxsize=512)
def _read_model(path: Path) -> Model:
    return reader.read(path)
