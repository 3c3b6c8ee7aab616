"""Windows and rows from CSV and Parquet files: how they are cut, and every corrupt file reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from edgepipe.core import config
from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import CsvSpec, ParquetSpec, parse
from edgepipe.data.dataset_identity import compute_identity
from edgepipe.data.dataset_loading import load, read
from edgepipe.data.split_names import Split

ALL_SPLITS = frozenset(Split)


def recording(subject: str, rows: int = 20, start: int = 0) -> pd.DataFrame:
    time = np.arange(start, start + rows)
    label = np.where(time % 10 < 5, "sit", "walk")
    return pd.DataFrame({"t": time, "ax": time * 1.0, "ay": time * -2.0, "label": label, "who": subject})


def write_recordings(folder: Path, people: str = "abcdef") -> Path:
    (folder / "data").mkdir()
    for number, person in enumerate(people):
        recording(person, start=100 * number).to_csv(folder / "data" / f"{person}.csv", index=False)
    return folder


def test_windows_never_cross_a_label_a_subject_or_a_file(tmp_path: Path) -> None:
    spec = CsvSpec(csv="data", label="label", group="who", ignore=("t",), window=4, step=1)
    raw = read(spec, write_recordings(tmp_path))
    train = raw.raw_splits[Split.TRAIN]
    assert isinstance(train.x, np.ndarray)
    assert train.x.shape == (6 * 4 * 2, 4, 2)  # runs of 5 rows hold two windows of 4
    assert raw.class_names == ("sit", "walk")
    for window, label, subject in zip(train.x, train.y, train.groups, strict=True):
        start = int(window[0, 0])
        np.testing.assert_array_equal(window[:, 0], np.arange(start, start + 4))
        np.testing.assert_array_equal(window[:, 1], -2 * window[:, 0])
        assert {("sit", "walk")[label]} == {("sit" if time % 10 < 5 else "walk") for time in window[:, 0]}
        assert "abcdef"[start // 100] == subject
    assert any("48 samples of 2 channels (ax, ay) from 6 files" in note for note in raw.notes)


def test_each_subject_is_in_one_split(tmp_path: Path) -> None:
    spec = CsvSpec(csv="data", channels=("ax",), label="label", group="who", window=4, step=2)
    splits = load(spec, write_recordings(tmp_path), 1, ALL_SPLITS)
    sides = [{int(window[0, 0]) // 100 for window in split_data.x} for split_data in splits.data_by_split.values()]
    assert sum(map(len, sides)) == 6


def test_file_is_the_default_group(tmp_path: Path) -> None:
    splits = load(
        CsvSpec(csv="data", channels=("ax",), label="label", window=4), write_recordings(tmp_path), 1, ALL_SPLITS
    )
    sides = [{int(window[0, 0]) // 100 for window in split_data.x} for split_data in splits.data_by_split.values()]
    assert sum(map(len, sides)) == 6


def test_label_and_group_from_file_names(tmp_path: Path) -> None:
    for person in ("p1", "p2", "p3", "p4"):
        for label in ("fall", "walk"):
            (tmp_path / "d" / label).mkdir(parents=True, exist_ok=True)
            recording(person)[["ax", "ay"]].to_csv(tmp_path / "d" / label / f"{person}.csv", index=False)
    spec = CsvSpec(csv="d", label_from=r"^(\w+)/", group_from=r"(p\d)", window=10)
    raw = read(spec, tmp_path)
    train = raw.raw_splits[Split.TRAIN]
    assert raw.class_names == ("fall", "walk")
    assert set(train.groups if train.groups is not None else []) == {"p1", "p2", "p3", "p4"}
    assert np.bincount(train.y).tolist() == [8, 8]


def test_windows_of_one_recording_warn_of_leakage(tmp_path: Path) -> None:
    recording("a", 60).to_csv(tmp_path / "one.csv", index=False)
    raw = read(CsvSpec(csv="one.csv", channels=("ax", "ay"), label="label", window=4, step=2), tmp_path)
    assert any("and overlap: neighbours sit on both sides" in note for note in raw.notes)
    assert any("rows at the ends of recordings unused, too few for a window of 4" in note for note in raw.notes)


def test_plain_rows_and_numeric_labels(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.arange(30.0), "b": 1.0, "price": np.linspace(0, 1, 30)})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    raw = read(CsvSpec(csv="t.tsv", label="price", separator="\t"), tmp_path)
    train = raw.raw_splits[Split.TRAIN]
    assert train.x.shape == (30, 2)  # type: ignore[union-attr]
    assert train.y is not None
    assert train.y.dtype.kind == "f"


def test_parquet_equals_csv(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    (tmp_path / "p").mkdir()
    for path in (tmp_path / "data").iterdir():
        pd.read_csv(path).to_parquet(tmp_path / "p" / f"{path.stem}.parquet")
    options: dict[str, Any] = {"label": "label", "group": "who", "ignore": ("t",), "window": 4}
    from_csv, from_parquet = (
        read(spec, tmp_path) for spec in (CsvSpec(csv="data", **options), ParquetSpec(parquet="p", **options))
    )
    np.testing.assert_array_equal(from_csv.raw_splits[Split.TRAIN].x, from_parquet.raw_splits[Split.TRAIN].x)
    np.testing.assert_array_equal(from_csv.raw_splits[Split.TRAIN].y, from_parquet.raw_splits[Split.TRAIN].y)


def test_standardized_by_the_training_split_only(tmp_path: Path) -> None:
    options: dict[str, Any] = {"channels": ("ax", "ay"), "label": "label", "group": "who", "window": 4}
    specs = [CsvSpec(csv="data", standardize=on, **options) for on in (False, True)]
    unscaled_splits, standardized_splits = (load(spec, write_once(tmp_path), 1, ALL_SPLITS) for spec in specs)
    train = np.asarray(unscaled_splits.train.x, np.float64).reshape(-1, 2)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    for split in Split:
        expected_x = (np.asarray(unscaled_splits.data_by_split[split].x, np.float64) - mean) / deviation
        np.testing.assert_allclose(standardized_splits.data_by_split[split].x, expected_x, atol=1e-5)
    note_text = next(note for note in standardized_splits.notes if "standardized by the training split" in note)
    assert f"{mean[0]:.9g}" in note_text


def write_once(folder: Path) -> Path:
    return folder if (folder / "data").exists() else write_recordings(folder)


CORRUPT: list[tuple[str, bytes, str]] = [
    ("empty.csv", b"", "No columns to parse"),
    ("header.csv", b"t,ax,ay,label,who\n", "holds no rows"),
    ("ragged.csv", b"t,ax,ay,label,who\n1,2,3,sit,a\n1,2,3,sit,a,9,9\n", "line 3"),
    (
        "text.csv",
        b"t,ax,ay,label,who\n1,2,3,sit,a\n1,x,3,sit,a\n",
        r"row 2, column 'ax': 'x' is not a finite float32 number",
    ),
    ("nan.csv", b"t,ax,ay,label,who\n1,2,,sit,a\n", r"row 1, column 'ay' is empty"),
    ("infinite.csv", b"t,ax,ay,label,who\n1,2,inf,sit,a\n", "not a finite float32 number"),
    ("missing.csv", b"t,ax,a_y,label,who\n1,2,3,sit,a\n", r"no column 'ay'; did you mean 'a_y'\?"),
    ("nolabel.csv", b"t,ax,ay,label,who\n1,2,3,,a\n", "row 1, column 'label' is empty"),
    ("huge.csv", b"t,ax,ay,label,who\n1,2,1e300,sit,a\n", "'1e[+]300' is not a finite float32 number"),
    ("twice.csv", b"t,ax,ay,ax,label,who\n1,2,3,4,sit,a\n", "2 columns are named 'ax'"),
    (
        "headless.csv",
        b"1,2.5,-3,sit,a\n1,2,3,sit,a\n",
        r"begins with numbers \(1,2.5,-3,sit,a\); its first line must name the columns, or call",
    ),
    ("words.csv", b"t,ax,ay,label,who\n1,a,3,sit,a\n1,b,3,sit,a\n", r"2 such; all are: put the column into `ignore`"),
    ("junk.csv", bytes(range(128, 256)) * 4, "is not UTF-8 text at byte 0"),
]


@pytest.mark.parametrize(("name", "content", "reason"), CORRUPT, ids=[case[0] for case in CORRUPT])
def test_a_corrupt_file_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    write_recordings(tmp_path)
    (tmp_path / "data" / name).write_bytes(content)
    options: dict[str, Any] = {"csv": "data", "channels": ("ax", "ay"), "label": "label", "group": "who", "window": 4}
    with pytest.raises(InputError, match=rf"1 of 7 files cannot be used(.|\n)*{name} \((.|\n)*{reason}"):
        read(CsvSpec(**options), tmp_path)
    raw = read(CsvSpec(**options, skip_corrupt=True), tmp_path)
    assert any("skipped 1 of 7 files" in note and name in note for note in raw.notes)


def test_times_and_indices_are_not_channels(tmp_path: Path) -> None:
    recording("z").to_csv(tmp_path / "i.csv")
    raw = read(CsvSpec(csv="i.csv", label="label", group="who"), tmp_path)
    assert raw.channel_names == ("ax", "ay")
    for name, kind in (("Unnamed: 0", "an index"), ("t", "a time")):
        expected = f"column '{name}' is not read: it is named and rises like {kind}; name it in `channels` to read it"
        assert any(expected in note for note in raw.notes)
    assert read(CsvSpec(csv="i.csv", channels=("t", "ax")), tmp_path).channel_names == ("t", "ax")

    recording("z").assign(when=pd.date_range("2026-01-01", periods=20)).to_parquet(tmp_path / "t.parquet")
    raw = read(ParquetSpec(parquet="t.parquet", label="label", group="who"), tmp_path)
    assert raw.channel_names == ("ax", "ay")
    assert any("column 'when' is not read: it holds dates or times of day" in note for note in raw.notes)
    with pytest.raises(InputError, match="column 'when' holds times; put it into `ignore`"):
        read(ParquetSpec(parquet="t.parquet", channels=("when",)), tmp_path)


def test_no_samples_left_and_unknown_ignored_column(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"ax,ay\n1,\n")
    with pytest.raises(InputError, match=r"no samples in 1 file; skipped 1: .*row 1, column 'ay' is empty"):
        read(CsvSpec(csv="x.csv", skip_corrupt=True), tmp_path)
    with pytest.raises(InputError, match="`ignore` names a column 'tt' that no file has"):
        read(CsvSpec(csv="data", label="label", group="who", ignore=("tt",)), tmp_path)


def test_a_constant_channel_is_reported(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    for path in (tmp_path / "data").iterdir():
        pd.read_csv(path).assign(ax=0.1).to_csv(path, index=False)
    options: dict[str, Any] = {"channels": ("ax", "ay"), "label": "label", "group": "who", "window": 4}
    splits = load(CsvSpec(csv="data", standardize=True, **options), tmp_path, 1, ALL_SPLITS)
    assert any("channel 0 never changes in training" in note for note in splits.notes)
    assert np.abs(np.asarray(splits.train.x)[..., 0]).max() < 1e-6


def test_all_corrupt_files_are_named_at_once(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    for name in ("x1.csv", "x2.csv"):
        (tmp_path / "data" / name).write_bytes(b"t\n1\n")
    with pytest.raises(InputError, match=r"2 of 8 files(.|\n)*x1.csv(.|\n)*x2.csv"):
        read(CsvSpec(csv="data", channels=("ax",), label="label"), tmp_path)


def test_an_invalid_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"1 of 1 file cannot be used"):
        read(ParquetSpec(parquet="a.parquet"), tmp_path)


def test_the_identity_covers_every_file(tmp_path: Path) -> None:
    spec = CsvSpec(csv="data/*.csv", channels=("ax",))
    first_id = compute_identity(spec, write_recordings(tmp_path))
    assert len(first_id["files"]) == 6
    recording("z").to_csv(tmp_path / "data" / "z.csv", index=False)
    assert compute_identity(spec, tmp_path) != first_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{csv: nowhere.csv}", "no such file, folder or pattern"),
        ("{csv: data, window: 0}", "window"),
        ("{csv: data, step: 3}", "step is for windows"),
        ("{csv: data, label: a, label_from: b}", "label and label_from exclude each other"),
        ("{csv: data, channels: [ax, ax]}", "channels names ax twice"),
        ("{csv: data, channels: [ax, who], label: who}", "'who' is both a channel and named in label"),
        ("{csv: data, channels: [ax], ignore: [ax]}", "'ax' is both a channel and named in ignore"),
        ("{csv: data, group_from: '('}", "is no regular expression"),
        ("{csv: data, chanels: [a]}", "did you mean 'channels'"),
    ],
)
def test_wrong_options(text: str, message: str, tmp_path: Path) -> None:
    document = config.parse(f"data: {text}\n", "p.yaml")
    assert parse(document, ("data",), document.content["data"], write_recordings(tmp_path)) is None
    assert message in str(document.problems[0])
