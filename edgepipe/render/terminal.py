"""Tables on a terminal."""

import errno
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgepipe.core.escape import escape_line
from edgepipe.render import report_tables
from edgepipe.render.report import Report
from edgepipe.render.report_tables import TextTable


class _TerminalConsole(Console):
    """A console that raises on a broken pipe, for the command line to choose the exit code."""

    def on_broken_pipe(self) -> None:
        """Rich would end the process with 1."""
        raise BrokenPipeError(errno.EPIPE, "stdout is closed")


PLAIN_WIDTH = 160  # columns where stdout is no terminal: wide enough that no number is wrapped


def show_report(report: Report) -> None:
    """Print the whole report to stdout."""
    console = _make_console()
    title = _build_text(report.name, "bold").append(escape_line(f"  seed {report.seed}  {report.pipeline}"), "not bold")
    console.print()
    console.print(title)
    show_tables(report_tables.tables(report))
    for note in report_tables.stage_notes(report):
        console.print(_build_text(f"note: {note}"))
    style = "green" if report.met else "bold red"
    console.print()
    console.print(_build_text(report_tables.verdict_line(report), style))


def show_tables(tables: Iterable[TextTable]) -> None:
    """Print tables to stdout."""
    console = _make_console()
    for table in tables:
        console.print()
        console.print(_build_text(table.title, "bold"), soft_wrap=True)
        console.print(_build_table(table))


def _make_console() -> Console:
    console = _TerminalConsole(highlight=False)
    return console if console.is_terminal else _TerminalConsole(width=PLAIN_WIDTH, highlight=False)


def _build_table(table: TextTable) -> Table:
    rich_table = Table(box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(table.columns):
        align_right = index in table.right_aligned
        rich_table.add_column(_build_text(column), justify="right" if align_right else "left", no_wrap=align_right)
    for row in table.rows:
        rich_table.add_row(*map(_build_text, row))
    return rich_table


def _build_text(text: str, style: str = "") -> Text:
    """`text` as rich prints it literally: neither its markup nor its emoji codes nor what controls a terminal."""
    return Text(escape_line(text), style)
