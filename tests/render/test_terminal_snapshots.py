"""What commands print at 80, 120 and 200 columns and in a pipe: no name cut, no row taller than three lines at 120."""

import re

import pytest
from terminal_samples import DEVICES, FOLDER, LAYERS, SHOW, WIDTHS, shown

from edgepipe.stages.registry import STAGE_REFERENCES

CASES = [(name, width) for name in SHOW for width in WIDTHS]
NAMES = {
    "run": ("prune_to_three_quarters", *DEVICES[:3], "runs/digits/20261128-095323-a14fd98f/model.tflite"),
    "run_full": (*LAYERS, "prune_to_three_quarters", *DEVICES[:3]),
    "profile": DEVICES[:3],
    "profile_all": DEVICES[:3],
    "verify": DEVICES[:3],
    "sensitivity": LAYERS,
    "device_list": DEVICES,
    "stages": tuple(STAGE_REFERENCES),
}


@pytest.mark.parametrize(("name", "width"), CASES)
def test_snapshot(name: str, width: str) -> None:
    """To accept a change: `python tests/render/terminal_samples.py`."""
    assert shown(name, width) == (FOLDER / f"{name}_{width}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "width"), CASES)
def test_names_can_be_copied_and_nothing_is_padded(name: str, width: str) -> None:
    lines = shown(name, width).splitlines()
    words = {word.rstrip(":;,") for line in lines for word in line.split()}
    assert set(NAMES[name]) <= words
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("name", SHOW)
@pytest.mark.parametrize("width", ["80", "120"])
def test_a_table_fits_and_its_rows_have_at_most_three_lines(name: str, width: str) -> None:
    """A table is what follows a rule until an empty line; a line without a first cell continues the row above it."""
    height = 0
    in_table = False
    for line in shown(name, width).splitlines():
        in_table = bool(line) and (in_table or re.fullmatch(r" ─+", line) is not None)
        if in_table and not re.match(r" \[\d+\] ", line):
            assert len(line) <= int(width)
            height = height + 1 if line.startswith("   ") else 1
            assert height <= 3, line
        elif in_table:
            in_table = False  # footnotes


def test_in_a_pipe_a_row_is_a_line() -> None:
    rows = [line for line in shown("device_list", "piped").splitlines() if line.startswith(" ")]
    assert len(rows) == 2 + len(DEVICES)
