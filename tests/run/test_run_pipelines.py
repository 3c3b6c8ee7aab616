"""The pipelines that ship, from end to end on real data."""

import gzip
import math
import shutil
import struct
from pathlib import Path

import pytest

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.data import idx
from edgepipe.render.report import Report
from tests.run.conftest import ROOT


def run(name: str, folder: Path, *settings: str) -> Report:
    """Run a shipped pipeline."""
    pipeline = ROOT / "pipelines" / f"{name}.yaml"
    return edgepipe.run(pipeline, settings=settings, output_dir=folder / "out", cache_dir=folder / "cache")


def metrics(report: Report) -> dict[str, float | None]:
    """The metrics of the last stage."""
    return {metric.name: metric.value for metric in report.stages[-1].outcome.metrics}


GROUPED = "no group on two sides"  # recordings are kept on one side of the split


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs", "note"), [
    ("speakers", (25, 3), ""), ("activity", (25, 5), ""), ("anomaly", (60, 10), GROUPED)
])  # fmt: skip
def test_a_pipeline_ends_with_integers_and_its_verdict(
    name: str, epochs: tuple[int, int], note: str, tmp_path: Path
) -> None:
    """With fewer epochs of `train` and `quantize` than shipped, and the shipped budget."""
    report = run(name, tmp_path, f"stages.train.epochs={epochs[0]}", f"stages.quantize.epochs={epochs[1]}")
    assert report.met
    assert metrics(report)["float_offenders"] == 0
    assert note in " ".join(note for stage in report.stages for note in stage.outcome.notes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_spoken_digits_say_that_they_are_synthetic(tmp_path: Path) -> None:
    report = run("spoken_digits", tmp_path, "stages.train.epochs=15", "stages.prune.epochs=4", "data.spoken_digits=30")
    assert report.met
    assert metrics(report)["float_offenders"] == 0
    assert "synthetic speech: espeak-ng" in (tmp_path / "out" / "report.md").read_text()


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
        place = idx.find_fashion_folder()
    except InputError as error:
        pytest.skip(str(error))
    _first(place, tmp_path, 300)
    monkeypatch.setenv(idx.DATA_VARIABLE, str(tmp_path))
    short = [f"stages.{stage}.epochs=1" for stage in ("train", "distill", "prune", "quantize")]
    report = run("fashion_mnist", tmp_path, *short, "stages.validate.budget={accuracy: 60 %}")
    assert metrics(report)["float_offenders"] == 0
