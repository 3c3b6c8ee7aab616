"""Every task and every kind of model, through the whole chain to a full-integer model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.render.report import Report

pytestmark = pytest.mark.slow

USER = """
import numpy as np


def inputs(n=240, width=6):
    return np.random.RandomState(0).rand(n, width).astype("float32")


def regression():
    x = inputs()
    return x, x @ np.arange(6).astype("float32")


def many():
    x = inputs()
    return x, np.stack([x[:, 0] > 0.5, x[:, 1] > x[:, 2]], 1).astype("float32")


def binary():
    x = inputs()
    return x, (x[:, 0] > 0.5).astype("int64")


def anomalies():
    x = inputs() * 0.2
    x[:, 1] = x[:, 0]
    y = (np.arange(len(x)) % 6 == 0).astype("int64")
    x[y == 1, 1] = 1 - x[y == 1, 0]
    return x, y


def two_inputs():
    x = inputs()
    return {"left": x[:, :2], "right": x[:, 2:]}, (x[:, 0] > x[:, 2]).astype("int64")


def one_class():
    return inputs(), np.zeros(240, "int64")


def with_nan():
    x, y = binary()
    x[3, 1] = np.nan
    return x, y


def mlp(input_shape, outputs=1, activation=None):
    import keras

    sample = keras.Input(input_shape, name="sample")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(sample)
    return keras.Model(sample, keras.layers.Dense(outputs, activation=activation, name="result")(hidden), name="mlp")


def merged():
    import keras

    left, right = keras.Input((2,), name="left"), keras.Input((4,), name="right")
    both = keras.layers.Concatenate(name="both")([left, right])
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(both)
    return keras.Model([left, right], keras.layers.Dense(2, activation="softmax", name="result")(hidden), name="merged")


def absolute_error(y, outputs):
    import tensorflow as tf

    return tf.reduce_mean(tf.abs(tf.cast(tf.reshape(y, (-1, 1)), tf.float32) - outputs))


def own_task():
    import edgepipe

    closeness = edgepipe.Measure(lambda y, outputs: -float(np.abs(np.ravel(outputs) - y).mean()))
    return edgepipe.Task(loss=absolute_error, measures={"closeness": closeness})
"""
PIPELINE = """
name: user
model: {{function: "user:{model}", args: {args}}}
data: user:{data}
task: {task}
stages:
  - train: {{epochs: 20, batch_size: 16, learning_rate: 0.02}}
{prune}  - quantize: {{epochs: 4, batch_size: 16, learning_rate: 0.003}}
  - convert
  - validate: {{integer_only: true, budget: {{{budget}}}}}
