"""A table of measurements, as `edgepipe device fit` reads it.

Columns: `family` (rows that are held out together), `device`, `runtime`, `model`, `latency_ms`, and `file`, the .tflite
that was measured; a row without a file is looked for as MODEL.tflite. Other columns are ignored.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.devices.latency import operator_features
from edgepipe.devices.latency.feature_names import Tile
from edgepipe.devices.latency.latency_fit import Row
from edgepipe.tflite import reader
from edgepipe.tflite.model import Model

COLUMNS = ("family", "device", "runtime", "model", "latency_ms")


@dataclass(frozen=True)
class Measured:
    """One line of a table, with the line's number."""

    line: int
    family: str
    device: str
    runtime: str
    model: str
    file: str
    seconds: float

    @property
    def group(self) -> str:
        """Device and runtime as `--target` names them."""
        return f"{self.device}, {self.runtime}" if self.runtime else self.device


@dataclass(frozen=True)
class Rows:
    """The rows that can be fitted, and those that cannot: line, model and reason."""

    rows: list[Row]
    left_out: list[str]


def read(path: Path) -> list[Measured]:
    """The lines of the table.

    Raises:
        InputError: unreadable, no such columns, or a latency that is not a positive number; with file and line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            _check_columns(path, lines.fieldnames or ())
            return [_measured(path, lines.line_num, line) for line in lines]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8: {error}") from None


def _check_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        known = ", ".join(found) or "none"
        raise InputError(f"{path}:1: no column {', '.join(missing)}; needed: {', '.join(COLUMNS)}; found: {known}")


def _measured(path: Path, line: int, values: dict[str, str | None]) -> Measured:
    text = {name: (values.get(name) or "").strip() for name in (*COLUMNS, "file")}
    try:
        seconds = float(text["latency_ms"]) / 1e3
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"{path}:{line}: latency_ms is '{text['latency_ms']}'; a positive number of milliseconds")
    empty = [name for name in ("family", "device", "model") if not text[name]]
    if empty:
        raise InputError(f"{path}:{line}: {', '.join(empty)} is empty")
    return Measured(line, text["family"], text["device"], text["runtime"], text["model"], text["file"], seconds)


def of_group(measured: Sequence[Measured], name: str) -> list[Measured]:
    """The lines of the group `name`.

    Raises:
        InputError: there is none.
    """
    found = [one for one in measured if one.group == name]
    if not found:
        known = sorted({one.group for one in measured})
        raise InputError(f"no rows of '{name}'{did_you_mean(name, known)}")
    return found


def rows(measured: Sequence[Measured], models: Path, tile: Tile, on_chip: int | None) -> Rows:
    """The features of each line's model, found in the folder `models`; lines whose model is not there are left out."""
    found, left_out = [], []
    for one in measured:
        path = _find(one, models)
        if path is None:
            left_out.append(f"line {one.line}: {one.model}: no file {one.file or one.model + '.tflite'} in {models}")
            continue
        model = _read(path)
        used = frozenset(operator.name for operator, _ in operator_features.of_operators(model))
        amounts = operator_features.of_model(model, tile, on_chip)
        found.append(Row(one.family, one.group, one.model, amounts, used, one.seconds))
    return Rows(found, left_out)


def _find(one: Measured, models: Path) -> Path | None:
    names = [one.file, Path(one.file).name] if one.file else [f"{one.model}.tflite"]
    return next((models / name for name in names if (models / name).is_file()), None)


@lru_cache(maxsize=512)
def _read(path: Path) -> Model:
    return reader.read(path)
