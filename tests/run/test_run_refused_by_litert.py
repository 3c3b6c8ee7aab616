"""A pipeline whose model LiteRT refuses: the quality is that of TensorFlow Lite Micro, and the host is a finding."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from commands import Command
from tflite_handmade import Op, T, write

from edgepipe.render import report

PIPELINE = """\
name: refused
model: model.tflite
data: {npz: data.npz}
task: {kind: regression, metrics: [mae]}
stages:
  - validate: {devices: [host, nucleo-l4r5zi], budget: {mae: 1, nucleo-l4r5zi: {ram: 64 KiB}}}
"""


def _bias_of_another_axis(path: Path) -> Path:
    """A dense layer whose bias names an axis that it does not have."""
    tensors = [
        T("x", (1, 4), scales=(0.05,)),
        T("w", (1, 4), data=np.full((1, 4), 100, np.int8), scales=(0.01,)),
        T("b", (1,), "int32", np.zeros(1, np.int32), scales=(0.0005,), axis=0),
        T("y", (1, 1), scales=(0.05, 0.05)),
    ]
    op = Op("FULLY_CONNECTED", ("x", "w", "b"), ("y",), schema.FullyConnectedOptionsT())
    return write(path, tensors, [op], ["x"], ["y"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="the extra `micro` is not installed")
def test_litert_gates_only_the_host(tmp_path: Path, command: Command) -> None:
    _bias_of_another_axis(tmp_path / "model.tflite")
    x = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, y=x.sum(axis=1, keepdims=True))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    ended = command("run", tmp_path / "p.yaml", "--output-dir", tmp_path / "out", "--quiet")
    assert ended.code == 3, ended.err
    validated = report.load(tmp_path / "out").stage("validate").outcome
    assert [(finding.device, finding.rule) for finding in validated.findings] == [("host", "runs")]
    assert all(verdict.met for verdict in validated.verdicts)
    assert any(note.startswith("quality is that of TensorFlow Lite Micro: ") for note in validated.notes)
    mae = next(metric for metric in validated.metrics if metric.name == "mae")
    assert mae.value is not None
    assert mae.value < 0.1
