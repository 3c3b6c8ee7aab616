"""Windows of sensors, or plain rows, from CSV and Parquet files, read with pandas."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ToolError, did_you_mean
from edgepipe.data.data_spec import CsvSpec, TableSpec, table_files
from edgepipe.data.raw_samples import FLOAT32_MAX, Raw, RawPart
from edgepipe.data.splits import Split

SHOWN = 20
_VALUE = re.compile(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?|-[0-9]+")  # whole numbers may be names: 0, 1, 2


class _Corrupt(Exception):  # noqa: N818 - a reason, caught here
    """Why a file cannot be used."""


@final
@dataclass
class _Read:
    """What was read so far."""

    x: list[Array] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    left_over: int = 0
    names: tuple[str, ...] = ()  # of the channels
    ignored: set[str] = field(default_factory=set)  # columns found that are to be left out


def read(root: Path, spec: TableSpec) -> Raw:
    """Samples (n, window, channels), or (n, channels) without a `window`; labels and groups as columns or names say.

    Raises:
        InputError: columns that are missing, or files that cannot be used (all are named) unless `skip_corrupt`.
        ToolError: pandas is not installed.
    """
    _pandas()
    paths, got, corrupt = table_files(root, spec), _Read(), []
    for path in paths:
        try:
            _file(path, root, spec, got)
        except _Corrupt as reason:
            corrupt.append(f"{path} ({reason})")
    if corrupt and not spec.skip_corrupt:
        listed = "\n".join(f"  {entry}" for entry in corrupt)
        raise InputError(
            f"{root}: {len(corrupt)} of {len(paths)} files cannot be used; mend them, or set `skip_corrupt: true`:\n"
            f"{listed}"
        )
    if not got.x:
        raise InputError(f"{root}: no samples in {len(paths)} files{_why_none(spec, corrupt)}")
    unknown = [name for name in spec.ignore if name not in got.ignored]
    if unknown:
        hint = did_you_mean(unknown[0], got.names)
        raise InputError(f"{root}: `ignore` names a column '{unknown[0]}' that no file has{hint}")
    y, names = _labelled(got.labels)
    part = RawPart(np.stack(got.x).astype(np.float32), y, np.array(got.groups) if got.groups else None)
    notes = tuple(_notes(root, spec, got, corrupt, len(paths)))
    return Raw(str(root), {Split.TRAIN: part}, names, notes, channels=got.names)


def _why_none(spec: TableSpec, corrupt: list[str]) -> str:
    if corrupt:
        return f"; {len(corrupt)} were skipped: {', '.join(corrupt[:SHOWN])}"
    return f", none has {spec.window} rows of one label and group in a row" if spec.window else ""


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ToolError('CSV and Parquet files need pandas: pip install "edgepipe[data]"') from None
    return pandas


def _file(path: Path, root: Path, spec: TableSpec, got: _Read) -> None:
    table = _table(path, spec)
    got.ignored |= set(map(str, table.columns)) & set(spec.ignore)
    named = path.relative_to(root).as_posix() if root.is_dir() else path.name
    columns = _columns(path, table, spec)
    if got.names and columns != got.names:
        raise _Corrupt(f"its channels are {', '.join(columns)}, those of the files before {', '.join(got.names)}")
    values = _numbers(table, columns)
    label = _series(table, spec.label, named, spec.label_from)
    group = _series(table, spec.group, named, spec.group_from)
    session = _series(table, spec.session, named, None)
    got.names = columns
    for start, end in _runs([series for series in (label, group, session) if series is not None], len(values)):
        _cut(values, start, end, label, group if group is not None else _recording(session, named, root), spec, got)


def _table(path: Path, spec: TableSpec) -> Any:
    pandas = _pandas()
    try:
        if isinstance(spec, CsvSpec):
            _check_head(path, spec)
            table = pandas.read_csv(path, sep=spec.separator, skipinitialspace=True)
        else:
            table = pandas.read_parquet(path)
    except UnicodeDecodeError as error:
        raise _Corrupt(f"is not UTF-8 text at byte {error.start}") from None
    except (ValueError, OSError) as error:  # pandas' ParserError and pyarrow's ArrowInvalid are ValueErrors
        raise _Corrupt(" ".join(str(error).split())[:200] or type(error).__name__) from None
    if len(table) == 0:
        raise _Corrupt("holds no rows")
    return table


def _check_head(path: Path, spec: CsvSpec) -> None:
    """pandas renames columns that have one name, and takes a first line of numbers for names."""
    head = _pandas().read_csv(
        path, sep=spec.separator, skipinitialspace=True, header=None, nrows=1, dtype=str, keep_default_na=False
    )
    names = [str(name) for name in head.iloc[0]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _Corrupt(f"{names.count(twice[0])} columns are named '{twice[0]}'")
    values = [name for name in names if _VALUE.fullmatch(name)]
    if values:
        raise _Corrupt(f"begins with numbers ({', '.join(values)[:60]}); its first line must name the columns")


def _columns(path: Path, table: Any, spec: TableSpec) -> tuple[str, ...]:
    present = [str(column) for column in table.columns]
    named = [name for name in (*spec.channels, spec.label, spec.group, spec.session) if name is not None]
    for name in named:
        if name not in present:
            raise _Corrupt(f"no column '{name}'{did_you_mean(name, present)}")
    if spec.channels:
        return spec.channels
    used = {spec.label, spec.group, spec.session, *spec.ignore}
    channels = tuple(name for name in present if name not in used)
    unnamed = [name for name in channels if name.startswith("Unnamed: ")]
    if unnamed:
        raise _Corrupt(f"a column has no name (an index?); put '{unnamed[0]}' into `ignore`, or list `channels`")
    if not channels:
        raise _Corrupt("no column is left for the channels")
    return channels


def _numbers(table: Any, columns: tuple[str, ...]) -> Array:
    pandas = _pandas()
    found = []
    for name in columns:
        if table[name].dtype.kind in "mM":
            raise _Corrupt(f"column '{name}' holds times; put it into `ignore`")
        values = pandas.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~(np.abs(values) <= FLOAT32_MAX))
        if len(bad):
            raise _Corrupt(_bad_cell(table[name], bad))
        found.append(values)
    return np.stack(found, axis=1)


def _bad_cell(column: Any, bad: Array) -> str:
    row, cell = int(bad[0]) + 1, column.iloc[int(bad[0])]
    empty = column.isna().iloc[int(bad[0])]
    what = " is empty" if empty else f": '{cell}' is no finite number that float32 holds"
    every = "; all are: put the column into `ignore`, or name it as label, group or session"
    return f"row {row}, column '{column.name}'{what} ({len(bad)} such{every if len(bad) == len(column) > 1 else ''})"


def _series(table: Any, column: str | None, named: str, pattern: str | None) -> Array | None:
    """Values of a column, or what `pattern` finds in the file's name, for every row."""
    if column is not None:
        values = table[column]
        if values.isna().any():
            raise _Corrupt(f"row {int(np.flatnonzero(values.isna())[0]) + 1}, column '{column}' is empty")
        return np.asarray(values)
    if pattern is None:
        return None
    match = re.search(pattern, named)
    if match is None:
        raise _Corrupt(f"its name does not match '{pattern}'")
    return np.full(len(table), match.group(1) if match.re.groups else match.group())


