"""How a text table is written - separator, decimal mark, header - and which of its columns are times or indices.

Detected from the first lines, without pandas; an option of the pipeline overrides each.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

WHITESPACE = r"\s+"
_SEPARATORS = (",", ";", "\t", "|", WHITESPACE)
PREVIEW_ROWS, _PREVIEW_BYTES = 200, 1 << 18
_MIN_REGULAR = 0.9  # share of the lines that have the usual number of columns
_INTEGER_PATTERN = re.compile(r"[-+]?\d+")
_POINT_PATTERN, _COMMA_PATTERN = (re.compile(rf"[-+]?\d*{mark}\d+([eE][-+]?\d+)?") for mark in (r"\.", ","))
_DATE_PATTERN = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}( .*)?|\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?"
)
_TIME_NAME_PATTERN = re.compile(
    r"(unix|epoch|utc|local|gps|sensor|system|elapsed)*"
    r"(timestamps?|datetime|date|times?|t|ts|epoch|seconds?|secs?|millis(econds)?|ms|us|ns)(s|ms|us|ns|sec|seconds)?"
)
_INDEX_NAME_PATTERN = re.compile(
    r"(row|sample|frame|record|line)?(index|idx|id|no|nr|num|number|counter|count)?|unnamed"
)
_LABEL_NAMES = ("label", "labels", "class", "target", "activity", "gesture", "category", "y")


@dataclass(frozen=True)
class TableFormat:
    """How the columns and numbers of a text table are written."""

    separator: str
    decimal: str
    has_header: bool

    def describe(self) -> str:
        """In words, with what is not usual."""
        names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "'|'", WHITESPACE: "spaces"}
        separator_text = names.get(self.separator, repr(self.separator))
        header_text = "" if self.has_header else ", no header line (columns are called column_1, column_2, ..)"
        decimal_text = ", decimal commas" if self.decimal == "," else ""
        return f"separated by {separator_text}{decimal_text}{header_text}"


@dataclass(frozen=True)
class TablePreview:
    """The format of a table, and its first rows as texts, by column."""

    format: TableFormat
    columns: Mapping[str, Sequence[str]]


def preview_table(
    path: Path, separator: str | None = None, decimal: str | None = None, has_header: bool | None = None
) -> TablePreview:
    """The format and the first rows of the text table at `path`; what is None is detected.

    Args:
        path: the file.
        separator: between columns; a regular expression for more than one space.
        decimal: the decimal mark.
        has_header: whether the first line names the columns.

    Raises:
        OSError: the file cannot be read.
    """
    lines = _read_lines(path)
    separator = separator or _detect_separator(lines)
    rows = _split(lines, separator)
    decimal = decimal or _detect_decimal(rows, separator)
    has_header = has_header if has_header is not None else _detect_header(rows, decimal)
    columns = {
        name: [row[position] if position < len(row) else "" for row in (rows[1:] if has_header else rows)]
        for position, name in enumerate(_column_names(rows, has_header))
    }
    return TablePreview(TableFormat(separator, decimal, has_header), columns)


def _column_names(rows: list[list[str]], has_header: bool) -> list[str]:
    """The names in the first line, those that are missing as pandas calls them; else column_1, column_2, ..."""
    first = rows[0] if rows else []
    if has_header:
        return [name or f"Unnamed: {position}" for position, name in enumerate(first)]
    return [f"column_{number}" for number in range(1, len(first) + 1)]


def is_table(path: Path) -> bool:
    """Whether a text file holds a table rather than prose, such as a README: its lines have as many columns each."""
    try:
        lines = _read_lines(path)
    except OSError:
        return True  # reading it will report why
    rows = _split(lines, _detect_separator(lines))
    has_numbers = any(_is_number(cell) for row in rows for cell in row)
    return not rows or (has_numbers and _regular_share(rows) >= _MIN_REGULAR)


def _read_lines(path: Path) -> list[str]:
    with path.open("rb") as stream:
        content = stream.read(_PREVIEW_BYTES)
    lines = content.decode("utf-8-sig", "replace").splitlines()
    is_cut = len(content) == _PREVIEW_BYTES and len(lines) > 1  # the last line may be half of one
    return [line for line in islice(lines[:-1] if is_cut else lines, PREVIEW_ROWS + 1) if line.strip()]


def _split(lines: Sequence[str], separator: str) -> list[list[str]]:
    if separator == WHITESPACE or len(separator) > 1:
        return [re.split(separator, line.strip()) for line in lines]
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except csv.Error:
        return [line.split(separator) for line in lines]


def _detect_separator(lines: Sequence[str]) -> str:
    """The separator that gives every line as many columns, most of them numbers; a comma if none does."""
    scores = {separator: _score(_split(lines, separator)) for separator in _SEPARATORS}
    best = max(_SEPARATORS, key=lambda separator: scores[separator])
    return best if scores[best] > (False, 0.0, 1) else ","


def _score(rows: list[list[str]]) -> tuple[bool, float, int]:
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    cells = [cell for row in rows[1:] or rows for cell in row]
    number_share = sum(map(_is_number, cells)) / max(len(cells), 1)
    return width > 1 and _regular_share(rows) >= _MIN_REGULAR, round(number_share, 1), width


def _regular_share(rows: list[list[str]]) -> float:
    return Counter(map(len, rows)).most_common(1)[0][1] / len(rows) if rows else 0.0


def _is_number(cell: str) -> bool:
    return any(pattern.fullmatch(cell) for pattern in (_INTEGER_PATTERN, _POINT_PATTERN, _COMMA_PATTERN))


def _detect_decimal(rows: list[list[str]], separator: str) -> str:
    counts = [
        sum(bool(pattern.fullmatch(cell)) for row in rows for cell in row)
        for pattern in (_POINT_PATTERN, _COMMA_PATTERN)
    ]
    return "," if separator != "," and counts[1] > counts[0] else "."


def _detect_header(rows: list[list[str]], decimal: str) -> bool:
    """Not if the first line holds decimal or negative numbers, or integers that are no names such as 0, 1, 2."""
    first = rows[0] if rows else []
    fraction_pattern = _COMMA_PATTERN if decimal == "," else _POINT_PATTERN
    if any(fraction_pattern.fullmatch(cell) or re.fullmatch(r"-\d+", cell) for cell in first):
        return False
    are_integers = bool(first) and all(_INTEGER_PATTERN.fullmatch(cell) for cell in first)
    return not are_integers or [int(cell) for cell in first] in [
        list(range(start, start + len(first))) for start in (0, 1)
    ]


def find_time_columns(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The columns that are times or indices rather than signals, each with what shows it."""
    reason_by_column = {name: _time_reason(name, cells) for name, cells in columns.items()}
    return {name: reason for name, reason in reason_by_column.items() if reason}


