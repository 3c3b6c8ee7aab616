"""The pipelines that ship, from end to end on real data."""

import gzip
import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgepipe.core.errors import InputError
from edgepipe.data import idx
from tests.run.conftest import ROOT, environment


def run(name: str, folder: Path, *settings: str) -> dict[str, object]:
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "edgepipe", "run", str(ROOT / "pipelines" / f"{name}.yaml"), *words]
    folders = ["--output-dir", str(folder / "out"), "--cache-dir", str(folder / "cache")]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, env=environment(), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out" / "report.json").read_text())


def metrics(report: dict[str, object]) -> dict[str, float]:
    last = report["stages"][-1]["outcome"]  # type: ignore[index]
    return {metric["name"]: metric["value"] for metric in last["metrics"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speakers", "activity", "anomaly"])
def test_a_pipeline_ends_with_integers_and_its_verdict(name: str, tmp_path: Path) -> None:
    report = run(name, tmp_path)
    assert report["met"] is True
    assert metrics(report)["float_offenders"] == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_say_that_they_are_synthetic(tmp_path: Path) -> None:
    report = run("spoken_digits", tmp_path, "stages.train.epochs=15", "stages.prune.epochs=4", "data.spoken_digits=30")
    assert report["met"] is True
    assert metrics(report)["float_offenders"] == 0
    assert "synthetic speech: espeak-ng" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_anomalies_are_kept_from_training_by_recording(tmp_path: Path) -> None:
    report = run("anomaly", tmp_path, "stages.train.epochs=1", "stages.quantize.epochs=1", "stages.validate.budget={}")
    notes = " ".join(note for stage in report["stages"] for note in stage["outcome"]["notes"])  # type: ignore[attr-defined]
    assert "no group on two sides" in notes


def _first(source: Path, folder: Path, number: int) -> None:
    """The first `number` entries of each IDX file in `source`, which is three times that for training."""
    for file in source.glob("*ubyte*"):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kept = number * (3 if file.name.startswith("train") else 1)
        total, *shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
        begin = 4 + 4 * content[3]
        entries = content[begin : begin + math.prod(shape) * min(kept, total)]
        header = content[:4] + struct.pack(">I", min(kept, total)) + content[8:begin]
        (folder / file.name.removesuffix(".gz")).write_bytes(header + entries)


@pytest.mark.slow
def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        place = idx.fashion_folder()
    except InputError as error:
        pytest.skip(str(error))
    _first(place, tmp_path, 2_000)
    monkeypatch.setenv(idx.DATA_VARIABLE, str(tmp_path))
    short = [f"stages.{stage}.epochs=1" for stage in ("train", "distill", "prune", "quantize")]
    report = run("fashion_mnist", tmp_path, *short, "stages.validate.budget={accuracy: 60 %}")
    assert metrics(report)["float_offenders"] == 0
