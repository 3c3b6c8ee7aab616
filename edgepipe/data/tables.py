"""Sensor windows, or plain rows, from CSV and Parquet files, read with pandas."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ListedError, ToolError, did_you_mean
from edgepipe.core.progress import count_steps
from edgepipe.core.units import plural
from edgepipe.data.class_folders import MAX_LISTED, format_listing
from edgepipe.data.data_spec import CsvSpec, TableSpec, find_table_files, find_unread_files
from edgepipe.data.raw_samples import FLOAT32_MAX, RawDataset, RawSplit
from edgepipe.data.split_names import Split
from edgepipe.data.table_format import (
    PREVIEW_ROWS,
    TableFormat,
    TablePreview,
    find_label_column,
    find_time_columns,
    preview_table,
)

MAX_COLUMNS = 4096
MAX_HEADER_BYTES = 2**20


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
    time_columns: dict[str, str] | None = None  # that are no channels, with the reason, as the first file shows them
    label_like_column: str | None = None  # a channel that is named like a label
    formats: set[str] = field(default_factory=set)
    file_names: list[str] = field(default_factory=list)


def read(root: Path, spec: TableSpec) -> RawDataset:
    """Samples (n, window, channels), or (n, channels) without a `window`; labels and groups from columns or file names.

    Raises:
        InputError: missing columns, or files that cannot be used (the message names all) unless `skip_corrupt` is set.
        ToolError: pandas is not installed.
    """
    _import_pandas()
    paths, table_samples, corrupt_files = find_table_files(root, spec), _TableSamples(), []
    for path in count_steps(paths, f"reading {root}"):
        try:
            _read_file(path, root, spec, table_samples)
        except _CorruptTable as reason:
            corrupt_files.append(f"{path} ({reason})")
    if corrupt_files and not spec.skip_corrupt:
        raise ListedError(
            f"{root}: {len(corrupt_files)} of {plural(len(paths), 'file')} cannot be used; fix them, or set "
            "`skip_corrupt: true`:",
            corrupt_files,
        )
    if not table_samples.x:
        raise InputError(f"{root}: no samples in {plural(len(paths), 'file')}{_empty_reason(spec, corrupt_files)}")
    unknown_columns = [name for name in spec.ignore if name not in table_samples.ignored_columns]
    if unknown_columns:
        hint = did_you_mean(unknown_columns[0], table_samples.channel_names)
        raise InputError(f"{root}: `ignore` names a column '{unknown_columns[0]}' that no file has{hint}")
    y, class_names = _encode_labels(table_samples.labels)
    raw_split = RawSplit(
        np.stack(table_samples.x).astype(np.float32),
        y,
        np.array(table_samples.groups) if table_samples.groups else None,
    )
    notes = tuple(_table_notes(root, spec, table_samples, corrupt_files, len(paths)))
    return RawDataset(
        str(root), {Split.TRAIN: raw_split}, class_names, notes, channel_names=table_samples.channel_names
    )


def _empty_reason(spec: TableSpec, corrupt_files: list[str]) -> str:
    if corrupt_files:
        return f"; skipped {len(corrupt_files)}: {', '.join(corrupt_files[:MAX_LISTED])}"
    return f", none has {plural(spec.window, 'consecutive row')} with one label and group" if spec.window else ""


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ToolError('CSV and Parquet files need pandas: pip install "edgepipe[data]"') from None
    return pandas


def _read_file(path: Path, root: Path, spec: TableSpec, table_samples: _TableSamples) -> None:
    table, preview = _read_table(path, spec)
    table_samples.ignored_columns |= set(map(str, table.columns)) & set(spec.ignore)
    relative_path = path.relative_to(root).as_posix() if root.is_dir() else path.name
    if table_samples.time_columns is None:
        table_samples.time_columns = find_time_columns(preview.columns)
    channel_columns = _channel_columns(table, spec, table_samples.time_columns)
    if table_samples.channel_names and channel_columns != table_samples.channel_names:
        raise _CorruptTable(
            f"its channels are {', '.join(channel_columns)}, "
            f"those of earlier files are {', '.join(table_samples.channel_names)}"
        )
    channel_rows = _read_channels(table, channel_columns)
    row_labels = _row_values(table, spec.label, relative_path, spec.label_from)
    row_groups = _row_values(table, spec.group, relative_path, spec.group_from)
    row_sessions = _row_values(table, spec.session, relative_path, None)
    table_samples.channel_names = channel_columns
    table_samples.formats.add(preview.format.describe())
    table_samples.file_names.append(relative_path)
    if spec.label is None and spec.label_from is None and not spec.channels:
        table_samples.label_like_column = find_label_column(dict.fromkeys(channel_columns, ()))
    for start, end in _constant_runs(
        [series for series in (row_labels, row_groups, row_sessions) if series is not None], len(channel_rows)
    ):
        _cut_windows(
            channel_rows,
            start,
            end,
            row_labels,
            row_groups if row_groups is not None else _recording_group(row_sessions, relative_path, root),
            spec,
            table_samples,
        )


def _read_table(path: Path, spec: TableSpec) -> tuple[Any, TablePreview]:
    """The table as pandas reads it, and its format and first rows."""
    try:
        table, preview = _read_csv(path, spec) if isinstance(spec, CsvSpec) else _read_parquet(path)
    except UnicodeDecodeError as error:
        raise _CorruptTable(f"is not UTF-8 text at byte {error.start}") from None
    except (ValueError, OSError) as error:  # pandas' ParserError and pyarrow's ArrowInvalid are ValueErrors
        raise _CorruptTable(" ".join(str(error).split())[:200] or type(error).__name__) from None
    if len(table) == 0:
        raise _CorruptTable("holds no rows")
    if len(table.columns) > MAX_COLUMNS:
        raise _CorruptTable(f"has {len(table.columns):,} columns; at most {MAX_COLUMNS:,} are read")
    return table, preview


def _read_csv(path: Path, spec: CsvSpec) -> tuple[Any, TablePreview]:
    pandas = _import_pandas()
    _check_first_line(path)
    preview = preview_table(path, spec.separator, spec.decimal, spec.header)
    if len(preview.columns) > MAX_COLUMNS:
        raise _CorruptTable(f"begins with a line of {len(preview.columns):,} columns; at most {MAX_COLUMNS:,} are read")
    layout = preview.format
    options: dict[str, Any] = {"sep": layout.separator, "decimal": layout.decimal, "skipinitialspace": True}
    if layout.has_header:
        _check_header(path, options)
        return pandas.read_csv(path, **options), preview
    _check_no_header_is_needed(path, spec, list(preview.columns))
    return pandas.read_csv(path, header=None, names=list(preview.columns), **options), preview


def _check_first_line(path: Path) -> None:
    with path.open("rb") as stream:
        if len(stream.readline(MAX_HEADER_BYTES)) == MAX_HEADER_BYTES:
            raise _CorruptTable(f"begins with a line of over 1 MiB of columns; at most {MAX_COLUMNS:,} are read")


def _read_parquet(path: Path) -> tuple[Any, TablePreview]:
    table = _import_pandas().read_parquet(path)
    first_rows = {
        str(name): [str(value) for value in table[name].iloc[:PREVIEW_ROWS]]
        for name in table.columns
        if table[name].dtype.kind in "iufM" or table[name].dtype == object
    }
    return table, TablePreview(TableFormat("", ".", has_header=True), first_rows)


def _check_header(path: Path, options: dict[str, Any]) -> None:
    """Check what pandas accepts silently: it renames duplicate columns."""
    header = _import_pandas().read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **options)
    column_names = [str(name) for name in header.iloc[0]]
    name_counts = Counter(column_names)
    repeated_names = sorted(name for name, count in name_counts.items() if count > 1)
    if repeated_names:
        raise _CorruptTable(f"{name_counts[repeated_names[0]]} columns are named '{repeated_names[0]}'")


def _check_no_header_is_needed(path: Path, spec: CsvSpec, column_names: list[str]) -> None:
    """A file without a header line can be used if the options name its columns by their numbers, or none."""
    wanted_names = [*spec.channels, *spec.ignore, *filter(None, (spec.label, spec.group, spec.session))]
    if not all(name in column_names for name in wanted_names):
        with path.open(encoding="utf-8") as stream:
            first_line = stream.readline().strip()
        raise _CorruptTable(
            f"begins with numbers ({first_line[:60]}); its first line must name the columns, or call them "
            f"{column_names[0]} .. {column_names[-1]}"
        )


def _channel_columns(table: Any, spec: TableSpec, time_columns: Mapping[str, str]) -> tuple[str, ...]:
    present_columns = [str(column) for column in table.columns]
    required_columns = [name for name in (*spec.channels, spec.label, spec.group, spec.session) if name is not None]
    for name in required_columns:
        if name not in present_columns:
            raise _CorruptTable(f"no column '{name}'{did_you_mean(name, present_columns)}")
    if spec.channels:
        return spec.channels
    other_columns = {spec.label, spec.group, spec.session, *spec.ignore, *time_columns}
    channel_names = tuple(name for name in present_columns if name not in other_columns)
    unnamed_columns = [name for name in channel_names if name.startswith("Unnamed: ")]
    if unnamed_columns:
        raise _CorruptTable(
            f"a column has no name (an index?); put '{unnamed_columns[0]}' into `ignore`, or list `channels`"
        )
    if not channel_names:
        raise _CorruptTable("no column is left for the channels; name them as `channels`")
    return channel_names


def _read_channels(table: Any, channel_columns: tuple[str, ...]) -> Array:
    pandas = _import_pandas()
    channel_arrays = []
    for name in channel_columns:
        if table[name].dtype.kind in "mM":
            raise _CorruptTable(f"column '{name}' holds times; put it into `ignore`")
        numbers = pandas.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad_row_indices = np.flatnonzero(~(np.abs(numbers) <= FLOAT32_MAX))
        if len(bad_row_indices):
            raise _CorruptTable(_describe_bad_cell(table[name], bad_row_indices))
        channel_arrays.append(numbers)
    return np.stack(channel_arrays, axis=1)


def _describe_bad_cell(column: Any, bad_row_indices: Array) -> str:
    row, cell = int(bad_row_indices[0]) + 1, column.iloc[int(bad_row_indices[0])]
    is_empty = column.isna().iloc[int(bad_row_indices[0])]
    problem = " is empty" if is_empty else f": '{cell}' is not a finite float32 number"
    is_all_bad = len(bad_row_indices) == len(column) > 1
    hint = "; all are: put the column into `ignore`, or name it as label, group or session" if is_all_bad else ""
    return f"row {row}, column '{column.name}'{problem} ({len(bad_row_indices)} such{hint})"


def _row_values(table: Any, column_name: str | None, relative_path: str, pattern: str | None) -> Array | None:
    """One value per row: the column, or what `pattern` matches in the path; None if neither is given."""
    if column_name is not None:
        column_values = table[column_name]
        if column_values.isna().any():
            raise _CorruptTable(
                f"row {int(np.flatnonzero(column_values.isna())[0]) + 1}, column '{column_name}' is empty"
            )
        return np.asarray(column_values)
    if pattern is None:
        return None
    match = re.search(pattern, relative_path)
    if match is None:
        raise _CorruptTable(f"its name does not match '{pattern}'")
    return np.full(len(table), match.group(1) if match.re.groups else match.group())


def _recording_group(row_sessions: Array | None, relative_path: str, root: Path) -> Array | None:
    """The default group: the session or, with several files, the file."""
    if row_sessions is not None:
        return row_sessions
    return None if root.is_file() else np.array([relative_path])


def _constant_runs(row_series: list[Array], row_count: int) -> Iterator[tuple[int, int]]:
    """The ranges [start, end) of rows in which no series changes."""
    changes = np.zeros(max(row_count - 1, 0), bool)
    for row_values in row_series:
        changes |= row_values[1:] != row_values[:-1]
    run_edges = [0, *(np.flatnonzero(changes) + 1), row_count]
    yield from itertools.pairwise(run_edges)


def _cut_windows(
    channel_rows: Array,
    start_row: int,
    end_row: int,
    row_labels: Array | None,
    row_groups: Array | None,
    spec: TableSpec,
    table_samples: _TableSamples,
) -> None:
    window_size = spec.window or 1
    step = spec.step or window_size
    window_starts = range(start_row, end_row - window_size + 1, step)
    table_samples.unused_rows += (
        end_row - start_row if not window_starts else end_row - (window_starts[-1] + window_size)
    )
    for row in window_starts:
        table_samples.x.append(channel_rows[row : row + window_size] if spec.window else channel_rows[row])
        if row_labels is not None:
            table_samples.labels.append(row_labels[row])
        if row_groups is not None:
            table_samples.groups.append(str(row_groups[row] if len(row_groups) > 1 else row_groups[0]))


def _encode_labels(labels: list[Any]) -> tuple[Array | None, tuple[str, ...]]:
    """Labels and class names: numbers stay as they are, strings become the index of their sorted name."""
    if not labels:
        return None, ()
    label_array = np.array(labels)
    if label_array.dtype.kind in "iufb":
        return label_array, ()
    class_names, class_indices = np.unique(label_array.astype(str), return_inverse=True)
    return class_indices.astype(np.int64), tuple(class_names.tolist())


def _column_notes(root: Path, spec: TableSpec, table_samples: _TableSamples) -> Iterator[str]:
    """What each column is used for, other than as a channel."""
    roles = {"label": spec.label, "group": spec.group, "session": spec.session}
    role_texts = [f"{role} from '{column}'" for role, column in roles.items() if column is not None]
    if role_texts:
        yield f"{root}: {', '.join(role_texts)}"
    named_columns = {*roles.values(), *spec.channels, *spec.ignore}
    for name, reason in (table_samples.time_columns or {}).items():
        if name not in named_columns and not spec.channels:
            yield f"{root}: column '{name}' is not read: it {reason}; name it in `channels` to read it"
    if table_samples.label_like_column is not None:
        name = table_samples.label_like_column
        yield f"{root}: column '{name}' is read as a channel, and samples have no labels; is it `label: {name}`?"


def _table_notes(
    root: Path, spec: TableSpec, table_samples: _TableSamples, corrupt_files: list[str], file_count: int
) -> Iterator[str]:
    channels_text = f"{plural(len(table_samples.channel_names), 'channel')} ({', '.join(table_samples.channel_names)})"
    yield f"{root}: {plural(len(table_samples.x), 'sample')} of {channels_text} from {plural(file_count, 'file')}"
    if isinstance(spec, CsvSpec):
        yield f"{root}: {'; '.join(sorted(table_samples.formats))} (`separator`, `decimal` and `header` override this)"
    yield from _column_notes(root, spec, table_samples)
    if root.is_dir():
        yield f"{root}: read: {format_listing(table_samples.file_names)}"
        unread_names = [path.relative_to(root).as_posix() for path in find_unread_files(root, spec)]
        if unread_names:
            yield f"{root}: not read, as they are no tables: {format_listing(unread_names)}"
    if corrupt_files:
        count_text = f"{len(corrupt_files)} of {plural(file_count, 'file')}"
        yield f"{root}: skipped {count_text} that cannot be used: {format_listing(corrupt_files)}"
    if table_samples.unused_rows and spec.window:
        count_text = plural(table_samples.unused_rows, "row")
        yield f"{root}: {count_text} at the ends of recordings unused, too few for a window of {spec.window}"
    if spec.window and not table_samples.groups:
        overlap = " and overlap" if spec.step and spec.step < spec.window else ""
        yield (
            f"{root}: windows of one recording are drawn at random{overlap}: neighbours sit on both sides, and quality "
            "will look better than it is; name `group:`, `session:` or `group_from:`, or give a file for each recording"
        )
