"""Models under other dtype policies than float32: found without TensorFlow, rebuilt in float32, proven equal."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.models.dtype_policies import describe_float_policies, find_quantized_layers
from edgepipe.models.file_kind import read_config
from edgepipe.models.float32_rebuild import float32_by_default, in_float32
from edgepipe.models.model_files import load_in_float32, load_model

POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64")
SAMPLES = np.random.default_rng(0).normal(size=(60, 8, 8, 3)).astype("float32")
TIGHT = r"computed in float32, under perturbed weights, largest relative difference \d\.\de[-+]\d\d \(allowed 1e-04\)"


@contextmanager
def default_policy(name: str) -> Iterator[None]:
    """Layers of both Keras libraries made inside the block have this policy."""
    for package in (keras, tf_keras):
        package.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        for package in (keras, tf_keras):
            package.mixed_precision.set_global_policy("float32")


def classifier(package: Any) -> Any:
    """Convolution, batch norm, a branch and a float32 softmax, with a Normalization that is given its statistics."""
    layers = package.layers
    inputs = package.Input((8, 8, 3), name="photo")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(inputs)
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = layers.Add()([x, layers.BatchNormalization()(x)])
    x = layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(x))
    return package.Model(inputs, layers.Activation("softmax", dtype="float32")(x))


def text(package: Any) -> Any:
    """Token ids, a mask and an LSTM."""
    layers = package.layers
    ids = package.Input((5,), dtype="int32")
    return package.Model(ids, layers.Dense(2)(layers.LSTM(4)(layers.Embedding(9, 3, mask_zero=True)(ids))))


def augmented(package: Any) -> Any:
    """Augmentation, which must not run in the comparison, a nested model and a given float16 input."""
    layers = package.layers
    backbone = package.Sequential([package.Input((8, 8, 3)), layers.SeparableConv2D(4, 3), layers.PReLU()])
    inputs = package.Input((8, 8, 3), dtype="float16")
    return package.Model(inputs, layers.Flatten()(backbone(layers.RandomFlip()(inputs))))


def cast(package: Any) -> Any:
    """An explicit cast between layers of the policy float32."""
    inputs = package.Input((5,))
    x = package.ops.cast(package.layers.Dense(4, dtype="float32")(inputs), "float16")
    return package.Model(inputs, package.layers.Dense(2, dtype="float32")(x * 2.0))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
def test_a_model_is_rebuilt_in_float32_and_keeps_its_weights(package: Any, policy: str) -> None:
    with default_policy(policy):
        model = classifier(package)
    weights = [np.asarray(weight).astype("float32") for weight in model.weights]
    rebuilt = in_float32(model)
    assert {str(layer.compute_dtype) for layer in rebuilt.model.layers} == {"float32"}
    assert {np.asarray(weight).dtype for weight in rebuilt.model.weights} == {np.dtype("float32")}
    for original, old, new in zip(weights, model.weights, rebuilt.model.weights, strict=True):
        assert np.array_equal(original, np.asarray(old).astype("float32"))
        assert np.array_equal(original, np.asarray(new))
    assert rebuilt.note.startswith(f"dtype policy {policy} (6 layers: 'normalization")
    if package is keras or policy.startswith("mixed"):
        assert re.search(TIGHT, rebuilt.note)
    else:
        assert "the original computed in its own floats" in rebuilt.note
    assert not in_float32(rebuilt.model).note
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("build", [text, augmented, cast])
def test_masks_augmentation_nested_models_and_casts(build: Callable[[Any], Any]) -> None:
    with default_policy("mixed_float16"):
        model = build(keras)
    assert re.search(TIGHT, in_float32(model).note)


def test_a_float32_model_is_left_alone() -> None:
    model = classifier(keras)
    assert in_float32(model).model is model


class Constant(keras.layers.Layer):
    """Multiplies by a constant in the floats of its policy: it cannot be computed in float32."""

    def build(self, input_shape: Any) -> None:
        """The constant, and a weight."""
        self.factor = keras.ops.convert_to_tensor(np.linspace(0.1, 0.9, input_shape[-1]), dtype=self.compute_dtype)
        self.offset = self.add_weight(shape=input_shape[-1:])

    def call(self, inputs: Any) -> Any:
        """Scale and shift."""
        return inputs * self.factor + self.offset


class Forgetful(keras.layers.Layer):
    """Its configuration lacks its factor."""

    def __init__(self, factor: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        """Scale."""
        return inputs * self.factor

    def get_config(self) -> dict[str, Any]:
        """Without the factor."""
        return super().get_config()  # type: ignore[no-any-return]


def single_layer(layer: Any) -> Any:
    """A model of one layer."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, layer(inputs), name="net")


