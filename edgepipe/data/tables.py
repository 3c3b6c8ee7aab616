"""Sensor windows, or plain rows, from CSV and Parquet files, read with pandas."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ToolError, did_you_mean
from edgepipe.core.units import plural
from edgepipe.data.class_folders import MAX_LISTED, format_listing
from edgepipe.data.data_spec import CsvSpec, TableSpec, table_files
from edgepipe.data.raw_samples import FLOAT32_MAX, RawDataset, RawSplit
from edgepipe.data.splits import Split

_NUMBER = re.compile(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?|-[0-9]+")  # integers may be column names: 0, 1, 2


class _CorruptTable(Exception):  # noqa: N818 - a reason, caught here
    """Why a file cannot be used."""


@final
@dataclass
class _TableSamples:
    """The samples read so far."""

    x: list[Array] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    unused_rows: int = 0
    channel_names: tuple[str, ...] = ()
    ignored_columns: set[str] = field(default_factory=set)  # columns of `ignore` that were seen


def read(root: Path, spec: TableSpec) -> RawDataset:
    """Samples (n, window, channels), or (n, channels) without a `window`; labels and groups from columns or file names.

    Raises:
        InputError: missing columns, or files that cannot be used (the message names all) unless `skip_corrupt` is set.
        ToolError: pandas is not installed.
    """
    _pandas()
    paths, samples, corrupt_files = table_files(root, spec), _TableSamples(), []
    for path in paths:
        try:
            _read_file(path, root, spec, samples)
        except _CorruptTable as reason:
            corrupt_files.append(f"{path} ({reason})")
    if corrupt_files and not spec.skip_corrupt:
        listing = "\n".join(f"  {file}" for file in corrupt_files)
        raise InputError(
            f"{root}: {len(corrupt_files)} of {plural(len(paths), 'file')} cannot be used; fix them, or set "
            f"`skip_corrupt: true`:\n{listing}"
        )
    if not samples.x:
        raise InputError(f"{root}: no samples in {plural(len(paths), 'file')}{_empty_reason(spec, corrupt_files)}")
    unknown_columns = [name for name in spec.ignore if name not in samples.ignored_columns]
    if unknown_columns:
        hint = did_you_mean(unknown_columns[0], samples.channel_names)
        raise InputError(f"{root}: `ignore` names a column '{unknown_columns[0]}' that no file has{hint}")
    y, class_names = _encode_labels(samples.labels)
    raw_split = RawSplit(
        np.stack(samples.x).astype(np.float32), y, np.array(samples.groups) if samples.groups else None
    )
    notes = tuple(_notes(root, spec, samples, corrupt_files, len(paths)))
    return RawDataset(str(root), {Split.TRAIN: raw_split}, class_names, notes, channels=samples.channel_names)


def _empty_reason(spec: TableSpec, corrupt_files: list[str]) -> str:
    if corrupt_files:
        return f"; skipped {len(corrupt_files)}: {', '.join(corrupt_files[:MAX_LISTED])}"
    return f", none has {plural(spec.window, 'consecutive row')} with one label and group" if spec.window else ""


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ToolError('CSV and Parquet files need pandas: pip install "edgepipe[data]"') from None
    return pandas


def _read_file(path: Path, root: Path, spec: TableSpec, samples: _TableSamples) -> None:
    table = _read_table(path, spec)
    samples.ignored_columns |= set(map(str, table.columns)) & set(spec.ignore)
    relative_path = path.relative_to(root).as_posix() if root.is_dir() else path.name
    columns = _channel_columns(path, table, spec)
    if samples.channel_names and columns != samples.channel_names:
        raise _CorruptTable(
            f"its channels are {', '.join(columns)}, those of earlier files are {', '.join(samples.channel_names)}"
        )
    channel_rows = _read_channels(table, columns)
    label = _row_values(table, spec.label, relative_path, spec.label_from)
    group = _row_values(table, spec.group, relative_path, spec.group_from)
    session = _row_values(table, spec.session, relative_path, None)
    samples.channel_names = columns
    for start, end in _constant_runs(
        [series for series in (label, group, session) if series is not None], len(channel_rows)
    ):
        _cut_windows(
            channel_rows,
            start,
            end,
            label,
            group if group is not None else _recording_group(session, relative_path, root),
            spec,
            samples,
        )


def _read_table(path: Path, spec: TableSpec) -> Any:
    pandas = _pandas()
    try:
        if isinstance(spec, CsvSpec):
            _check_header(path, spec)
            table = pandas.read_csv(path, sep=spec.separator, skipinitialspace=True)
        else:
            table = pandas.read_parquet(path)
    except UnicodeDecodeError as error:
        raise _CorruptTable(f"is not UTF-8 text at byte {error.start}") from None
    except (ValueError, OSError) as error:  # pandas' ParserError and pyarrow's ArrowInvalid are ValueErrors
        raise _CorruptTable(" ".join(str(error).split())[:200] or type(error).__name__) from None
    if len(table) == 0:
        raise _CorruptTable("holds no rows")
    return table


def _check_header(path: Path, spec: CsvSpec) -> None:
    """Check what pandas accepts silently: it renames duplicate columns and takes a first line of numbers for names."""
    header = _pandas().read_csv(
        path, sep=spec.separator, skipinitialspace=True, header=None, nrows=1, dtype=str, keep_default_na=False
    )
    names = [str(name) for name in header.iloc[0]]
    repeated_names = sorted({name for name in names if names.count(name) > 1})
    if repeated_names:
        raise _CorruptTable(f"{names.count(repeated_names[0])} columns are named '{repeated_names[0]}'")
    numeric_names = [name for name in names if _NUMBER.fullmatch(name)]
    if numeric_names:
        raise _CorruptTable(
            f"begins with numbers ({', '.join(numeric_names)[:60]}); its first line must name the columns"
        )


def _channel_columns(path: Path, table: Any, spec: TableSpec) -> tuple[str, ...]:
    present_columns = [str(column) for column in table.columns]
    required_columns = [name for name in (*spec.channels, spec.label, spec.group, spec.session) if name is not None]
    for name in required_columns:
        if name not in present_columns:
            raise _CorruptTable(f"no column '{name}'{did_you_mean(name, present_columns)}")
    if spec.channels:
        return spec.channels
    other_columns = {spec.label, spec.group, spec.session, *spec.ignore}
    channels = tuple(name for name in present_columns if name not in other_columns)
    unnamed_columns = [name for name in channels if name.startswith("Unnamed: ")]
    if unnamed_columns:
        raise _CorruptTable(
            f"a column has no name (an index?); put '{unnamed_columns[0]}' into `ignore`, or list `channels`"
        )
    if not channels:
        raise _CorruptTable("no column is left for the channels")
    return channels


def _read_channels(table: Any, columns: tuple[str, ...]) -> Array:
    pandas = _pandas()
    arrays = []
    for name in columns:
        if table[name].dtype.kind in "mM":
            raise _CorruptTable(f"column '{name}' holds times; put it into `ignore`")
        numbers = pandas.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad_rows = np.flatnonzero(~(np.abs(numbers) <= FLOAT32_MAX))
        if len(bad_rows):
            raise _CorruptTable(_describe_bad_cell(table[name], bad_rows))
        arrays.append(numbers)
    return np.stack(arrays, axis=1)


def _describe_bad_cell(column: Any, bad_rows: Array) -> str:
    row, cell = int(bad_rows[0]) + 1, column.iloc[int(bad_rows[0])]
    is_empty = column.isna().iloc[int(bad_rows[0])]
    problem = " is empty" if is_empty else f": '{cell}' is not a finite float32 number"
    is_all_bad = len(bad_rows) == len(column) > 1
    hint = "; all are: put the column into `ignore`, or name it as label, group or session" if is_all_bad else ""
    return f"row {row}, column '{column.name}'{problem} ({len(bad_rows)} such{hint})"


def _row_values(table: Any, column: str | None, relative_path: str, pattern: str | None) -> Array | None:
    """One value per row: the column, or what `pattern` matches in the path; None if neither is given."""
    if column is not None:
        column_values = table[column]
        if column_values.isna().any():
            raise _CorruptTable(f"row {int(np.flatnonzero(column_values.isna())[0]) + 1}, column '{column}' is empty")
        return np.asarray(column_values)
    if pattern is None:
        return None
    match = re.search(pattern, relative_path)
    if match is None:
        raise _CorruptTable(f"its name does not match '{pattern}'")
    return np.full(len(table), match.group(1) if match.re.groups else match.group())


def _recording_group(session: Array | None, relative_path: str, root: Path) -> Array | None:
    """The default group: the session or, with several files, the file."""
    if session is not None:
        return session
    return None if root.is_file() else np.array([relative_path])


def _constant_runs(series: list[Array], rows: int) -> Iterator[tuple[int, int]]:
    """The ranges [start, end) of rows in which no series changes."""
    changes = np.zeros(max(rows - 1, 0), bool)
    for row_values in series:
        changes |= row_values[1:] != row_values[:-1]
    edges = [0, *(np.flatnonzero(changes) + 1), rows]
    yield from itertools.pairwise(edges)


def _cut_windows(
    channel_rows: Array,
    start: int,
    end: int,
    label: Array | None,
    group: Array | None,
    spec: TableSpec,
    samples: _TableSamples,
) -> None:
    size = spec.window or 1
    step = spec.step or size
    starts = range(start, end - size + 1, step)
    samples.unused_rows += end - start if not starts else end - (starts[-1] + size)
    for row in starts:
        samples.x.append(channel_rows[row : row + size] if spec.window else channel_rows[row])
        if label is not None:
            samples.labels.append(label[row])
        if group is not None:
            samples.groups.append(str(group[row] if len(group) > 1 else group[0]))


def _encode_labels(labels: list[Any]) -> tuple[Array | None, tuple[str, ...]]:
    """Labels and class names: numbers stay as they are, strings become the index of their sorted name."""
    if not labels:
        return None, ()
    label_array = np.array(labels)
    if label_array.dtype.kind in "iufb":
        return label_array, ()
    names, class_indices = np.unique(label_array.astype(str), return_inverse=True)
    return class_indices.astype(np.int64), tuple(names.tolist())


def _notes(root: Path, spec: TableSpec, samples: _TableSamples, corrupt_files: list[str], total: int) -> Iterator[str]:
    channels = f"{plural(len(samples.channel_names), 'channel')} ({', '.join(samples.channel_names)})"
    yield f"{root}: {plural(len(samples.x), 'sample')} of {channels} from {plural(total, 'file')}"
    if corrupt_files:
        count = f"{len(corrupt_files)} of {plural(total, 'file')}"
        yield f"{root}: skipped {count} that cannot be used: {format_listing(corrupt_files)}"
    if samples.unused_rows and spec.window:
        count = plural(samples.unused_rows, "row")
        yield f"{root}: {count} at the ends of recordings unused, too few for a window of {spec.window}"
    if spec.window and not samples.groups:
        overlap = " and overlap" if spec.step and spec.step < spec.window else ""
        yield (
            f"{root}: windows of one recording are drawn at random{overlap}: neighbours sit on both sides, and quality "
            "will look better than it is; name `group:`, `session:` or `group_from:`, or give a file for each recording"
        )
