"""`edgepipe data`: what it tells, what it draws, what it refuses, what it loads."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from PIL import Image

from edgepipe import api
from edgepipe.core.errors import EdgepipeError
from edgepipe.data.data_spec import SPEC_BY_SOURCE

ROOT = Path(__file__).resolve().parents[2]


def run_command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgepipe", "data", *words], capture_output=True, text=True, cwd=folder
    )


@pytest.fixture
def windows(tmp_path: Path) -> Path:
    random = np.random.RandomState(0)
    x, y = random.randn(100, 20, 3).astype("f4"), np.repeat([0, 1], [85, 15])
    x[..., 1] += 5
    np.savez(tmp_path / "w.npz", x=x, y=y, groups=np.arange(100) // 5)
    return tmp_path


def test_numbers(windows: Path) -> None:
    done = run_command(windows, "{npz: w.npz, test: 0.25}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema"] == "edgepipe.data/1"
    assert found["shapes"] == {"": [20, 3]}
    assert sum(found["counts"].values()) == 100
    trained = {name: counts["train"] for name, counts in found["classes"].items()}
    assert sum(trained.values()) == found["counts"]["train"]
    assert all("test" not in counts for counts in found["classes"].values())
    assert [round(value["mean"]) for value in found["values"]] == [0, 5, 0]
    assert any("out of balance" in note for note in found["notes"])
    assert any("no group on two sides" in note for note in found["notes"])


@pytest.mark.slow
def test_a_pipeline_is_split_as_it_will_be(windows: Path) -> None:
    (windows / "p.yaml").write_text("name: p\nseed: 5\ndata: {npz: w.npz}\n")
    own, seeded = (edgepipe_json(windows, *words) for words in (("p.yaml",), ("{npz: w.npz}", "--seed", "5")))
    assert own["values"] == seeded["values"]
    assert own["values"] != edgepipe_json(windows, "{npz: w.npz}")["values"]


DESCRIPTIONS = [
    ("{npz: w.npz, augment: {flip: both}}", "augment: flip is for images (height, width, channels); the samples have"),
    ("{npz: w.npz, augment: {rand_augment: {}}}", "augment: rand_augment is for images"),
    ("{npz: w.npz, augment: {gain: [0, 1]}}", "data.augment.gain: gain changes waveforms, and `npz` gives none"),
    ("leaves:f", "leaves:f called exit(0)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("description", "message"), DESCRIPTIONS, ids=[case[0] for case in DESCRIPTIONS])
def test_what_would_stop_training_stops_it_here(description: str, message: str, windows: Path) -> None:
    (windows / "leaves.py").write_text("import sys\ndef f(): sys.exit(0)\n")
    done = run_command(windows, description)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_classes_without_samples_and_labels_that_are_no_classes(windows: Path) -> None:
    x = np.zeros((40, 3), "f4")
    cases = {
        "one": (np.zeros(40, int), "one class only: no classifier"),
        "gap": (np.arange(40) % 2 * 2, "the train split has no sample of: 1"),
    }
    for name, (y, wanted) in cases.items():
        np.savez(windows / f"{name}.npz", x=x, y=y)
        assert any(wanted in note for note in api.describe_data(str(f"{{npz: {windows / name}.npz}}")).notes)
    np.savez(windows / "many.npz", x=x, y=np.arange(40) * 1000)
    found = api.describe_data(f"{{npz: {windows / 'many.npz'}, stratify: false}}")
    assert found.classes == {}
    np.savez(windows / "negative.npz", x=x, y=np.arange(40) % 2 - 1)
    assert api.describe_data(f"{{npz: {windows / 'negative.npz'}}}").labels.endswith("-1 to 0")


def edgepipe_json(folder: Path, *words: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(run_command(folder, *words, "--json").stdout)
    return found


@pytest.mark.parametrize("shape", [(20, 3), (12, 10, 1), (12, 10, 3), (7,)])
@pytest.mark.parametrize("labelled", [True, False])
def test_pictures(shape: tuple[int, ...], labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.RandomState(0).rand(40, *shape)
    np.savez(tmp_path / "w.npz", x=x, **({"y": np.arange(40) % 2} if labelled else {}))
    monkeypatch.chdir(tmp_path)
    api.describe_data("{npz: w.npz}", picture="p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert len(set(image.convert("L").tobytes())) > 5


def test_a_table_for_people(windows: Path) -> None:
    done = run_command(windows, "{npz: w.npz}")
    for text in ("samples of shape 20x3", "labels: 2 classes", "channel 1", "size only", "note: "):
        assert text in done.stdout
    assert "--picture" in done.stderr


def test_it_loads_no_tensorflow(windows: Path) -> None:
    code = (
        "import sys, atexit; sys.argv = ['edgepipe', 'data', '{npz: w.npz}', '--picture', 'p.svg', '--json']; "
        "atexit.register(lambda: print([m for m in ('tensorflow', 'keras', 'pandas') if m in sys.modules])); "
        "from edgepipe.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=windows)
    assert done.stdout.strip().endswith("[]"), done.stderr
    assert (windows / "p.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("nowhere.yaml", "nowhere.yaml"),
        ("photos", "is neither a file, a folder, a module:function nor a mapping"),
        ("{npz: missing.npz}", "1:13: data.npz: no such file"),
        ("{npz: w.npz, tset: 0.2}", "did you mean 'test'"),
        ("{npz: w.npz", "the description:2:1: not valid YAML"),
        ("nomodule:load", "no module 'nomodule'"),
    ],
)
def test_refused(description: str, message: str, windows: Path) -> None:
    done = run_command(windows, description)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_picture_of_no_kind_is_refused_and_nothing_is_left(windows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(windows)
    with pytest.raises(EdgepipeError, match=r"pictures end in \.png, \.svg, \.pdf"):
        api.describe_data("{npz: w.npz}", picture="p.doc")
    assert sorted(path.name for path in windows.iterdir()) == ["w.npz"]


def test_the_options_of_every_source(command: Command) -> None:
    for source, spec_class in SPEC_BY_SOURCE.items():
        shown = json.loads(command("data", "--options", source, "--json").out)["sources"][source]
        options = {option["option"]: option for option in shown["options"]}
        assert set(spec_class.model_fields) <= set(options)
        assert next(iter(options)) == source  # its own come first
        assert all(option["meaning"] for option in options.values())
    assert "separator" in command("data", "--options", "csv").out
    misspelled = command("data", "--options", "cvs")
    assert (misspelled.code, "did you mean 'csv'?" in misspelled.err) == (2, True)


SOURCES = [
    ("photos", "24 samples", "2 classes"),
    ("tables", "read: a.csv, b.csv", "column 'time' is not read"),
    ("tables/a.csv", "separated by semicolons", "9 samples of 1 channel (ax)"),
    ("tables/b.csv", "label from 'activity'", "2 classes"),
    ("w.npz", "100", "2 classes"),
]


@pytest.mark.parametrize(("name", "first", "second"), SOURCES, ids=[case[0] for case in SOURCES])
def test_a_file_or_a_folder(
    windows: Path, monkeypatch: pytest.MonkeyPatch, command: Command, name: str, first: str, second: str
) -> None:
    monkeypatch.chdir(windows)
    for label in ("cat", "dog"):
        (windows / "photos" / label).mkdir(parents=True)
        for number in range(12):
            Image.new("L", (4, 4)).save(windows / "photos" / label / f"{number}.png")
    (windows / "tables").mkdir()
    for table in "abcdef":
        (windows / "tables" / f"{table}.csv").write_text(
            "time;ax;activity\n"
            + "".join(f"{time};{time % 4},5;{'sit' if time < 5 else 'walk'}\n" for time in range(9))
        )
    shown = command("data", name)
    assert shown.code == 0, shown.err
    text = " ".join((shown.out + shown.err).split())
    count = sum(json.loads(command("data", name, "--json").out)["counts"].values())
    assert first in f"{text} {count} samples"
    assert second in text


def test_a_folder_that_holds_no_data(windows: Path, command: Command) -> None:
    (windows / "notes").mkdir()
    (windows / "notes" / "plan.pdf").touch()
    refused = command("data", windows / "notes")
    assert refused.code == 2
    assert "holds only files that end in .pdf; expected a .npz, .csv, .tsv or .parquet file, a folder of" in refused.err
