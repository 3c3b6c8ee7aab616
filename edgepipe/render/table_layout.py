"""How a table is laid out in so many terminal columns: the one place that decides it.

In this order, until the table fits:

1. as it is;
2. columns without any text are left out; heads and texts of several words are wrapped, between words, to at most three
   lines, and a text that takes more becomes a footnote;
3. one table becomes up to three, one below the other, each with the first columns repeated;
4. each row becomes a record: what names it, and `column: value` pairs below.

The first column, numbers and single words are never cut or wrapped, so that names can be copied. Without a width, as in
a pipe, nothing is wrapped.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from edgepipe.render.report_tables import TextTable

MAX_ROW_LINES = 3
GAP = 3  # terminal columns between two columns of a table
MARGIN = 2  # the edges of a table
MAX_FOOTNOTES = 10  # of a short table; a long one has at most one for every second row
MARK_WIDTH = 5  # of the number of a footnote; a text that is no longer stands as it is
COMFORTABLE_WIDTH = 20  # of a wrapped text in a table that is split anyway
MAX_PARTS = 3  # tables that one is split into, before records read better
RECORD_INDENT = 4
_BRACKETS = re.compile(r"\[[^\[\]]{,30}\]")
_JOINT = "\0"  # no text that a terminal may get has one


@dataclass(frozen=True)
class Layout:
    """Tables whose cells are wrapped, the lines of records instead of them, and footnotes."""

    grids: tuple[TextTable, ...] = ()
    records: tuple[str, ...] = ()
    footnotes: tuple[str, ...] = ()


def lay_out(table: TextTable, width: int | None) -> Layout:
    """The layout of `table` in `width` terminal columns; None for as many as it takes."""
    if width is None or _total_width(_grid_widths(table)) <= width:
        return Layout(grids=(table,))
    columns = _measure_columns(_without_empty_columns(table))
    for arrange, part_count in ((_wrap_texts, 1), (_wrap_for_parts, MAX_PARTS)):
        cell_widths = arrange(columns, width)
        arranged_table, footnotes = _mark_footnotes(columns.table, cell_widths)
        parts = _split_columns(_wrap_heads(arranged_table), width)
        fits = len(parts) <= part_count and all(_total_width(_grid_widths(part)) <= width for part in parts)
        if fits and len(footnotes) <= max(MAX_FOOTNOTES, len(table.rows) // 2):
            return Layout(grids=parts, footnotes=wrap_footnotes(footnotes, width))
    return Layout(records=tuple(line for row in table.rows for line in _record_lines(table, row, width)))


def wrap_words(text: str, width: int, label: str = "") -> list[str]:
    """`text` in lines of at most `width`, broken between words only: a longer word has a line of its own.

    Args:
        text: one line.
        width: in terminal columns.
        label: stands before the first line; the others are indented by as much.
    """
    indent = " " * display_width(label)
    lines = [" ".join(words) for words in _fill_lines(_split_words(text), width - len(indent))]
    return [f"{indent if number else label}{line}" for number, line in enumerate(lines)]


def display_width(text: str) -> int:
    """The terminal columns that `text` takes."""
    return len(text) if text.isascii() else cell_len(text)


@functools.lru_cache(2**15)
def _split_words(text: str) -> tuple[tuple[str, int], ...]:
    """The parts of `text` that a line may begin with, and the width of each.

    What is in short brackets, such as a shape, stays together.
    """
    joined = _BRACKETS.sub(lambda match: match[0].replace(" ", _JOINT), text)
    words = [word.replace(_JOINT, " ") for word in joined.split(" ")]
    return tuple((word, display_width(word)) for word in words)


def _fill_lines(words: Sequence[tuple[str, int]], width: int) -> list[list[str]]:
    lines: list[list[str]] = [[]]
    used = -1
    for word, word_width in words:
        if lines[-1] and used + 1 + word_width > width:
            lines.append([])
            used = -1
        lines[-1].append(word)
        used += 1 + word_width
    return lines


def wrap_footnotes(footnotes: Sequence[str], width: int) -> tuple[str, ...]:
    """The lines of numbered footnotes."""
    return tuple(
        line
        for number, footnote in enumerate(footnotes, 1)
        for line in wrap_words(footnote, width, label=f" [{number}] ")
    )


@dataclass(frozen=True)
class _MeasuredColumns:
    """A table and the widths that its columns can have."""

    table: TextTable
    natural_widths: tuple[int, ...]  # of columns whose cells are not wrapped, below wrapped heads
    head_widths: tuple[int, ...]  # of the longest word of each head
    least_widths: Mapping[int, tuple[int, ...]]  # of wrappable columns: for each text, in which it takes three lines

    def least_width(self, index: int, share: float) -> int:
        """The least width in which this share of the texts of a column takes up to three lines, and its head fits."""
        widths = self.least_widths[index]
        return max(self.head_widths[index], widths[math.ceil(share * len(widths)) - 1] if widths else 0)


def _measure_columns(table: TextTable) -> _MeasuredColumns:
    wrapped_table = _wrap_heads(table)
    return _MeasuredColumns(
        table,
        tuple(_grid_widths(wrapped_table)),
        tuple(_longest_word(head) for head in table.columns),
        {index: tuple(sorted(_least_text_width(row[index]) for row in table.rows if row[index]))
         for index in _wrappable_columns(table)},
    )  # fmt: skip


def _longest_word(text: str) -> int:
    return max(width for _, width in _split_words(text))


@functools.lru_cache(2**15)
def _least_text_width(text: str) -> int:
    """The least width in which `text` takes up to three lines."""
    width = max(_longest_word(text), math.ceil(display_width(text) / MAX_ROW_LINES))
    while _is_too_tall(text, width):
        width += 1
    return width


def _is_too_tall(text: str, width: int) -> bool:
    words = _split_words(text)
    return any(word_width > width for _, word_width in words) or len(_fill_lines(words, width)) > MAX_ROW_LINES


def _grid_widths(table: TextTable) -> list[int]:
    """The width of each column, where a cell may have several lines."""
    return [max(map(_cell_width, cells)) for cells in zip(table.columns, *table.rows, strict=True)]


def _cell_width(cell: str) -> int:
    return max(map(display_width, cell.split("\n"))) if "\n" in cell else display_width(cell)


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1) + MARGIN


def _without_empty_columns(table: TextTable) -> TextTable:
    indices = [index for index in range(len(table.columns)) if any(row[index] for row in table.rows)]
    return _select_columns(table, indices or [0])


def _wrappable_columns(table: TextTable) -> list[int]:
    """The columns with texts of several words; never the first, which names the row."""
    return [
        index
        for index in range(1, len(table.columns))
        if index not in table.right_aligned and any(" " in row[index] for row in table.rows)
    ]


def _wrap_heads(table: TextTable) -> TextTable:
    """`table` with its column heads wrapped to the width of the cells, or of their longest word."""
    columns = []
    for index, head in enumerate(table.columns):
        cell_width = max((_cell_width(row[index]) for row in table.rows), default=0)
        columns.append("\n".join(wrap_words(head, max(cell_width, _longest_word(head)))))
    return replace(table, columns=tuple(columns))


def _wrap_texts(columns: _MeasuredColumns, width: int) -> dict[int, int]:
    """The widths of wrappable columns, in what the others leave; 0 where all but short texts become footnotes.

    Where there is too little room, the texts that need most become footnotes: first those that are longer than half of
    their column's, then the columns that need most, one by one.
    """
    marked_columns: list[int] = []
    while True:
        for share in (1.0, 0.5):
            widths = _share_width(columns, width, marked_columns, share)
            if widths is not None:
                return {**dict.fromkeys(marked_columns, 0), **widths}
        open_columns = [index for index in columns.least_widths if index not in marked_columns]
        if not open_columns:
            return dict.fromkeys(marked_columns, 0)
        marked_columns.append(max(open_columns, key=lambda index: columns.least_width(index, 0.5)))


def _wrap_for_parts(columns: _MeasuredColumns, width: int) -> dict[int, int]:
    """Widths about as narrow as three lines allow; 0 for columns that would still take half of the terminal."""
    widths: dict[int, int] = {}
    for index in columns.least_widths:
        least_widths = (columns.least_width(index, share) for share in (1.0, 0.5))
        least_width = next((least_width for least_width in least_widths if 2 * least_width <= width), 0)
        comfortable_width = min(COMFORTABLE_WIDTH, columns.natural_widths[index])
        widths[index] = max(least_width, comfortable_width) if least_width else 0
    return widths


def _share_width(
    columns: _MeasuredColumns, width: int, marked_columns: list[int], share: float
) -> dict[int, int] | None:
    """The width of each wrappable column that is not marked; None if they do not fit.

    Args:
        columns: of the table.
        width: of the terminal.
        marked_columns: columns whose texts become footnotes.
        share: of the texts in a column that are to fit into three lines.
    """
    open_columns = [index for index in columns.least_widths if index not in marked_columns]
    widths = {index: columns.least_width(index, share) for index in open_columns}
    mark_widths = {index: max(columns.head_widths[index], MARK_WIDTH) for index in marked_columns}
    fixed_widths = dict(enumerate(columns.natural_widths)) | mark_widths
    spare_width = width - _total_width(list((fixed_widths | widths).values()))
    if spare_width < 0:
        return None
    wishes = {index: columns.natural_widths[index] - widths[index] for index in open_columns}
    for position, index in enumerate(sorted(open_columns, key=lambda index: wishes[index])):
        extra = min(wishes[index], spare_width // (len(open_columns) - position))
        widths[index] += extra
        spare_width -= extra
    return widths


def _mark_footnotes(table: TextTable, width_by_column: Mapping[int, int]) -> tuple[TextTable, list[str]]:
    """Wrap the cells of some columns, and replace those that do not fit into three lines by the number of a footnote.

    Args:
        table: the table.
        width_by_column: the width of each of these columns; 0 makes footnotes of all but short texts.
    """
    number_by_footnote: dict[str, int] = {}
    rows = tuple(
        tuple(
            _fit_cell(cell, width_by_column[index], number_by_footnote) if index in width_by_column and cell else cell
            for index, cell in enumerate(row)
        )
        for row in table.rows
    )
    return replace(table, rows=rows), list(number_by_footnote)


def _fit_cell(text: str, width: int, number_by_footnote: dict[str, int]) -> str:
    if display_width(text) <= MARK_WIDTH:
        return text
    if width and not _is_too_tall(text, width):
        return "\n".join(wrap_words(text, width))
    return f"[{number_by_footnote.setdefault(text, len(number_by_footnote) + 1)}]"


def _split_columns(table: TextTable, width: int) -> tuple[TextTable, ...]:
    """Tables with the first columns of `table` and as many of the others as fit, at least one."""
    widths = _grid_widths(table)
    key_columns = list(range(_key_length(table)))
    parts: list[list[int]] = []
    for index in range(len(key_columns), len(widths)):
        fits = parts and _total_width([widths[i] for i in (*parts[-1], index)]) <= width
        if fits:
            parts[-1].append(index)
        else:
            parts.append([*key_columns, index])
    return tuple(_select_columns(table, part) for part in parts or [key_columns])


def _key_length(table: TextTable) -> int:
    """How many of the first columns tell the rows apart; of texts only, and not all."""
    for length in range(1, len(table.columns) - 1):
        if len({row[:length] for row in table.rows}) == len(table.rows) or length in table.right_aligned:
            return length
    return 1


def _select_columns(table: TextTable, indices: list[int]) -> TextTable:
    return TextTable(
        title=table.title,
        columns=tuple(table.columns[index] for index in indices),
        rows=tuple(tuple(row[index] for index in indices) for row in table.rows),
        right_aligned=frozenset(place for place, index in enumerate(indices) if index in table.right_aligned),
    )


def _record_lines(table: TextTable, row: tuple[str, ...], width: int) -> list[str]:
    """A row as a record: what names it, then its other cells."""
    pairs = [f"{head}: {cell}" if head else cell for head, cell in zip(table.columns[1:], row[1:], strict=True) if cell]
    lines: list[str] = []
    indent = " " * RECORD_INDENT
    for pair in pairs:
        if lines and display_width(f"{lines[-1]}   {pair}") <= width:
            lines[-1] += f"   {pair}"
        else:
            lines += wrap_words(pair, width, label=indent)
    return [f" {row[0]}", *lines]
