"""Models whose interface `convert` changes, through a whole pipeline: quality is measured as on the float model."""

from pathlib import Path

import pytest

import edgepipe
from edgepipe.tflite.reader import read
from edgepipe.tflite.split_outputs import read_split_outputs
from edgepipe.tflite.stream_ports import read_stream_ports

pytestmark = pytest.mark.slow

USER = """
import numpy as np

import edgepipe


def waves():
    random_state, steps = np.random.RandomState(0), np.arange(12)
    labels = random_state.randint(0, 2, 240)
    phases = random_state.uniform(0, 6, 240)
    x = np.sin(steps * (0.4 + 0.8 * labels[:, None]) + phases[:, None])
    return x[..., None].astype("float32"), labels


def follower(input_shape, classes):
    import keras

    x = keras.Input(input_shape)
    hidden = keras.layers.Conv1D(6, 3, padding="causal", activation="relu", name="front")(x)
    return keras.Model(x, keras.layers.Dense(classes, activation="softmax")(keras.layers.GRU(8, name="gru")(hidden)))


def boxes():
    x = np.random.RandomState(0).rand(240, 6).astype("float32")
    return x, np.concatenate([300 * x[:, :2], x[:, 3:4]], axis=1)


def detector(input_shape):
    import keras

    x = keras.Input(input_shape)
    box = keras.layers.Rescaling(300.0)(keras.layers.Dense(2)(x))
    return keras.Model(x, keras.layers.Concatenate(name="detection")([box, keras.layers.Dense(1)(x)]))


def goal():
    measures = {"score_error": edgepipe.Measure(score_error, higher_is_better=False)}
    return edgepipe.Task(loss="mse", measures=measures, decode=decode)


def decode(outputs):
    assert outputs.shape[1:] == (3,)
    return outputs[:, 2]


def score_error(y, scores):
    return np.abs(y[:, 2] - scores).mean()
"""
PIPELINE = """
name: {name}
model: {{function: "{name}_interface:{model}"}}
data: {{function: "{name}_interface:{data}"}}
task: {task}
stages:
  - train: {{epochs: 12, batch_size: 32, learning_rate: 0.02}}
  - convert: {{scheme: int8, {option}}}
  - validate
"""


def _run(folder: Path, **fields: str) -> dict[str, float]:
    (folder / f"{fields['name']}_interface.py").write_text(USER)
    (folder / "p.yaml").write_text(PIPELINE.format(**fields))
    report = edgepipe.run(folder / "p.yaml", output_dir=folder / "out", cache_dir=folder / "cache")
    return {metric.name: metric.value for metric in report.stages[-1].outcome.metrics if metric.value is not None}


def test_a_stream_is_measured_on_whole_sequences(tmp_path: Path) -> None:
    metrics = _run(
        tmp_path, name="stream", model="follower", data="waves", task="classification", option="streaming: 3"
    )
    assert metrics["accuracy"] > 0.9
    assert abs(metrics["accuracy_drop"]) <= 0.05
    path = next((tmp_path / "out").rglob("*.tflite"))
    ports = read_stream_ports(read(path))
    assert ports is not None
    assert [state.input for state in ports.states] == ["front_steps", "gru_h"]


def test_decode_gets_a_split_output_joined(tmp_path: Path) -> None:
    metrics = _run(
        tmp_path,
        name="split",
        model="detector",
        data="boxes",
        task='"split_interface:goal"',
        option="split_outputs: true",
    )
    path = next((tmp_path / "out").rglob("*.tflite"))
    (output,) = read_split_outputs(read(path))
    assert output.parts == ("detection_0", "detection_1")
    assert abs(metrics["score_error_drop"]) < 0.02  # one step of a joined output is 1
