"""TFLite's integer kernels, one at a time, in a small model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from operator_models import BODIES, Body, X, float_file

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer import recipes
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.kernel_requirements import KERNEL_REQUIREMENTS
from edgepipe.compress.quantizer.layerwise_quantizer import LayerPrecision, build_layerwise_quantizer
from edgepipe.compress.quantizer.op_decomposition import (
    INT16_DECOMPOSITIONS,
    calibrate_decomposed,
    decomposed_model,
    uniform_bit_width,
)
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import SCHEMES, ActivationCalibration, SchemeName
from edgepipe.compress.source_model import map_layer_classes
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

# kinds that TensorFlow's converter does not write for a small model; they are made from others below
# CAST is written as QUANTIZE, and tried with its types in test_integer_inputs.py
RENAMED = {"CAST", "EMBEDDING_LOOKUP", "RELU_0_TO_1", "SELECT"}  # fmt: skip
TRIED_ELSEWHERE = {"UNIDIRECTIONAL_SEQUENCE_LSTM"}  # in test_fused_lstm.py


def _floats(model: Model, name: str) -> list[str]:
    """The operators of this kind that still read or output floats."""
    return [
        operator.location
        for operator in model.operators
        if operator.name == name
        and any(t is not None and t.dtype == "float32" for t in (*operator.inputs, *operator.outputs))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", list(BODIES))
def test_an_operator_in_integers(name: str, bits: int, tmp_path: Path) -> None:
    lite = float_file(BODIES[name], tmp_path)
    assert name in lite.operator_counts, "the model does not contain the operator under test"
    request = QuantizationRequest("recipe", recipe=recipes.scheme_recipe("int8" if bits == 8 else "int16x8"))
    path = tmp_path / "integers.tflite"
    path.write_bytes(quantize_tflite(lite, request, [X]).content)
    quantized = read(path)
    if bits == 16 and name in INT16_DECOMPOSITIONS:
        assert name not in quantized.operator_counts
        return
    assert name in quantized.operator_counts
    if bits not in KERNEL_REQUIREMENTS[name].bit_widths:
        assert _floats(quantized, name), "there is a kernel for it after all"
        return
    assert not _floats(quantized, name)
    truth = np.asarray(predict(lite.path, X, Runtime.BUILTIN).real_values)
    for runtime in (Runtime.BUILTIN, Runtime.XNNPACK):
        outputs = np.asarray(predict(path, X, runtime).real_values)
        error = np.abs(outputs - truth).max() / np.abs(truth).max()
        assert error < (0.05 if bits == 8 else 0.002), (runtime, error)


def test_every_kernel_is_tried() -> None:
    assert set(BODIES) | TRIED_ELSEWHERE == set(KERNEL_REQUIREMENTS) - RENAMED


def _shapes_are_true(model: Model) -> bool:
    """Whether every tensor is stored with its shape at run time: TFLite Micro relies on the file."""
    interpreter = Interpreter(str(model.path))
    interpreter.allocate_tensors()
    run = {detail["index"]: tuple(detail["shape"]) for detail in interpreter.get_tensor_details()}
    return all(tensor.shape == run[tensor.index] for tensor in model.tensors)


DECOMPOSED: dict[str, Body] = {
    "SQUARE": tf.square,
    "NEG": lambda x: -tf.abs(x),
    "DIV": lambda x: x / (tf.abs(tf.reverse(x, (1,))) + 4.0),
    "POW": lambda x: tf.pow(x, 3.0),
    "GREATER": lambda x: tf.where(x > tf.reverse(x, (1,)), x, tf.reverse(x, (1,))),
    "LESS_EQUAL": lambda x: tf.where(x <= 0.25, x, tf.ones_like(x) * 0.25),
    "ADD_N": lambda x: tf.add_n([x, 0.5 * x, tf.reverse(x, (1,))]),
    "CUMSUM": lambda x: tf.cumsum(tf.cumsum(x, axis=2, reverse=True), axis=3, exclusive=True),
    "SUM": lambda x: tf.reduce_sum(x, axis=1, keepdims=True) + tf.reduce_sum(x, axis=(1, 2), keepdims=True),
    "L2_NORMALIZATION": BODIES["L2_NORMALIZATION"],
    "LOG_SOFTMAX": tf.nn.log_softmax,
    "SQUARED_DIFFERENCE": lambda x: tf.math.squared_difference(tf.reduce_mean(x, axis=(1, 2), keepdims=True), x),
    "PRELU": BODIES["PRELU"],
    "ELU": BODIES["ELU"],
    "HARD_SWISH": lambda x: x * tf.nn.relu6(x + 3.0) * (1 / 6),
    "RELU_N1_TO_1": BODIES["RELU_N1_TO_1"],
    "DEPTH_TO_SPACE": BODIES["DEPTH_TO_SPACE"],
    "SPACE_TO_DEPTH": BODIES["SPACE_TO_DEPTH"],
}

MAX_ERROR_16 = {"L2_NORMALIZATION": 0.004}  # LiteRT's 16-bit RSQRT is a table of 513 numbers


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", list(DECOMPOSED))
def test_an_operator_without_a_kernel_is_decomposed(name: str, scheme: SchemeName, tmp_path: Path) -> None:
    lite = float_file(DECOMPOSED[name], tmp_path)
    assert name in lite.operator_counts, "the model does not contain the operator under test"
    truth = np.asarray(predict(lite.path, X, Runtime.BUILTIN).real_values)
    with decomposed_model(lite, uniform_bit_width(16 if scheme == "int16x8" else 8)) as decomposed:
        is_kept = scheme == "int8" and name in INT16_DECOMPOSITIONS
        assert (name in decomposed.operator_counts) is is_kept
        np.testing.assert_allclose(
            np.asarray(predict(decomposed.path, X, Runtime.BUILTIN).real_values), truth, atol=1e-5
        )
        assert _shapes_are_true(decomposed)
    path = tmp_path / "integers.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), [X]).content)
    assert not check_integer_only(read(path), allow_float_interface=False)
    for runtime in (Runtime.BUILTIN, Runtime.XNNPACK):
        outputs = np.asarray(predict(path, X, runtime).real_values)
        error = np.abs(outputs - truth).max() / np.abs(truth).max()
        assert error < (0.05 if scheme == "int8" else MAX_ERROR_16.get(name, 0.002)), (runtime, error)


def test_what_stays_in_float_is_not_decomposed(tmp_path: Path) -> None:
    lite = float_file(tf.square, tmp_path)
    float_operators = [operator for operator in lite.operators if operator.name == "SQUARE"]
    with decomposed_model(lite, lambda kind, outputs: None) as decomposed:
        assert decomposed is lite
    path = tmp_path / "part.tflite"
    path.write_bytes(
        quantize_tflite(lite, QuantizationRequest("int8", keep_float=lambda model: float_operators), [X]).content
    )
    assert "SQUARE" in read(path).operator_counts


def _quantize_mixed(body: Body, recipe: Callable[[Model], recipes.LitertRecipe], folder: Path) -> tuple[Model, Model]:
    lite, path = float_file(body, folder), folder / "mixed.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("recipe", recipe=recipe(lite)), [X]).content)
    return lite, read(path)


def _check_agreement(quantized: Model, lite: Model, max_error: float) -> None:
    truth = np.asarray(predict(lite.path, X, Runtime.BUILTIN).real_values)
    for runtime in (Runtime.BUILTIN, Runtime.XNNPACK):
        error = np.abs(np.asarray(predict(quantized.path, X, runtime).real_values) - truth).max() / np.abs(truth).max()
        assert error < max_error, (runtime, error)


def test_an_int8_layer_inside_an_int16_model(tmp_path: Path) -> None:
    """PRELU has no 16-bit kernel: in a mix it runs in 8 bits between 16-bit layers."""

    def recipe(lite: Model) -> recipes.LitertRecipe:
        slopes = next(operator for operator in lite.operators if operator.name == "PRELU")
        return [
            *recipes.scheme_recipe("int16x8"),
            recipes.make_rule(recipes.integer_config(8), recipes.operator_pattern(slopes)),
        ]

    lite, quantized = _quantize_mixed(BODIES["PRELU"], recipe, tmp_path)
    assert {op.name: op.outputs[0].dtype for op in quantized.operators if op.outputs[0]} == {
        "CONV_2D": "int16", "QUANTIZE": "int16", "PRELU": "int8"
    }  # fmt: skip
    _check_agreement(quantized, lite, 0.05)


def test_int16_layers_inside_an_int8_model(tmp_path: Path) -> None:
    def recipe(lite: Model) -> recipes.LitertRecipe:
        inner = [operator for operator in lite.operators if operator.name in ("EXP", "LEAKY_RELU")]
        return [
            *recipes.scheme_recipe("int8"),
            *(recipes.make_rule(recipes.integer_config(16), recipes.operator_pattern(op)) for op in inner),
        ]

    lite, quantized = _quantize_mixed(lambda x: tf.exp(tf.nn.leaky_relu(x, 0.3)), recipe, tmp_path)
    types = {operator.name: operator.outputs[0].dtype for operator in quantized.operators if operator.outputs[0]}
    assert (types["EXP"], types["LEAKY_RELU"]) == ("int16", "int16")
    assert "float32" not in types.values()
    _check_agreement(quantized, lite, 0.05)


def test_what_reads_the_float_tensor_gets_it_dequantized(tmp_path: Path) -> None:
    """A float, an 8-bit and a 16-bit operator read the same EXP."""

    def body(x: Any) -> Any:
        exponential = tf.exp(0.3 * x)
        return (
            tf.atan2(exponential, tf.ones_like(x))
            + tf.nn.leaky_relu(exponential - 1.0, 0.2)
            + tf.abs(exponential - 2.0)
        )

    def recipe(lite: Model) -> recipes.LitertRecipe:
        int16_operators = [operator for operator in lite.operators if operator.name == "ABS"]
        return [
            *recipes.scheme_recipe("int8"),
            *(recipes.make_rule(recipes.integer_config(16), recipes.operator_pattern(op)) for op in int16_operators),
        ]

    lite, quantized = _quantize_mixed(body, recipe, tmp_path)
    assert {name: bool(_floats(quantized, name)) for name in ("EXP", "LEAKY_RELU", "ABS", "ATAN2")} == {
        "EXP": False, "LEAKY_RELU": False, "ABS": False, "ATAN2": True
    }  # fmt: skip
    _check_agreement(quantized, lite, 0.05)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_a_float_fallback_at_the_output(scheme: SchemeName, tmp_path: Path) -> None:
    """The last operator has such a kernel: the output has the requested type."""
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, keras.layers.LeakyReLU()(keras.layers.Conv2D(3, 2)(inputs)))
    expected = model.predict(X, verbose=0)
    for kind in SCHEMES[scheme].allowed_interface_types:
        path = tmp_path / f"{kind}.tflite"
        path.write_bytes(convert(model, scheme, X, output_type=kind))
        lite = read(path)
        assert lite.outputs[0].dtype == kind
        assert check_integer_only(lite, allow_float_interface=kind == "float32") == []
        assert np.abs(np.asarray(predict(path, X).real_values) - expected).max() < 0.05 * np.abs(expected).max()


L = keras.layers
LAYERS: dict[str, Callable[[Any], Any]] = {
    "LayerNormalization": lambda x: L.LayerNormalization()(x),
    "GroupNormalization": lambda x: L.GroupNormalization(2)(x),
    "UnitNormalization": lambda x: L.UnitNormalization()(x),
    "GlobalMaxPooling2D": lambda x: L.GlobalMaxPooling2D()(x),
    "UpSampling2D": lambda x: L.UpSampling2D(2)(x),
    "GRU": lambda x: L.GRU(4, unroll=True)(L.Reshape((24, 4))(x)[:, :6]),
    "LSTM": lambda x: L.LSTM(4, unroll=True)(L.Reshape((24, 4))(x)[:, :6]),
    "PReLU": lambda x: L.PReLU(alpha_initializer=keras.initializers.Constant(0.2))(x),
    "softplus": lambda x: keras.activations.softplus(x),
    "softsign": lambda x: keras.activations.softsign(x),
    "squareplus": lambda x: keras.activations.squareplus(x),
    "sparse_plus": lambda x: keras.activations.sparse_plus(x),
    "hard_shrink": lambda x: keras.activations.hard_shrink(x),
    "log_sigmoid": lambda x: keras.activations.log_sigmoid(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_keras_layers_are_integer_throughout(name: str, scheme: SchemeName, tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, LAYERS[name](L.Conv2D(4, 3, padding="same")(inputs)))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, scheme, X))
    assert check_integer_only(read(path)) == []
    expected = model.predict(X, verbose=0)
    error = np.abs(np.asarray(predict(path, X).real_values) - expected).mean() / np.abs(expected).max()
    assert error < (0.05 if scheme == "int8" else 0.005), error


def _promotable() -> Any:
    inputs = keras.Input(X.shape[1:])
    x = L.PReLU(alpha_initializer=keras.initializers.Constant(0.2), name="slopes")(L.Conv2D(4, 3, name="first")(inputs))
    x = L.Activation("hard_silu", name="swish")(L.Conv2D(4, 1, name="second")(x))
    return keras.Model(inputs, L.Dense(3, name="last")(L.GlobalMaxPooling2D()(L.LayerNormalization(name="norm")(x))))


@pytest.mark.parametrize("promoted", [(), ("first",), ("second", "norm#2"), ("first", "second", "norm#2", "last")])
def test_a_promoted_layer_is_decomposed_and_its_recipe_replays(promoted: tuple[str, ...], tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    model, path = _promotable(), tmp_path / "float.tflite"
    path.write_bytes(convert(model, "float32"))
    plain = read(path)
    with decomposed_model(plain, uniform_bit_width(8)) as lite:
        ranges = calibrate_decomposed(lite, lambda each: calibrate(each, X, ActivationCalibration())).by_tensor
        bench = build_layerwise_quantizer(
            lite, find_layers(lite, map_layer_classes(model)), ranges, ("int8", "int8"), X
        )
        levels: dict[str, LayerPrecision] = dict.fromkeys(promoted, "int16")
        aside = tmp_path / "mixed.tflite"
        aside.write_bytes(bench.quantize(levels))
        recipe = bench.build_recipe(levels, "int8")
    quantized = read(aside)
    assert check_integer_only(quantized) == []
    kinds = {operator.name for operator in quantized.operators}
    assert ("PRELU" in kinds, "HARD_SWISH" in kinds, "SQUARED_DIFFERENCE" in kinds) == tuple(
        name not in promoted for name in ("first", "second", "norm#2")
    )
    assert quantize_tflite(plain, QuantizationRequest("recipe", recipe=recipe), [X]).content == aside.read_bytes()