def _recording(session: Array | None, named: str, root: Path) -> Array | None:
    """Without a group, a session or, of several files, a file is one."""
    if session is not None:
        return session
    return None if root.is_file() else np.array([named])


def _runs(series: list[Array], rows: int) -> Iterator[tuple[int, int]]:
    """Where label, group and session stay the same."""
    changes = np.zeros(max(rows - 1, 0), bool)
    for values in series:
        changes |= values[1:] != values[:-1]
    edges = [0, *(np.flatnonzero(changes) + 1), rows]
    yield from itertools.pairwise(edges)


def _cut(
    values: Array,
    start: int,
    end: int,
    label: Array | None,
    group: Array | None,
    spec: TableSpec,
    got: _Read,
) -> None:
    size = spec.window or 1
    step = spec.step or size
    starts = range(start, end - size + 1, step)
    got.left_over += end - start if not starts else end - (starts[-1] + size)
    for at in starts:
        got.x.append(values[at : at + size] if spec.window else values[at])
        if label is not None:
            got.labels.append(label[at])
        if group is not None:
            got.groups.append(str(group[at] if len(group) > 1 else group[0]))


def _labelled(labels: list[Any]) -> tuple[Array | None, tuple[str, ...]]:
    """Integers and fractions as they are; texts as numbers in the order of their names, and these."""
    if not labels:
        return None, ()
    values = np.array(labels)
    if values.dtype.kind in "iufb":
        return values, ()
    names, numbers = np.unique(values.astype(str), return_inverse=True)
    return numbers.astype(np.int64), tuple(names.tolist())


def _notes(root: Path, spec: TableSpec, got: _Read, corrupt: list[str], total: int) -> Iterator[str]:
    yield f"{root}: {len(got.x)} samples of {len(got.names)} channels ({', '.join(got.names)}) from {total} files"
    if corrupt:
        more = f" and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
        yield f"{root}: skipped {len(corrupt)} of {total} files that cannot be used: {', '.join(corrupt[:SHOWN])}{more}"
    if got.left_over and spec.window:
        yield f"{root}: {got.left_over} rows at the ends of recordings fill no window of {spec.window}"
    if spec.window and not got.groups:
        overlap = " and overlap" if spec.step and spec.step < spec.window else ""
        yield (
            f"{root}: windows of one recording are drawn at random{overlap}: neighbours sit on both sides, and quality "
            "will look better than it is; name `group:`, `session:` or `group_from:`, or give a file for each recording"
        )