"""
PRUNE = "  - prune: {sparsity: 0.5, epochs: 6, batch_size: 16, learning_rate: 0.02}\n"
# All training stages share one loop, so two are enough through `prune`: a loss of the user's, and several inputs.
PRUNED = ("user:own_task", "two_inputs")
TASKS = [
    ("mlp", "{}", "regression", "{kind: regression, metrics: [mae, rmse, r2]}", "r2: 0.9, mae_drop: 0.4"),
    ("mlp", "{outputs: 2, activation: sigmoid}", "many", "{kind: classification, labels: many}", "f1_macro: 80 %"),
    ("mlp", "{}", "binary", "classification", "accuracy: 85 %"),
    ("merged", "{}", "two_inputs", "{kind: classification, metrics: [accuracy, f1_macro]}", "accuracy: 85 %"),
    ("mlp", "{}", "regression", "user:own_task", 'closeness: ">= -0.5"'),
]


def _pipeline(folder: Path, model: str, args: str, data: str, task: str, budget: str) -> Path:
    (folder / "user.py").write_text(USER)
    prune = PRUNE if {task, data} & set(PRUNED) else ""
    text = PIPELINE.format(model=model, args=args, data=data, task=task, budget=budget, prune=prune)
    (folder / "p.yaml").write_text(text)
    return folder / "p.yaml"


def _run(folder: Path, pipeline: Path) -> Report:
    return edgepipe.run(pipeline, output_dir=folder / "out", cache_dir=folder / "cache")


@pytest.mark.parametrize(
    ("model", "args", "data", "task", "budget"), TASKS, ids=[f"{t[2]}-{i}" for i, t in enumerate(TASKS)]
)
def test_a_task(tmp_path: Path, model: str, args: str, data: str, task: str, budget: str) -> None:
    report = _run(tmp_path, _pipeline(tmp_path, model, args, data, task, budget))
    assert report.met, [verdict for verdict in report.verdicts if not verdict.met] + report.findings


def test_reconstruction_trains_on_normal_samples_only(tmp_path: Path) -> None:
    pipeline = _pipeline(
        tmp_path, "mlp", "{}", "anomalies", "{kind: reconstruction, metrics: [roc_auc, mse]}", "roc_auc: 95 %"
    )
    text = pipeline.read_text().replace(
        '"user:mlp", args: {}', '"edgepipe.zoo:autoencoder", args: {widths: [16], code: 2}'
    )
    pipeline.write_text(text)
    report = _run(tmp_path, pipeline)
    assert report.met, report.verdicts


@pytest.mark.parametrize(("data", "message"), [("one_class", "one class only"), ("with_nan", "NaN")])
def test_bad_data_is_one_error(tmp_path: Path, data: str, message: str) -> None:
    pipeline = _pipeline(tmp_path, "mlp", "{}", data, "classification", "accuracy: 85 %")
    with pytest.raises(InputError, match=message):
        _run(tmp_path, pipeline)


def test_a_model_that_does_not_fit_the_data(tmp_path: Path) -> None:
    pipeline = _pipeline(tmp_path, "mlp", "{input_shape: [5]}", "binary", "classification", "accuracy: 85 %")
    with pytest.raises(InputError, match=r"takes samples of shape \(5,\), the data has \(6,\)"):
        _run(tmp_path, pipeline)


def _network(library: Any) -> Any:
    """A classifier of digits, of Keras 3 or tf_keras."""
    image = library.Input((8, 8, 1), name="image")
    x = library.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = library.layers.Flatten(name="flatten")(x)
    return library.Model(image, library.layers.Dense(10, name="scores")(x), name="net")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One trained network as a file of every kind."""
    import keras
    import tf_keras

    from edgepipe.data import digits

    folder = tmp_path_factory.mktemp("models")
    x, y = digits()
    three, two = _network(keras), _network(tf_keras)
    three.compile(keras.optimizers.Adam(0.005), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    three.fit(x, y, epochs=4, verbose=0)
    two.set_weights(three.get_weights())
    two.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))  # saved with an optimizer
    for model, name in ((three, "three.keras"), (two, "two.keras")):
        model.save(folder / name)
    tf_keras.src.saving.legacy.hdf5_format.save_model_to_hdf5(two, str(folder / "two.h5"))
    three.export(folder / "saved", verbose=False)
    return folder


@pytest.mark.parametrize("name", ["three.keras", "two.keras", "two.h5", "saved"])
def test_a_model_file(models: Path, tmp_path: Path, name: str) -> None:
    """Each library's model through the training stages; the other files are of the same networks."""
    trains = "  - prune: {epochs: 1}\n  - quantize: {epochs: 1}\n" if name in ("three.keras", "two.keras") else ""
    (tmp_path / "p.yaml").write_text(
        f"name: own\nmodel: {{path: {models / name}, allow_code: true}}\ndata: edgepipe.data:digits\n"
        f"task: classification\nstages:\n{trains}"
        "  - convert: {output: uint8}\n  - validate: {budget: {accuracy: 85 %}}\n"
    )
    report = _run(tmp_path, tmp_path / "p.yaml")
    assert report.met, report.verdicts


def test_a_tflite_is_validated_without_data(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.tflite"
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(20, 8, 8, 1).astype(np.float32))
    done = edgepipe.convert(models / "three.keras", data=tmp_path / "x.npy", out=out)
    assert not done.findings
    (tmp_path / "p.yaml").write_text(
        "name: own\nmodel: own.tflite\nstages: [{validate: {devices: [nucleo-l4r5zi, host]}}]\n"
    )
    report = _run(tmp_path, tmp_path / "p.yaml")
    assert report.met
    assert report.stage("validate").metric("ram", "nucleo-l4r5zi").evidence == "simulated"
    latency = report.stage("validate").metric("latency", "nucleo-l4r5zi")
    assert latency.evidence == "estimated"
    assert "EXTRAPOLATES" in latency.how  # the model is far smaller than those of the fit
