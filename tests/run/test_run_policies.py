"""Pipelines on models under other dtype policies: source, teacher and student; what Keras has quantized."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import edgepipe
from edgepipe.commands import init
from edgepipe.core.errors import ConfigError, InputError

PIPELINE: dict[str, Any] = {"name": "p", "data": {"npz": "data.npz"}, "task": "classification"}
BUILDER = """
import keras
keras.mixed_precision.set_global_policy("mixed_float16")


def build(input_shape, classes):
    keras.mixed_precision.set_global_policy("mixed_float16")
    inputs = keras.Input(input_shape)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax", dtype="float32")(x))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Data, and a model under mixed_bfloat16 for it; the policy that `BUILDER` sets for this process ends with it."""
    monkeypatch.chdir(tmp_path)
    keras_policy, tf_keras_policy = keras.config.dtype_policy(), tf_keras.mixed_precision.global_policy()
    x = np.random.default_rng(0).normal(size=(60, 8, 8, 3)).astype("float32")
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(60) % 3)
    layers = [
        keras.layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16", name="conv"),
        keras.layers.GlobalAveragePooling2D(dtype="mixed_bfloat16", name="pool"),
        keras.layers.Dense(3, activation="softmax", dtype="float32", name="scores"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.save(tmp_path / "net.keras")
    model.layers[-1].quantize("int8")
    model.save(tmp_path / "quantized.keras")
    yield tmp_path
    keras.config.set_dtype_policy(keras_policy)
    tf_keras.mixed_precision.set_global_policy(tf_keras_policy)


def policy_notes(report: Any) -> list[str]:
    """The notes on policies of all stages."""
    return [note for stage in report.stages for note in stage.outcome.notes if "dtype policy" in note]


@pytest.mark.slow
def test_every_stage_works_on_the_float32_model(folder: Path) -> None:
    stages = [{"prune": {"sparsity": 0.5, "epochs": 1}}, {"quantize": {"epochs": 1}}, "convert"]
    report = edgepipe.run({**PIPELINE, "model": "net.keras", "stages": stages}, output_dir=folder / "out")
    [note] = policy_notes(report)
    assert "dtype policy mixed_bfloat16 (layers 'conv', 'pool'): rebuilt in float32" in note
    assert note.endswith("training and compression go on in float32")


@pytest.mark.slow
def test_functions_teachers_and_students(folder: Path) -> None:
    (folder / "half.py").write_text(BUILDER)
    stages = [{"distill": {"student": "half:build", "teacher": {"model": "net.keras"}, "epochs": 1}}]
    report = edgepipe.run({**PIPELINE, "model": "half:build", "stages": stages}, output_dir=folder / "out")
    assert [note.partition(" (")[0] for note in policy_notes(report)] == [
        "dtype policy mixed_float16",
        "dtype policy mixed_float16",
        "teacher 'net.keras': dtype policy mixed_bfloat16",
    ]


def test_check_tells_policies_and_refuses_what_keras_has_quantized(folder: Path) -> None:
    source = edgepipe.check({**PIPELINE, "model": "net.keras", "stages": ["convert"]}).source
    assert source.notes(folder) == (
        "net.keras: dtype policy mixed_bfloat16 (layers 'conv', 'pool'): rebuilt in float32 when it is loaded",
    )
    stages = [{"distill": {"student": "quantized.keras", "teacher": {"model": "quantized.keras"}, "epochs": 1}}]
    with pytest.raises(ConfigError) as refusal:
        edgepipe.check({**PIPELINE, "model": "quantized.keras", "stages": stages})
    message = "quantized.keras: Keras has quantized layer 'scores' already (`model.quantize`, mode int8)"
    assert [problem.path for problem in refusal.value.problems if message in problem.message] == [
        "model", "stages.0.distill.student", "stages.0.distill.teacher",
    ]  # fmt: skip


def test_init_tells_policies_and_refuses_what_keras_has_quantized(folder: Path) -> None:
    notes = init.write("net.keras", folder / "pipeline.yaml")
    assert any("the dtype policy mixed_bfloat16 (layers 'conv', 'pool'): it is rebuilt in float32" in n for n in notes)
    with pytest.raises(InputError, match=r"quantized\.keras: Keras has quantized layer 'scores' already"):
        init.write("quantized.keras", folder / "other.yaml")
