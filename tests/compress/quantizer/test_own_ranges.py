"""Every tensor keeps its own range: what one reader demands costs the others nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import float_graph, quantize_graph

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

L = keras.layers
X = np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(1, 1, 4, 4)).astype("float32")

Body = Callable[[Any], Any]


def _conv(x: Any) -> Any:
    return tf.nn.conv2d(x, KERNEL, 1, "SAME")


def _file(body: Body, folder: Path, batch: int = 1) -> Model:
    function = tf.function(body, input_signature=[tf.TensorSpec((batch, *X.shape[1:]))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    path = folder / "float.tflite"
    path.write_bytes(converter.convert())
    return read(path)


def _quantize(lite: Model, request: QuantizationRequest, folder: Path) -> Model:
    path = folder / "made.tflite"
    path.write_bytes(quantize_tflite(lite, request, [X]).content)
    return read(path)


def _outputs(path: Path, runtime: Runtime = Runtime.BUILTIN) -> list[Any]:
    outputs = predict(path, X, runtime).real_values
    return [np.asarray(output) for output in (outputs.values() if isinstance(outputs, dict) else [outputs])]


def _errors(quantized: Model, lite: Model) -> list[float]:
    """The largest error of each output, relative to its range, on both runtimes."""
    return [
        float(np.abs(output - truth).max() / np.ptp(truth))
        for runtime in (Runtime.BUILTIN, Runtime.XNNPACK)
        for output, truth in zip(_outputs(quantized.path, runtime), _outputs(lite.path), strict=True)
    ]


def _read_twice(x: Any, body: Body) -> Any:
    y = _conv(x)
    return _conv(body(y)), y


READ_TWICE: dict[str, Body] = {  # by an operator that makes less of it than the others need
    "minimum": lambda x: _read_twice(x, lambda y: tf.minimum(y, 0.1)),
    "maximum": lambda x: _read_twice(x, lambda y: tf.maximum(y, -0.1)),
    "clip": lambda x: _read_twice(x, lambda y: tf.clip_by_value(y, -0.3, 0.3)),
    "where": lambda x: _read_twice(x, lambda y: tf.where(y > 0.1, tf.ones_like(y) * 0.1, y)),
    "celu": lambda x: _conv(tf.nn.relu(_conv(x)) + tf.minimum(tf.exp(tf.minimum(_conv(x), 0.0)) - 1.0, 0.0)),
    "moved": lambda x: _read_twice(x, lambda y: tf.minimum(tf.reshape(y, (1, 6, 6, 4))[:, 1:], 0.1)),
    "both": lambda x: (lambda y: (y, tf.maximum(y, -0.5), _conv(x)))(tf.minimum(_conv(x), 0.5)),
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", list(READ_TWICE))
def test_a_narrow_reader_narrows_nothing_for_the_others(name: str, scheme: Any, tmp_path: Path) -> None:
    lite = _file(READ_TWICE[name], tmp_path)
    quantized = _quantize(lite, QuantizationRequest(scheme), tmp_path)
    assert check_integer_only(quantized) == []
    assert max(_errors(quantized, lite)) < (0.08 if scheme == "int8" else 0.02)


def test_a_narrow_reader_that_reads_alone_narrows(tmp_path: Path) -> None:
    """All 256 steps cover the used range of a tensor."""
    lite = _file(lambda x: _conv(tf.minimum(tf.maximum(_conv(x), -0.1), 0.1)), tmp_path)
    first_conv = next(
        op for op in _quantize(lite, QuantizationRequest("int8"), tmp_path).operators if op.name == "CONV_2D"
    )
    assert first_conv.outputs[0] is not None
    assert first_conv.outputs[0].quantization is not None
    assert first_conv.outputs[0].quantization.scales[0] == pytest.approx(0.2 / 255, rel=0.01)


def _elu_block(x: Any) -> Any:
    first_conv = L.Conv2D(4, 3, padding="same", activation="elu")(x)
    return L.Concatenate()([first_conv, L.Conv2D(4, 3, padding="same", activation="elu")(first_conv)])


def test_operators_around_an_elu_are_integer(tmp_path: Path) -> None:
    inputs = keras.Input(X.shape[1:])
    model, path = keras.Model(inputs, _elu_block(inputs)), tmp_path / "m.tflite"
    path.write_bytes(convert(model, "int8", X))
    assert check_integer_only(read(path)) == []
    expected = model.predict(X, verbose=0)
    assert np.abs(_outputs(path)[0] - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize(
    ("scheme", "kind", "layer"),
    [("int16x8", "float32", L.LeakyReLU()), ("int16x8", "float32", L.GlobalMaxPooling2D()),
     ("int16x8", "float32", L.ELU()), ("int8", "uint8", L.ELU()), ("int8", "float32", L.ELU())],
)  # fmt: skip
def test_an_operator_at_the_interface_is_integer(scheme: Any, kind: Any, layer: Any, tmp_path: Path) -> None:
    inputs = keras.Input(X.shape[1:])
    model, path = keras.Model(inputs, layer(inputs)), tmp_path / "m.tflite"
    path.write_bytes(convert(model, scheme, X, kind, kind))
    assert check_integer_only(read(path), allow_float_interface=True) == []
    expected = model.predict(X, verbose=0)
    assert np.abs(_outputs(path)[0] - expected).max() < 0.03 * np.ptp(expected)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [("AVERAGE_POOL_2D", lambda x: _conv(tf.nn.avg_pool2d(_conv(x), 2, 2, "SAME"))),
     ("REDUCE_MAX", lambda x: _conv(tf.reduce_max(_conv(x), axis=1, keepdims=True))),
     ("SPLIT", lambda x: _conv(tf.concat(tf.split(_conv(x), 2, axis=3)[::-1], axis=3)))],
)  # fmt: skip
def test_selected_operators_stay_in_float(kind: str, body: Body, scheme: Any, tmp_path: Path) -> None:
    lite = _file(body, tmp_path)

    def select_float(model: Model) -> list[Any]:
        return [operator for operator in model.operators if operator.name == kind]

    quantized = _quantize(lite, QuantizationRequest(scheme, keep_float=select_float), tmp_path)
    types = {op.name: [t.dtype for t in op.outputs if t is not None] for op in quantized.operators}
    assert set(types[kind]) == {"float32"}
    assert set(types["CONV_2D"]) == {"int8" if scheme == "int8" else "int16"}


def test_one_hot_keeps_its_zeros(tmp_path: Path) -> None:
    lite = _file(lambda x: tf.one_hot(tf.argmax(_conv(x), axis=-1), 4), tmp_path)
    quantized = _quantize(lite, QuantizationRequest("int8"), tmp_path)
    assert _outputs(quantized.path)[0].min() == 0
    assert check_integer_only(quantized) == []


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_one_tensor_as_two_outputs_that_is_read_on(scheme: Any, tmp_path: Path) -> None:
    lite = _file(lambda x: (lambda y: (y, y, _conv(y)))(tf.nn.leaky_relu(_conv(x))), tmp_path)
    assert max(_errors(_quantize(lite, QuantizationRequest(scheme), tmp_path), lite)) < (
        0.05 if scheme == "int8" else 0.01
    )


@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason())
def test_a_hard_swish_of_16_bits_is_the_same_on_tflite_micro(tmp_path: Path) -> None:
    inputs = keras.Input(X.shape[1:])
    model, path = keras.Model(inputs, L.Activation("hard_silu")(inputs * 3)), tmp_path / "m.tflite"
    path.write_bytes(convert(model, "int16x8", X))
    expected = model.predict(X, verbose=0)
    assert np.abs(np.asarray(tflm_runtime.predict(path, X).real_values) - expected).max() < 0.002 * np.ptp(expected)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [L.GRU(3, unroll=True), L.LSTM(3, unroll=True)])
def test_outputs_of_a_split_have_one_name(layer: Any) -> None:
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, layer(inputs))
    samples = np.random.default_rng(0).normal(size=(20, 6, 4)).astype("float32")
    assert len({convert(model, "int8", samples) for _ in range(5)}) == 1


def test_a_batch_larger_than_one_keeps_its_shapes(tmp_path: Path) -> None:
    lite = _file(lambda x: tf.nn.depth_to_space(_conv(x), 2), tmp_path, batch=2)
    with decomposed_model(lite, uniform_bit_width(16)) as decomposed:
        transposed = next(
            t for op in decomposed.operators if op.name == "TRANSPOSE" for t in op.outputs if t is not None
        )
        assert transposed.shape[0] == 2


def test_a_power_that_broadcasts_its_input_is_kept(tmp_path: Path) -> None:
    lite = _file(lambda x: tf.pow(tf.reduce_sum(x), tf.constant([2.0])), tmp_path)
    with decomposed_model(lite, uniform_bit_width(8)) as decomposed:
        assert decomposed.operator_counts["POW"] == 1
        assert "MUL" not in decomposed.operator_counts


def test_a_centred_image_has_no_bias(tmp_path: Path) -> None:
    """Pixels of whole codes, shifted to -1 .. 1: with 255 steps all would lie halfway between two."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype("float32") / 255
    pixels[:, 0, 0] = [0.0, 1.0, 0.5]
    lite = float_graph(lambda x: x * 2.0 - 1.0, tmp_path, pixels)
    model = quantize_graph(lite, "int8", (pixels,))
    outputs = np.asarray(predict(model.path, pixels).real_values)
    assert abs(np.mean(outputs - (pixels * 2 - 1))) < 0.1 * 2 / 255
