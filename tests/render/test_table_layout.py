"""Tables in so many columns: nothing is lost, nothing is cut, no row takes more than three lines."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from edgepipe.render.report_tables import TextTable
from edgepipe.render.table_layout import MAX_ROW_LINES, Layout, lay_out, wrap_words
from edgepipe.render.terminal import show_tables

WORDS = st.sampled_from(["a", "of", "met", "size", "planned", "CONV_2D", "estimated", "operators/7", "pip.package-1.0"])
NAMES = st.integers(1, 60).map(lambda length: ("block_1/expand." * 4)[:length])
PROSE = st.lists(WORDS, max_size=30).map(" ".join)
NUMBERS = st.integers(0, 10**9).map("{:,} B".format)


@st.composite
def tables(draw: st.DrawFn) -> TextTable:
    """A table whose first column has names; the others have names, prose or numbers."""
    kinds = [NAMES, *draw(st.lists(st.sampled_from([NAMES, PROSE, NUMBERS]), max_size=9))]
    heads = tuple(draw(WORDS) for _ in kinds)
    rows = draw(st.lists(st.tuples(*kinds), min_size=1, max_size=8))
    return TextTable("t", heads, tuple(rows), frozenset(i for i, kind in enumerate(kinds) if kind is NUMBERS))


def _shown_words(layout: Layout) -> set[str]:
    cells = [cell for grid in layout.grids for row in (grid.columns, *grid.rows) for cell in row]
    return set(re.split(r"\s+", "\n".join([*cells, *layout.records, *layout.footnotes])))


@given(tables(), st.integers(20, 200))
@example(TextTable("t", ("a", "b"), (("x", "one two " * 40),)), 80)
@example(TextTable("t", ("a", "b"), (("x" * 60, "y" * 60),)), 80)
def test_every_word_is_shown_whole_and_fits(table: TextTable, width: int) -> None:
    layout = lay_out(table, width)
    assert {word for row in table.rows for cell in row for word in cell.split()} <= _shown_words(layout)
    for grid in layout.grids:
        total = sum(max(cell_len(line) for cell in column for line in cell.split("\n"))
                    for column in zip(grid.columns, *grid.rows, strict=True))  # fmt: skip
        assert total + 3 * (len(grid.columns) - 1) + 2 <= width
        assert all(cell.count("\n") < MAX_ROW_LINES for row in grid.rows for cell in row)
        assert all("\n" not in row[0] for row in grid.rows)
    for line in (*layout.records, *layout.footnotes):
        longest = max(map(cell_len, re.split(r" +", line.strip())))
        assert cell_len(line) <= max(width, longest + 40), "only a word that is longer than the line exceeds it"


@given(tables(), st.integers(20, 200))
def test_every_row_is_there_and_every_footnote_is_found(table: TextTable, width: int) -> None:
    layout = lay_out(table, width)
    for grid in layout.grids:
        assert [row[0] for row in grid.rows] == [row[0] for row in table.rows]
    if layout.records:
        assert [line[1:] for line in layout.records if not line.startswith("  ")] == [row[0] for row in table.rows]
    marks = {
        mark for grid in layout.grids for row in grid.rows for cell in row for mark in re.findall(r"^\[\d+\]$", cell)
    }
    notes = {match[1] for line in layout.footnotes if (match := re.match(r" (\[\d+\]) ", line))}
    assert marks == notes


def test_without_a_width_a_row_is_a_line() -> None:
    table = TextTable("t", ("a", "how"), (("x", "one two " * 100),))
    assert lay_out(table, None) == Layout(grids=(table,))


WRAPPED = [
    ("one two three", 7, "", ["one two", "three"]),
    ("one two three", 9, "[1] ", ["[1] one", "    two", "    three"]),
    ("a/very/long/path is kept", 8, "", ["a/very/long/path", "is kept"]),
    ("", 8, "- ", ["- "]),
    ("int8[1, 64] int8[10, 64]", 12, "", ["int8[1, 64]", "int8[10, 64]"]),
    (f"[{'a ' * 20}]", 12, "", ["[a a a a a a", "a a a a a a", "a a a a a a", "a a ]"]),  # too long to stay together
    ("日本 日本", 4, "", ["日本", "日本"]),  # of two columns each
]


@pytest.mark.parametrize(("text", "width", "label", "lines"), WRAPPED)
def test_wrapping(text: str, width: int, label: str, lines: list[str]) -> None:
    assert wrap_words(text, width, label) == lines


TALL = TextTable(
    "tall",
    ("metric", "value", "how"),
    (("latency", "1 ms", "short"), ("ram", "2 KiB", "word " * 30 + "end"), ("flash", "3 KiB", "word " * 30 + "end")),
    frozenset({1}),
)
RULE = "\u2500"
IN_A_LINE = ["", "tall", " metric    value   how", f" {RULE * 171}", " latency    1 ms   short"]
IN_FORTY = ["", "tall", " metric    value   how", f" {RULE * 23}", " latency    1 ms   short", " ram       2 KiB   [1]",
            " flash     3 KiB   [1]", f" [1]{' word' * 7}", f"    {' word' * 7}"]  # fmt: skip
WIDTHS = {None: (IN_A_LINE, 8), "200": (IN_A_LINE, 8), "40": (IN_FORTY, 13)}  # the first lines, and how many there are


@pytest.mark.parametrize(("columns", "shown"), WIDTHS.items())
def test_columns_counts_in_a_pipe_too(
    columns: str | None,
    shown: tuple[list[str], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lines end where their text does; without COLUMNS a row stays on one line."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    show_tables([TALL])
    lines = capsys.readouterr().out.splitlines()
    first_lines, line_count = shown
    assert lines[: len(first_lines)] == first_lines
    assert len(lines) == line_count
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("columns", ["", "0", "-5", "wide"])
def test_columns_that_are_no_width_are_as_none(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show_tables([TALL])
    assert "[1]" not in capsys.readouterr().out


def test_a_terminal_without_unicode_gets_no_lines_it_cannot_show(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "from edgepipe.render.terminal import *; show_tables([TextTable('t', ('a', 'b'), (('x', 'y'),))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={"PYTHONIOENCODING": "ascii",
                          "PYTHONPATH": str(Path(__file__).resolve().parents[2])}, check=True)  # fmt: skip
    assert done.stdout.isascii()
