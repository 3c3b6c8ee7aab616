"""Model files: detecting their kind without TensorFlow, loading them, refusing code, writing them reproducibly."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgepipe.core.artifact import Artifact, ArtifactKind, content_digest
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge
from edgepipe.models.file_kind import detect_kind
from edgepipe.models.keras_operators import OPERATOR_NAMES, operator_function
from edgepipe.models.model_description import PortDescription, describe
from edgepipe.models.model_files import load_model, save_float, save_keras

SAMPLES = np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype("float32")


def _net(package: Any) -> Any:
    layers = package.layers
    return package.Sequential(
        [
            package.Input((8, 8, 2), name="pixels"),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.Dropout(0.5, name="drop"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="out"),
        ],
        name="net",
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One good file of each kind."""
    paths = {name: tmp_path / name for name in ("k3.keras", "tk.keras", "tk.h5", "k3.h5", "saved")}
    new, old = _net(keras), _net(tf_keras)
    new.save(paths["k3.keras"])
    keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(new, str(paths["k3.h5"]))
    old.save(paths["tk.keras"])
    tf_keras.src.saving.legacy.hdf5_format.save_model_to_hdf5(old, str(paths["tk.h5"]))
    tf.saved_model.save(tf.Module(), str(paths["saved"]))
    return paths


KINDS = {
    "k3.keras": ArtifactKind.KERAS,
    "tk.keras": ArtifactKind.FLOAT,
    "tk.h5": ArtifactKind.FLOAT,
    "k3.h5": ArtifactKind.KERAS,
    "saved": ArtifactKind.SAVED_MODEL,
}


