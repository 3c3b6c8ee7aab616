"""Runs whose data reach the model scaled twice: `init` avoids it, `check` and `run` find it, no limit is needed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Command

PIPELINE = """\
name: bright
model: bright.keras
data: {npz: data.npz, rescale: unit}
task: classification
stages:
  - convert
  - validate
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that tells four brightnesses of 0..255 apart, and pictures of them."""
    import keras

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPIPE_CACHE_DIR", str(tmp_path / "cache"))
    levels = np.array([0.125, 0.375, 0.625, 0.875], np.float32)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255, name="to_unit")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4, name="scores")(x))
    model.get_layer("scores").set_weights([20 * levels[None], -10 * levels**2])  # the nearest level wins
    model.save("bright.keras")
    labels = np.arange(200) % 4
    noise = np.random.RandomState(0).randint(-20, 21, (200, 8, 8, 1))
    np.savez("data.npz", x=(levels[labels][:, None, None, None] * 255 + noise).clip(0, 255).astype("uint8"), y=labels)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    return tmp_path


def _stage(folder: Path, name: str) -> dict[str, Any]:
    report = json.loads((folder / "out" / "report.json").read_text())
    return next(stage["outcome"] for stage in report["stages"] if stage["name"] == name)


@pytest.mark.slow
def test_scaled_twice(folder: Path, command: Command) -> None:
    checked = command("check", "p.yaml")
    assert checked.code == 3
    assert "preprocessing: data.rescale: the model begins with Rescaling 'to_unit'" in checked.err
    assert "write `rescale: none`" in checked.err

    options = ("--output-dir", "out", "--quiet")
    assert command("run", "p.yaml", *options).code == 3
    model, validate = _stage(folder, "model"), _stage(folder, "validate")
    assert model["metrics"][0]["name"] == "accuracy"  # of a file, before anything is done to it
    assert [finding["rule"] for finding in model["findings"]] == ["preprocessing"]
    assert "25.00 % with the samples as they are and 100.00 % with another" in model["findings"][0]["observed"]
    assert {finding["rule"] for finding in validate["findings"]} == {"above-chance"}

    assert command("run", "p.yaml", *options, "--set", "allow_chance=true").code == 3  # it does not excuse the cause
    assert not _stage(folder, "validate")["findings"]
    assert any(note.startswith("accepted by `allow_chance`") for note in _stage(folder, "validate")["notes"])

    right = command("run", "p.yaml", *options, "--set", "data.rescale=none")
    assert right.code == 0, right.out
    assert _stage(folder, "validate")["metrics"][0]["value"] == 1


def test_init_scales_once(folder: Path, command: Command) -> None:
    written = command("init", "bright.keras", "--data", "data.npz", "-o", "new.yaml")
    assert written.code == 0, written.err
    line = next(line for line in (folder / "new.yaml").read_text().splitlines() if "rescale:" in line)
    assert line.split("#")[0].strip() == "rescale: none"
    assert "the model begins with Rescaling 'to_unit'" in line
    assert command("check", "new.yaml").code == 0
