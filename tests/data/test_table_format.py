"""Text tables as instruments and spreadsheets write them: separators, decimal commas, headers, times and indices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import CsvSpec
from edgepipe.data.dataset_loading import read
from edgepipe.data.split_names import Split

FILES: dict[str, tuple[str, tuple[str, ...], str]] = {
    # content of three rows -> channels, part of the notes
    "commas": ("ax,ay\n1.5,2\n2.5,3\n-1,4\n", ("ax", "ay"), "separated by commas ("),
    "semicolons, decimal commas": (
        "timestamp;ax;ay\n0;1,5;2\n10;2,5;3\n20;-1;4\n", ("ax", "ay"), "semicolons, decimal commas"),
    "semicolons, decimal points": ("ax;ay\n1.5;2\n2.5;3\n-1;4\n", ("ax", "ay"), "separated by semicolons ("),
    "tabs": ("t\tax\tay\n0.0\t1.5\t2\n0.1\t2.5\t3\n0.2\t-1\t4\n", ("ax", "ay"), "column 't' is not read"),
    "spaces, no header": (
        "  1.5e+000  2.0\n  2.5  3.0\n -1.0  4.0\n", ("column_1", "column_2"), "separated by spaces, no header"),
    "commas, no header": ("1.5,2\n2.5,3\n-1,4\n", ("column_1", "column_2"), "no header line"),
    "semicolons, no header": ("1,5;2\n2,5;3\n-1;4\n", ("column_1", "column_2"), "decimal commas, no header line"),
    "bars": ("ax|ay\n1.5|2\n2.5|3\n-1|4\n", ("ax", "ay"), "separated by '|'"),
    "quoted names": ('"acc, x","acc, y"\n1.5,2\n2.5,3\n-1,4\n', ("acc, x", "acc, y"), "separated by commas"),
    "a mark in front": ("\ufefftime,ax,ay\n5,1.5,2\n6,2.5,3\n7,-1,4\n", ("ax", "ay"), "column 'time' is not read"),
    "numbered columns": ("0,1\n1.5,2\n2.5,3\n-1,4\n", ("0", "1"), "separated by commas"),
    "dates": (
        "Date Time,ax,ay\n2026-01-01 10:00:00,1.5,2\n2026-01-01 10:00:01,2.5,3\n2026-01-01 10:00:02,-1,4\n",
        ("ax", "ay"), "column 'Date Time' is not read: it holds dates or times of day"),
    "milliseconds": (
        "epoch_ms,ax,ay\n1700000000000,1.5,2\n1700000000010,2.5,3\n1700000000020,-1,4\n", ("ax", "ay"), "like a time"),
    "an index": (",ax,ay\n0,1.5,2\n1,2.5,3\n2,-1,4\n", ("ax", "ay"), "rises like an index"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_what_is_detected(tmp_path: Path, name: str) -> None:
    content, channels, note = FILES[name]
    (tmp_path / "t.csv").write_text(content, encoding="utf-8")
    raw = read(CsvSpec(csv="t.csv"), tmp_path)
    assert raw.channel_names == channels
    np.testing.assert_allclose(raw.raw_splits[Split.TRAIN].x, [[1.5, 2], [2.5, 3], [-1, 4]])  # type: ignore[arg-type]
    assert any(note in text for text in raw.notes), raw.notes


OPTIONS: list[tuple[dict[str, Any], str, list[list[float]]]] = [
    ({"separator": ";"}, "a;b\n1;2\n3;4\n", [[1, 2], [3, 4]]),
    ({"decimal": ",", "separator": ";"}, "a;b\n1;2\n3;4,5\n", [[1, 2], [3, 4.5]]),
    ({"header": False}, "0,1\n2,3\n", [[0, 1], [2, 3]]),
    ({"header": True, "channels": ("1.5",)}, "1.5,2\n7,8\n9,10\n", [[7], [9]]),
    ({"channels": ("t", "a")}, "t,a\n0,5\n1,6\n2,7\n", [[0, 5], [1, 6], [2, 7]]),
    ({"ignore": ("b",)}, "a,b\n5,x\n6,y\n", [[5], [6]]),
]


@pytest.mark.parametrize(("options", "content", "rows"), OPTIONS)
def test_what_is_said_counts(tmp_path: Path, options: dict[str, Any], content: str, rows: list[list[float]]) -> None:
    (tmp_path / "t.csv").write_text(content)
    raw = read(CsvSpec(csv="t.csv", **options), tmp_path)
    np.testing.assert_allclose(raw.raw_splits[Split.TRAIN].x, rows)  # type: ignore[arg-type]


def test_a_signal_that_is_named_like_a_time_and_does_not_rise_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time,a\n5,1\n3,2\n9,4\n1,4\n")
    assert read(CsvSpec(csv="t.csv"), tmp_path).channel_names == ("time", "a")


def test_a_column_named_like_a_label_is_not_silently_a_channel(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1.5,0\n2.5,1\n")
    notes = read(CsvSpec(csv="t.csv"), tmp_path).notes
    assert any(
        "column 'label' is read as a channel, and samples have no labels; is it `label: label`?" in n for n in notes
    )
    assert not any("is it `label:" in note for note in read(CsvSpec(csv="t.csv", label="label"), tmp_path).notes)


def test_a_readme_is_no_table(tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    folder.mkdir()
    (folder / "a.txt").write_text("ax ay\n1.5 2\n2.5 3\n")
    (folder / "README.txt").write_text(
        "Recordings of 2 people, 50 Hz.\nColumns: ax, ay; see the paper\nby A, B and C\n"
    )
    (folder / "photo.jpg").touch()
    notes = read(CsvSpec(csv="rec"), tmp_path).notes
    assert any(note.endswith("rec: read: a.txt") for note in notes)
    assert any("not read, as they are no tables: README.txt, photo.jpg" in note for note in notes)
    (folder / "a.txt").unlink()
    with pytest.raises(InputError, match=r"no \.csv or \.tsv or \.txt files below such a folder"):
        read(CsvSpec(csv="rec"), tmp_path)
