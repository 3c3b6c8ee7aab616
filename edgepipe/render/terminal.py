"""Tables on a terminal."""

import errno
import os
from collections.abc import Iterable
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepipe.core.escape import escape_line
from edgepipe.render import report_tables
from edgepipe.render.next_step import closing_lines
from edgepipe.render.report import Report
from edgepipe.render.report_summary import full_command, summary_notes, summary_tables
from edgepipe.render.report_tables import TextTable
from edgepipe.render.table_layout import lay_out, wrap_words

UNLIMITED_WIDTH = 100_000  # of a table whose layout has been decided


class _TerminalConsole(Console):
    """A console that raises on a broken pipe, for the command line to choose the exit code."""

    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1."""
        raise BrokenPipeError(errno.EPIPE, "stdout is closed")


MAX_ROWS = 1000  # of a table; laying out one takes seconds for every thousand


def show_report(report: Report, full: bool = False) -> None:
    """Print a report to stdout: what matters first, or all of it."""
    console = _TerminalConsole(highlight=False)
    title = _build_text(report.name, "bold").append(escape_line(f"  seed {report.seed}  {report.pipeline}"), "not bold")
    console.print()
    console.print(title, soft_wrap=True)
    show_tables(report_tables.tables(report) if full else summary_tables(report))
    show_notes(report_tables.stage_notes(report) if full else summary_notes(report))
    if not full:
        console.print(_build_text(f"all details: {full_command(report)}"), soft_wrap=True)
    style = "green" if report.met else "bold red"
    console.print()
    console.print(_build_text(report_tables.verdict_line(report), style), soft_wrap=True)
    for line in closing_lines(report):
        console.print(_build_text(line), soft_wrap=True)  # paths and commands can be copied as they are


def show_notes(notes: Iterable[str]) -> None:
    """Print notes to stdout, wrapped between words where stdout has a width."""
    console = _TerminalConsole(highlight=False)
    width = output_width(console)
    for note in notes:
        label, text = "note: ", escape_line(note)
        _print_lines(console, [label + text] if width is None else wrap_words(text, width, label))


def show_tables(tables: Iterable[TextTable]) -> None:
    """Print tables to stdout."""
    console = _TerminalConsole(highlight=False)
    for table in tables:
        console.print()
        console.print(_build_text(table.title, "bold"), soft_wrap=True)
        layout = lay_out(_escape_table(replace(table, rows=table.rows[:MAX_ROWS])), output_width(console))
        for number, grid in enumerate(layout.grids):
            _print_lines(console, [*([""] if number else []), *_grid_lines(grid, console)])
        _print_lines(console, (*layout.records, *layout.footnotes))
        if len(table.rows) > MAX_ROWS:
            console.print(_build_text(f"... and {len(table.rows) - MAX_ROWS:,} more rows; --json gives all of them"))
    console.print()


def output_width(console: Console) -> int | None:
    """The columns of the terminal, or of the variable COLUMNS where stdout is none; None in a pipe without it."""
    columns_text = os.environ.get("COLUMNS", "")
    if console.is_terminal:
        return console.width
    return int(columns_text) if columns_text.isdecimal() and int(columns_text) > 0 else None


def _escape_table(table: TextTable) -> TextTable:
    """`table` with every text as the terminal may get it."""
    rows = tuple(tuple(map(escape_line, row)) for row in table.rows)
    return replace(table, columns=tuple(map(escape_line, table.columns)), rows=rows)


def _grid_lines(table: TextTable, console: Console) -> list[str]:
    """The lines of a table, without the spaces that fill them up and the empty lines around it."""
    options = console.options.update(width=UNLIMITED_WIDTH)
    lines = console.render_lines(_build_table(table), options, pad=False)
    texts = ["".join(segment.text for segment in line).rstrip() for line in lines]
    return [text for number, text in enumerate(texts) if text or 0 < number < len(texts) - 1]


def _build_table(table: TextTable) -> Table:
    rich_table = Table(box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(table.columns):
        align_right = index in table.right_aligned
        rich_table.add_column(Text(column), justify="right" if align_right else "left", no_wrap=True)
    for row in table.rows:
        rich_table.add_row(*map(Text, row))
    return rich_table


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _build_text(text: str, style: str = "") -> Text:
    """`text` as rich prints it literally: neither its markup nor its emoji codes nor what controls a terminal."""
    return Text(escape_line(text), style)
