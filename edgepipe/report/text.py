"""Tables on a terminal."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgepipe.report import rows
from edgepipe.report.report import Report
from edgepipe.report.rows import Rows

PLAIN_WIDTH = 160  # columns where stdout is no terminal: wide enough that no number is wrapped


def show(report: Report) -> None:
    """Print the whole report to stdout."""
    console = _console()
    console.print(f"\n[bold]{escape(report.name)}[/bold]  seed {report.seed}  {report.pipeline}", highlight=False)
    show_tables(rows.tables(report))
    for note in rows.notes(report):
        console.print(f"note: {note}", markup=False, highlight=False)
    style = "green" if report.met else "bold red"
    console.print(f"\n{escape(rows.verdict(report))}", style=style, highlight=False)


def show_tables(tables: Iterable[Rows]) -> None:
    """Print tables to stdout."""
    console = _console()
    for table in tables:
        console.print()
        console.print(_table(table))


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)


def _table(table: Rows) -> Table:
    made = Table(title=escape(table.title), title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(table.columns):
        right = index in table.right
        made.add_column(escape(column), justify="right" if right else "left", no_wrap=right)
    for row in table.rows:
        made.add_row(*(escape(cell) for cell in row))
    return made
