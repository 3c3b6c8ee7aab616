"""What model files tell of the values that they expect, and which `rescale` gives them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_handmade import Op, T, write

from edgepipe.data.rescale_choice import choose_rescale
from edgepipe.models.input_expectations import read_expectations

RANDOM = np.random.RandomState(0)
# smooth grey images: neighbouring pixels are alike, as in photos
PHOTOS = np.clip(RANDOM.rand(64, 1, 1, 1) * 180 + RANDOM.rand(64, 12, 12, 1) * 75, 0, 255)


def _classifier(library: Any, before: Callable[[Any], Any], channels: int = 1, *after_convolution: Any) -> Any:
    inputs = library.Input((12, 12, channels))
    x = library.layers.Conv2D(16, 3)(before(inputs))
    for layer in after_convolution:
        x = layer(x)
    return library.Model(inputs, library.layers.Dense(3)(library.layers.Flatten()(x)))


def _adapted(library: Any, data: Any) -> Any:
    layer = library.layers.Normalization(axis=-1)
    layer.adapt(data.astype("float32"))
    return layer


def _with_statistics(library: Any, data: Any) -> Any:
    """A batch normalization behind the first convolution that has seen `data`."""
    norm = library.layers.BatchNormalization()
    model = _classifier(library, lambda x: x, 1, norm)
    convolution = next(layer for layer in model.layers if layer.name.startswith("conv"))
    outputs = np.asarray(convolution(data.astype("float32")))
    gamma, beta, *_ = norm.get_weights()
    norm.set_weights([gamma, beta, outputs.mean(axis=(0, 1, 2)), outputs.var(axis=(0, 1, 2))])
    return model


def _first_norm(library: Any, mean: float, deviation: float) -> Any:
    norm = library.layers.BatchNormalization()
    model = _classifier(library, norm)
    gamma, beta, *_ = norm.get_weights()
    norm.set_weights([gamma, beta, np.full(1, mean, "f4"), np.full(1, deviation**2, "f4")])
    return model


def _nested(library: Any, *layers: Any) -> Any:
    return library.Sequential([library.Input((12, 12, 1)), *layers])


TORCH = {"mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
COMMON: dict[str, tuple[Callable[[Any], Any], str | None]] = {  # built by both Keras 3 and tf_keras
    "rescaling to one": (lambda k: _classifier(k, k.layers.Rescaling(1 / 255)), "none"),
    "rescaling to minus one": (lambda k: _classifier(k, k.layers.Rescaling(1 / 127.5, offset=-1)), "none"),
    "rescaling of one": (lambda k: _classifier(k, k.layers.Rescaling(2.0, offset=-1.0)), "unit"),
    "rescaling of minus one": (lambda k: _classifier(k, k.layers.Rescaling(0.5, offset=0.5)), "signed"),
    "rescaling to bytes": (lambda k: _classifier(k, k.layers.Rescaling(255.0)), "unit"),
    "normalization of bytes": (lambda k: _classifier(k, _adapted(k, PHOTOS)), "none"),
    "normalization of one": (lambda k: _classifier(k, _adapted(k, PHOTOS / 255)), "unit"),
    "given mean, torch": (lambda k: _classifier(k, k.layers.Normalization(**TORCH), 3), "unit"),
    "rescaling, then torch": (
        lambda k: _classifier(k, lambda x: k.layers.Normalization(**TORCH)(k.layers.Rescaling(1 / 255)(x)), 3), "none"),
    "operators, tf": (lambda k: _classifier(k, lambda x: x / 127.5 - 1.0), "none"),
    "operators, caffe": (lambda k: _classifier(k, lambda x: x - np.array([103.939, 116.779, 123.68], "f4"), 3), "none"),
    "operators, caffe by Keras": (
        lambda k: _classifier(k, lambda x: k.applications.imagenet_utils.preprocess_input(x, mode="caffe"), 3), "none"),
    "operators, torch by Keras": (
        lambda k: _classifier(k, lambda x: k.applications.imagenet_utils.preprocess_input(x, mode="torch"), 3), "none"),
    "operators, mirrored": (lambda k: _classifier(k, lambda x: 1.0 - x * (1 / 255)), "none"),
    "nested": (lambda k: _classifier(k, _nested(k, k.layers.RandomFlip(), k.layers.Rescaling(1 / 255))), "none"),
    "behind a resize": (
        lambda k: _classifier(k, lambda x: k.layers.Rescaling(1 / 255)(k.layers.Resizing(8, 8)(x))), "none"),
    "statistics of bytes": (lambda k: _with_statistics(k, PHOTOS), "none"),
    "statistics of one": (lambda k: _with_statistics(k, PHOTOS / 255), "unit"),
    "first norm of bytes": (lambda k: _first_norm(k, 110.0, 60.0), "none"),
    "first norm of one": (lambda k: _first_norm(k, 0.43, 0.23), "unit"),
    "nothing": (lambda k: _classifier(k, lambda x: x), None),
    "an untrained norm": (lambda k: _classifier(k, k.layers.BatchNormalization()), None),
    "a branch": (lambda k: _classifier(k, lambda x: k.layers.Concatenate()([x, k.layers.Rescaling(1 / 255)(x)])), None),
}  # fmt: skip


ONLY_KERAS_3 = {"operators, caffe by Keras"}  # tf_keras does not save x[..., ::-1]
FILES = [(name, ending) for name in COMMON for ending in (".keras", " tf_keras.keras", ".h5")
         if ending == ".keras" or name not in ONLY_KERAS_3]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case as saved by Keras 3 and by tf_keras, in both of its formats."""
    import keras
    import tf_keras
    from tf_keras.src.saving.legacy.hdf5_format import save_model_to_hdf5

    folder = tmp_path_factory.mktemp("expecting")
    for name, (build, _) in COMMON.items():
        keras.utils.set_random_seed(1)
        build(keras).save(folder / f"{name}.keras")
        if name in ONLY_KERAS_3:
            continue
        legacy_model = build(tf_keras)
        legacy_model.save(folder / f"{name} tf_keras.keras")
        save_model_to_hdf5(legacy_model, str(folder / f"{name}.h5"))
    return folder


