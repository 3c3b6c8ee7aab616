"""A model with several outputs, its labels, losses and measures by name, through the whole chain."""

from pathlib import Path

import pytest
from ai_edge_litert.interpreter import Interpreter

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.render.report import Report

pytestmark = pytest.mark.slow

USER = """
import numpy as np

import edgepipe


def detections(names=("where", "what")):
    x = np.random.RandomState(0).rand(240, 6).astype("float32")
    labels = x[:, :2].sum(1, keepdims=True), (x[:, 3] > 0.5).astype("int64")
    return x, dict(zip(names, labels))


def dictionary(input_shape):
    return _model(input_shape, lambda where, what: {"where": where, "what": what}, "box", "score")


def listed(input_shape):
    return _model(input_shape, lambda where, what: [where, what], "where", "what")


def _model(input_shape, structure, box_name, score_name):
    import keras

    x = keras.Input(input_shape, name="radar")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    where = keras.layers.Dense(1, name=box_name)(hidden)
    what = keras.layers.Dense(2, activation="softmax", name=score_name)(hidden)
    return keras.Model(x, structure(where, what), name="detector")


def goal():
    losses = {"what": "sparse_categorical_crossentropy", "where": "mse"}
    measures = {"label_share": edgepipe.Measure(labels_right, unit="fraction"),
                "distance": edgepipe.Measure(distance, higher_is_better=False)}
    return edgepipe.Task(loss=losses, measures=measures, decode=decode)


def decode(outputs):
    return {"label": outputs["what"].argmax(axis=1), "place": outputs["where"][:, 0]}


def labels_right(y, decoded):
    return np.mean(y["what"] == decoded["label"])


def distance(y, decoded):
    return np.abs(np.ravel(y["where"]) - decoded["place"]).mean()
"""
PIPELINE = """
name: detector
model: {{function: "{module}:{model}"}}
data: {{function: "{module}:detections", args: {{names: {names}}}}}
task: "{module}:goal"
stages:
{stages}
"""
STAGES = {
    "train": "train: {epochs: 8, batch_size: 32, learning_rate: 0.02}",
    "prune": "prune: {sparsity: 0.3, epochs: 1}",
    "quantize": "quantize: {epochs: 2}",
    "convert": "convert: {scheme: int8}",
    "mixed": "convert: {scheme: mixed, max_drop: 5 points}",
    "validate": "validate: {devices: [rp2040-pico]}",
}


def _write_pipeline(folder: Path, model: str, stages: list[str], names: str = "[where, what]") -> Path:
    module = f"named_{model}_{len(stages)}_{len(names)}"
    (folder / f"{module}.py").write_text(USER)
    stage_lines = "\n".join(f"  - {STAGES[stage]}" for stage in stages)
    path = folder / "detector.yaml"
    path.write_text(PIPELINE.format(module=module, model=model, names=names, stages=stage_lines))
    return path


CHAINS = [
    ("dictionary", ["train", "prune", "quantize", "convert", "validate"], ["what", "where"]),
    ("listed", ["train", "mixed", "validate"], ["where", "what"]),
]


@pytest.mark.parametrize(("model", "stages", "outputs"), CHAINS, ids=["pruned and trained", "mixed"])
def test_outputs_are_trained_evaluated_and_decoded_by_name(
    model: str, stages: list[str], outputs: list[str], tmp_path: Path
) -> None:
    report = edgepipe.run(
        _write_pipeline(tmp_path, model, stages), output_dir=tmp_path / "out", cache_dir=tmp_path / "cache"
    )
    for stage in (*(stage for stage in stages if stage in ("train", "quantize")), "convert", "validate"):
        assert _measured(report, stage, "label_share") > 0.8, stage
        assert _measured(report, stage, "distance") < 0.3, stage
    interpreter = Interpreter(str(next((tmp_path / "out").rglob("*.tflite"))))
    assert [detail["name"] for detail in interpreter.get_output_details()] == outputs
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["radar"], "outputs": sorted(outputs)}}


def _measured(report: Report, stage: str, name: str) -> float:
    metric = report.stage(stage).metric(name)
    assert metric is not None
    assert metric.value is not None
    return metric.value


def test_labels_of_other_names_are_refused(tmp_path: Path) -> None:
    pipeline = _write_pipeline(tmp_path, "listed", ["train"], "[where, which]")
    message = "the labels are named where, which, the outputs of 'detector' where, what; use the same names"
    with pytest.raises(InputError, match=message):
        edgepipe.run(pipeline, output_dir=tmp_path / "out", cache_dir=tmp_path / "cache")