def test_what_cannot_be_computed_in_float32_is_compared_in_its_own_floats() -> None:
    note = in_float32(single_layer(Constant(dtype="mixed_float16"))).note
    assert "compared with the original computed in its own floats" in note
    assert "(allowed 3e-02)" in note


def test_a_rebuilt_model_that_computes_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"'net' rebuilt in float32 is wrong from layer 'odd' on.*build the model"):
        in_float32(single_layer(Forgetful(2.0, dtype="float16", name="odd")))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files_of_both_keras_convert_with_a_note(tmp_path: Path, suffix: str) -> None:
    package = keras if suffix == ".keras" else tf_keras
    with default_policy("mixed_float16"):
        model = classifier(package)
    path = tmp_path / f"net{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf_keras calls .h5 legacy
        model.save(path)
    assert describe_float_policies(read_config(path)).startswith("dtype policy mixed_float16 (6 layers: ")
    conversion = edgepipe.convert(path, data=SAMPLES, out=tmp_path / "net.tflite")
    assert not conversion.findings
    assert conversion.notes[0].startswith("dtype policy mixed_float16 (6 layers: ")
    assert np.allclose(load_model(path)(SAMPLES[:4]), model(SAMPLES[:4]), atol=2e-3)


def test_bfloat16_weights_in_hdf5_cannot_be_read(tmp_path: Path) -> None:
    with default_policy("bfloat16"):
        classifier(keras).save(tmp_path / "net.h5")
    with pytest.raises(InputError, match=r"net\.h5: cannot be loaded: its weights are bfloat16, which neither"):
        load_in_float32(tmp_path / "net.h5")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_a_model_quantized_by_keras_is_refused_by_file_and_in_memory(tmp_path: Path, mode: str) -> None:
    layers = [keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="last")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    model.quantize(mode, filters=["first", "last"])
    model.save(tmp_path / "q.keras")
    assert find_quantized_layers(read_config(tmp_path / "q.keras")) == {"first": mode, "last": mode}
    message = rf"Keras has quantized layers 'first', 'last' already \(`model\.quantize`, mode {mode}\).*give the float"
    for use in (lambda: load_in_float32(tmp_path / "q.keras"), lambda: in_float32(model)):
        with pytest.raises(InputError, match=message):
            use()


def dense_config(dtype: Any) -> dict[str, Any]:
    """A layer as a model file has it."""
    return {"layers": [{"class_name": "Dense", "config": {"name": "d", "dtype": dtype}}]}


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        ("int8_from_float32", "int8"),
        ("gptq/4/128_from_mixed_bfloat16", "gptq"),
        ({"class_name": "GPTQDTypePolicy", "config": {"mode": "gptq/4/-1", "source_name": "float32"}}, "gptq"),
        ({"class_name": "QuantizedDTypePolicy", "config": {"name": "int8_from_mixed_bfloat16"}}, "int8"),
        ({"class_name": "DTypePolicyMap", "config": {"default_policy": None, "policy_map": {
            "a/b": {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8", "source_name": "float32"}}}}},
         "int8"),
        ("mixed_float16", None),
        ({"class_name": "Policy", "config": {"name": "mixed_float16"}}, None),
        (None, None),
    ],
)  # fmt: skip
def test_quantization_modes_in_configs(dtype: Any, mode: str | None) -> None:
    assert find_quantized_layers(dense_config(dtype)).get("d") == mode


def test_set_floatx_still_counts_after_a_conversion() -> None:
    with float32_by_default():
        pass
    tf_keras.backend.set_floatx("float64")
    try:
        assert tf_keras.layers.Dense(1).compute_dtype == "float64"
    finally:
        tf_keras.backend.set_floatx("float32")
    assert tf_keras.layers.Dense(1).compute_dtype == "float32"