@pytest.mark.parametrize(("name", "ending"), FILES)
def test_a_keras_file(files: Path, name: str, ending: str) -> None:
    expectations = read_expectations(files / f"{name}{ending}")
    expected_mode = COMMON[name][1]
    if expected_mode is None:
        assert not expectations
        return
    choice = choose_rescale(expectations[0])
    assert choice is not None
    assert choice.mode == expected_mode, expectations[0].describe()
    other_modes = {"none": (0, 1), "unit": (0, 255), "signed": (0, 255)}
    assert not expectations[0].fits(*other_modes[expected_mode])


def _tflite(path: Path, tensors: list[T], operators: list[Op]) -> Path:
    return write(path, tensors, operators, ["x"], [tensors[-1].name])


def test_a_tflite(tmp_path: Path) -> None:
    def image(name: str, **options: Any) -> T:
        return T(name, (1, 4, 4, 3), **options)

    mean = np.array([103.939, 116.779, 123.68], np.float32)
    constant = T("mean", (3,), "float32", mean)
    quantized = [image("x", scales=(1 / 255,), zero_points=(-128,)), image("y", scales=(1 / 255,), zero_points=(-128,))]
    cases = {
        "caffe": (_tflite(tmp_path / "c", [image("x", dtype="float32"), constant, image("y", dtype="float32")],
                          [Op("SUB", ("x", "mean"), ("y",))]), "none"),
        "quantized": (_tflite(tmp_path / "q", quantized, [Op("RELU", ("x",), ("y",))]), "unit"),
        "nothing": (_tflite(tmp_path / "n", [image("x", dtype="float32"), image("y", dtype="float32")],
                            [Op("RELU", ("x",), ("y",))]), None),
    }  # fmt: skip
    for name, (path, mode) in cases.items():
        expectations = read_expectations(path)
        choice = choose_rescale(expectations[0]) if expectations else None
        assert (choice.mode if choice else None) == mode, name
