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

import math
import re
from collections.abc import Sequence
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
    if width is None or _grid_width(table) <= width:
        return Layout(grids=(table,))
    table = _without_empty_columns(table)
    for arrange, part_count in ((_wrap_texts, 1), (_wrap_for_parts, MAX_PARTS)):
        arranged_table, footnotes = arrange(table, width)
        parts = _split_columns(_wrap_heads(arranged_table), width)
        fits = len(parts) <= part_count and all(_grid_width(part) <= width for part in parts)
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
    lines, line = [], ""
    for word in _words(text):
        candidate = f"{line} {word}" if line else word
        if line and cell_len(label) + cell_len(candidate) > width:
            lines.append(line)
            candidate = word
        line = candidate
    indent = " " * cell_len(label)
    return [f"{indent if number else label}{line}" for number, line in enumerate([*lines, line])]


def _words(text: str) -> list[str]:
    """The parts of `text` that a line may begin with; what is in short brackets, such as a shape, stays together."""
    joined = _BRACKETS.sub(lambda match: match[0].replace(" ", _JOINT), text)
    return [word.replace(_JOINT, " ") for word in joined.split(" ")]


def wrap_footnotes(footnotes: Sequence[str], width: int) -> tuple[str, ...]:
    """The lines of numbered footnotes."""
    return tuple(
        line
        for number, footnote in enumerate(footnotes, 1)
        for line in wrap_words(footnote, width, label=f" [{number}] ")
    )


def _natural_widths(table: TextTable) -> list[int]:
    return [max(map(_cell_width, column)) for column in _column_cells(table)]


def _column_cells(table: TextTable) -> list[tuple[str, ...]]:
    """The head and the cells of each column."""
    return list(zip(table.columns, *table.rows, strict=True))


def _cell_width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _total_width(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1) + MARGIN


def _grid_width(table: TextTable) -> int:
    return _total_width(_natural_widths(table))


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
        columns.append("\n".join(wrap_words(head, max(cell_width, *map(cell_len, _words(head))))))
    return replace(table, columns=tuple(columns))


def _wrap_texts(table: TextTable, width: int) -> tuple[TextTable, list[str]]:
    """The table with texts wrapped to the width that the other columns leave.

    Where that is too little, the texts that need most become footnotes: first of all those that are longer than half of
    their column's, then the columns that need most, one by one.
    """
    marked_columns: list[int] = []
    while True:
        for share in (1.0, 0.5):
            widths = _share_width(table, width, marked_columns, share)
            if widths is not None:
                return _mark_footnotes(table, {**dict.fromkeys(marked_columns, 0), **widths})
        open_columns = [index for index in _wrappable_columns(table) if index not in marked_columns]
        if not open_columns:
            return _mark_footnotes(table, dict.fromkeys(marked_columns, 0))
        marked_columns.append(max(open_columns, key=lambda index: _least_width(table, index, 0.5)))


def _wrap_for_parts(table: TextTable, width: int) -> tuple[TextTable, list[str]]:
    """The table with texts about as narrow as three lines allow; those that would take half the width as footnotes."""
    widths: dict[int, int] = {}
    for index in _wrappable_columns(table):
        least_widths = (_least_width(table, index, share) for share in (1.0, 0.5))
        least_width = next((least_width for least_width in least_widths if 2 * least_width <= width), 0)
        comfortable_width = min(COMFORTABLE_WIDTH, _natural_widths(table)[index])
        widths[index] = max(least_width, comfortable_width) if least_width else 0
    return _mark_footnotes(table, widths)


def _share_width(table: TextTable, width: int, marked_columns: list[int], share: float) -> dict[int, int] | None:
    """The width of each wrappable column that is not marked; None if they do not fit.

    Args:
        table: the table.
        width: of the terminal.
        marked_columns: columns whose texts become footnotes.
        share: of the texts in a column that are to fit into three lines.
    """
    open_columns = [index for index in _wrappable_columns(table) if index not in marked_columns]
    marked_table, _ = _mark_footnotes(table, dict.fromkeys(marked_columns, 0))
    natural_widths = _natural_widths(_wrap_heads(marked_table))
    widths = {index: _least_width(table, index, share) for index in open_columns}
    spare_width = width - _total_width([widths.get(index, natural) for index, natural in enumerate(natural_widths)])
    if spare_width < 0:
        return None
    for position, index in enumerate(sorted(open_columns, key=lambda index: natural_widths[index] - widths[index])):
        extra = min(natural_widths[index] - widths[index], spare_width // (len(open_columns) - position))
        widths[index] += extra
        spare_width -= extra
    return widths


def _least_width(table: TextTable, index: int, share: float) -> int:
    """The least width in which this share of the texts of a column takes up to three lines, and its head fits."""
    texts = [row[index] for row in table.rows if row[index]]
    least_widths = sorted(map(_least_text_width, texts))
    head_width = max(map(cell_len, _words(table.columns[index])))
    return max(head_width, least_widths[math.ceil(share * len(texts)) - 1] if texts else 0)


def _least_text_width(text: str) -> int:
    """The least width in which `text` takes up to three lines."""
    width = max(max(map(cell_len, _words(text))), math.ceil(cell_len(text) / MAX_ROW_LINES))
    while _is_too_tall(text, width):
        width += 1
    return width


def _is_too_tall(text: str, width: int) -> bool:
    lines = wrap_words(text, width)
    return len(lines) > MAX_ROW_LINES or any(cell_len(line) > width for line in lines)


def _mark_footnotes(table: TextTable, width_by_column: dict[int, int]) -> tuple[TextTable, list[str]]:
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
    if cell_len(text) <= MARK_WIDTH:
        return text
    if width and not _is_too_tall(text, width):
        return "\n".join(wrap_words(text, width))
    return f"[{number_by_footnote.setdefault(text, len(number_by_footnote) + 1)}]"


def _split_columns(table: TextTable, width: int) -> tuple[TextTable, ...]:
    """Tables with the first columns of `table` and as many of the others as fit, at least one."""
    widths = _natural_widths(table)
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
        if lines and cell_len(f"{lines[-1]}   {pair}") <= width:
            lines[-1] += f"   {pair}"
        else:
            lines += wrap_words(pair, width, label=indent)
    return [f" {row[0]}", *lines]