def test_detect_kind(files: dict[str, Path]) -> None:
    assert {name: detect_kind(path) for name, path in files.items()} == KINDS
    for name in ("k3.keras", "tk.keras"):  # by config.json alone
        with zipfile.ZipFile(files[name], "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("metadata.json", "{}")
        assert detect_kind(files[name]) is KINDS[name]


def test_detect_kind_and_describe_load_no_framework(files: dict[str, Path]) -> None:
    code = (
        "import sys; from pathlib import Path; from edgepipe.models.file_kind import detect_kind; "
        "from edgepipe.models.model_description import describe; "
        f"[detect_kind(Path(p)) for p in {[str(p) for p in files.values()]}]; "
        f"[describe(Path(p)) for p in {[str(p) for n, p in files.items() if n != 'saved']}]; "
        "print({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["k3.keras", "tk.keras", "tk.h5", "k3.h5"])
def test_describe(files: dict[str, Path], name: str) -> None:
    description = describe(files[name])
    assert description.kind is KINDS[name]
    assert description.inputs == (PortDescription("pixels", (None, 8, 8, 2)),)
    assert [(port.name, port.shape[-1]) for port in description.outputs] == [("out", 3)]
    assert description.last_activation == "softmax"
    assert [cls for _, cls in description.layers] == [
        "InputLayer",
        "Conv2D",
        "BatchNormalization",
        "Dropout",
        "Flatten",
        "Dense",
    ]
    assert description.code_layers == ()


@pytest.mark.parametrize("package", [keras, tf_keras])
def test_describe_functional(tmp_path: Path, package: Any) -> None:
    a, b = package.Input((4,), name="a"), package.Input((6, 5), name="b")
    pooled = package.layers.GlobalAveragePooling1D(name="pool")(package.layers.Conv1D(7, 3, name="c")(b))
    probabilities = package.layers.Activation("sigmoid", name="one")(package.layers.Dense(2, name="d")(a))
    package.Model([a, b], [probabilities, pooled]).save(tmp_path / "m.keras")
    description = describe(tmp_path / "m.keras")
    assert description.inputs == (PortDescription("a", (None, 4)), PortDescription("b", (None, 6, 5)))
    assert description.outputs == (PortDescription("one", (None, 2)), PortDescription("pool", (None, 7)))
    assert description.last_activation == "sigmoid"


@pytest.mark.parametrize(
    ("name", "package"), [("k3.keras", "keras"), ("tk.keras", "tf_keras"), ("tk.h5", "tf_keras"), ("k3.h5", "keras")]
)
def test_load_gives_the_same_outputs(files: dict[str, Path], name: str, package: str) -> None:
    original = {"keras": keras, "tf_keras": tf_keras}[package].saving.load_model(files[name], compile=False)
    model = load_model(files[name], KINDS[name])
    assert type(model).__module__.split(".")[0] == package
    assert np.array_equal(original(SAMPLES), model(SAMPLES))
    assert load_model(Artifact.from_path(KINDS[name], files[name])).name == "net"


@pytest.mark.parametrize("name", ["k3.keras", "k3.h5"])
def test_keras_3_asked_for_as_float_is_bridged(files: dict[str, Path], name: str) -> None:
    model = load_model(files[name], ArtifactKind.FLOAT)
    assert isinstance(model, tf_keras.Model)
    expected = load_model(files[name], ArtifactKind.KERAS)(SAMPLES)
    np.testing.assert_allclose(expected, model(SAMPLES), atol=1e-6)


@pytest.mark.parametrize(("package", "save"), [(keras, save_keras), (tf_keras, save_float)])
def test_saving_ignores_training_state_and_time(
    tmp_path: Path, package: Any, save: Callable[[Any, Path], None]
) -> None:
    model = _net(package)
    save(model, tmp_path / "fresh.keras")
    trained = package.saving.load_model(tmp_path / "fresh.keras", compile=False)
    trained.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
    trained.fit(SAMPLES, np.eye(3, dtype="float32"), verbose=0)
    trained.set_weights(model.get_weights())
    save(trained, tmp_path / "trained.keras")
    assert (tmp_path / "trained.keras").read_bytes() == (tmp_path / "fresh.keras").read_bytes()
    assert content_digest(tmp_path / "trained.keras") == content_digest(tmp_path / "fresh.keras")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh.keras", "trained.keras"]
    loaded = load_model(tmp_path / "trained.keras")
    assert getattr(loaded, "optimizer", None) is None
    assert np.array_equal(loaded(SAMPLES), model(SAMPLES))
    model.layers[0].set_weights([weight + 1 for weight in model.layers[0].get_weights()])
    save(model, tmp_path / "other.keras")
    assert content_digest(tmp_path / "other.keras") != content_digest(tmp_path / "fresh.keras")


def test_bridged_models_with_our_own_layers_reload(tmp_path: Path) -> None:
    x = keras.Input((8,), name="x")
    y = keras.layers.Dense(4, activation="hard_silu", name="d")(x * 2.0 + np.arange(8, dtype="float32"))
    model = bridge(keras.Model(x, keras.ops.mean(y, axis=1, keepdims=True)[:, 0:1] - 1)).model
    save_float(model, tmp_path / "m.keras")
    assert detect_kind(tmp_path / "m.keras") is ArtifactKind.FLOAT
    samples = np.random.default_rng(1).normal(size=(5, 8)).astype("float32")
    assert np.array_equal(model(samples), load_model(tmp_path / "m.keras", ArtifactKind.FLOAT)(samples))

    def use_former_class_name(config: dict[str, Any]) -> None:
        for entry in config["layers"]:
            if entry["class_name"] == "OperatorLayer":
                assert entry["registered_name"] == "edgepipe>Operator"
                entry["class_name"] = "Operator"

    former = _edit_config(tmp_path / "m.keras", tmp_path / "former.keras", use_former_class_name)
    assert np.array_equal(model(samples), load_model(former, ArtifactKind.FLOAT)(samples))


def test_every_operator_exists_in_keras_ops() -> None:
    assert [name for name in sorted(OPERATOR_NAMES) if not callable(operator_function(name))] == []


def _lambda_model(package: Any) -> Any:
    return package.Sequential(
        [package.Input((4,)), package.layers.Lambda(lambda x: x * 2, name="doubling"), package.layers.Dense(2)]
    )


@pytest.mark.parametrize(
    ("package", "suffix"), [(keras, ".keras"), (tf_keras, ".keras"), (tf_keras, ".h5")], ids=["keras", "tf_keras", "h5"]
)
@pytest.mark.filterwarnings("ignore:.*(HDF5 file|lambda).*:UserWarning")
def test_lambda_is_refused_by_name_unless_allowed(tmp_path: Path, package: Any, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    _lambda_model(package).save(path)
    with pytest.raises(InputError, match=r"holds code.*'doubling' \(Lambda layer\).*allow_code: true"):
        load_model(path)
    assert describe(path).code_layers == ("'doubling' (Lambda layer)",)
    assert load_model(path, allow_code=True)(np.ones((1, 4), "float32")).shape == (1, 2)


@keras.saving.register_keras_serializable(package="somewhere")
class Unseen(keras.layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


def _edit_config(source: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        config = json.loads(old.read("config.json"))
        edit(config["config"])
        new.writestr("config.json", json.dumps(config))
        new.writestr("metadata.json", old.read("metadata.json"))
        new.writestr("model.weights.h5", old.read("model.weights.h5"))
    return target


def test_code_to_import_and_unknown_classes_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    def name_foreign_class(config: dict[str, Any]) -> None:
        config["layers"][1].update(module="os_like.module", class_name="Evil", registered_name="x>Evil")

    def name_unknown_class(config: dict[str, Any]) -> None:
        config["layers"][1].update(module=None, class_name="Fancy", registered_name="mine>Fancy")

    def name_tensorflow_call(config: dict[str, Any]) -> None:
        config["layers"][1].update(class_name="TFOpLambda")
        config["layers"][1]["config"]["function"] = "io.write_file"

    path = _edit_config(files["tk.keras"], tmp_path / "a.keras", name_foreign_class)
    with pytest.raises(InputError, match=r"'conv' \(Evil from the Python module 'os_like.module'\)"):
        load_model(path)
    path = _edit_config(files["k3.keras"], tmp_path / "b.keras", name_unknown_class)
    with pytest.raises(
        InputError, match=r"keras does not know the class 'mine>Fancy' of layer 'conv'; .*module:function"
    ):
        load_model(path)
    path = _edit_config(files["tk.keras"], tmp_path / "c.keras", name_tensorflow_call)
    with pytest.raises(InputError, match=r"'conv' \(a call of tf.io.write_file\)"):
        load_model(path)


def _truncate(files: dict[str, Path], name: str, target: Path) -> Path:
    data = files[name].read_bytes()
    target.write_bytes(data[: len(data) * 2 // 3])
    return target


def _flip_byte(source: Path, target: Path) -> Path:
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 0xFF
    target.write_bytes(data)
    return target


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _weights_only(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["kernel"] = np.zeros(3)
    return path


def _unbuilt(path: Path) -> Path:
    keras.Sequential([keras.layers.Dense(2)], name="raw").save(path)
    return path


BAD_FILES = [
    (lambda f, t: t / "none.keras", r"none\.keras: no such file"),
    (lambda f, t: _write(t / "m.keras", b""), r"m\.keras: the file is empty"),
    (lambda f, t: _write(t / "m.keras", b"PK\x03\x04garbage"), r"not a readable \.keras file"),
    (lambda f, t: _write(t / "m.h5", b"hello, this is text"), r"not a model \(its 19 bytes begin with b'hello, t'"),
    (lambda f, t: _write(t / "m.keras", b"version https://git-lfs"), r"a Git LFS pointer"),
    (lambda f, t: _truncate(f, "k3.keras", t / "m.keras"), r"not a readable \.keras file \(truncated or damaged"),
    (lambda f, t: _truncate(f, "tk.keras", t / "m.keras"), r"not a readable \.keras file \(truncated or damaged"),
    (lambda f, t: _truncate(f, "tk.h5", t / "m.h5"), r"not a readable HDF5 file \(truncated or damaged"),
    (lambda f, t: _flip_byte(f["k3.keras"], t / "m.keras"), r"m\.keras: .*damaged"),
    (lambda f, t: f["tk.h5"].rename(t / "h5.keras"), r"holds an HDF5 model but is named '\.keras'; rename it"),
    (lambda f, t: f["k3.keras"].rename(t / "k3.zip"), r"holds a \.keras model \(a zip\) but is named '\.zip'"),
    (lambda f, t: _weights_only(t / "w.h5"), r"an HDF5 file without a model \(weights only\?\)"),
    (lambda f, t: t, r"a folder without saved_model\.pb"),
    (lambda f, t: f["saved"], r"a SavedModel is a program; set `allow_code: true`"),
    (lambda f, t: _write(t / "m.tflite", b"\x1c\0\0\0TFL3rest"), r"a tflite is not a Keras model"),
    (lambda f, t: _unbuilt(t / "u.keras"), r"'raw' is not built \(no input shape, no weights\)"),
]


@pytest.mark.filterwarnings("ignore:.*not yet been built:UserWarning")
@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_bad_files(
    files: dict[str, Path], tmp_path: Path, make: Callable[[dict[str, Path], Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_model(make(files, tmp_path))
    assert "\n" not in str(raised.value)


def test_wrong_kind_is_named(files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="holds a model of kind 'float', not 'keras'"):
        load_model(files["tk.h5"], ArtifactKind.KERAS)
    assert load_model(files["saved"], ArtifactKind.SAVED_MODEL, allow_code=True) == files["saved"]