def _time_reason(name: str, cells: Sequence[str]) -> str:
    filled_cells = [cell for cell in cells if cell]
    if filled_cells and all(_DATE_PATTERN.fullmatch(cell) for cell in filled_cells):
        return "holds dates or times of day"
    plain_name = re.sub(r"[^a-z]", "", name.lower().partition("(")[0])
    if not plain_name:
        return ""  # such as a column called 0
    kind = "a time" if _TIME_NAME_PATTERN.fullmatch(plain_name) else ""
    kind = kind or ("an index" if _INDEX_NAME_PATTERN.fullmatch(plain_name) else "")
    return f"is named and rises like {kind}" if kind and _rises(filled_cells) else ""


def _rises(cells: Sequence[str]) -> bool:
    """Whether the numbers rise from row to row, but for the few places where a new recording may begin."""
    try:
        numbers = [float(cell.replace(",", ".")) for cell in cells]
    except ValueError:
        return False
    steps = [following - number for number, following in pairwise(numbers)]
    return len(steps) >= 2 and sum(step >= 0 for step in steps) >= _MIN_REGULAR * len(steps) and sum(steps) != 0


def find_label_column(columns: Mapping[str, Sequence[str]]) -> str | None:
    """The column that is named like a label; None if there is none."""
    return next((name for name in columns if name.strip().lower() in _LABEL_NAMES), None)
