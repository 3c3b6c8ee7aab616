"""TFLite's fused LSTM in integers: as good as the unrolled one, on LiteRT and on TFLite Micro; else refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

import edgepipe
from edgepipe.compress.keras_to_tflite import convert_keras, float_model
from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.fused_lstm import FUSED_LSTM, find_fused_lstms
from edgepipe.compress.quantizer.fused_lstm_writer import cell_encoding
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.compress.schemes import RecurrentForm
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.reader import read

STEPS, FEATURES = 6, 4
MAX_LOSS = 1.0  # dB below the unrolled model
MICRO_LSB = 2  # TFLite Micro against LiteRT's reference kernels
SAMPLES = np.random.RandomState(0).normal(0, 1, (160, STEPS, FEATURES)).astype(np.float32)
CALIBRATING, HELD_OUT = SAMPLES[:100], SAMPLES[100:]


def _model(*stack: Any) -> Any:
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((STEPS, FEATURES)), *stack])
    for weight in model.weights:  # away from the defaults: biases too
        weight.assign(1.5 * weight + np.random.RandomState(1).normal(0, 0.1, weight.shape))
    return model


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "last step": (lambda: _model(layers.LSTM(8, dropout=0.2), layers.Dense(3)), 1),
    "both directions, all steps": (
        lambda: _model(layers.Bidirectional(layers.LSTM(3, use_bias=False, return_sequences=True))),
        2,
    ),
    "tf_keras": (lambda: tf_keras.Sequential([tf_keras.Input((STEPS, FEATURES)), tf_keras.layers.LSTM(6)]), 1),
}


def _write(model: Any, recurrent: RecurrentForm, path: Path) -> tuple[str, ...]:
    request = QuantizationRequest("int8", "float32", "float32", recurrent=recurrent)
    quantized_model = convert_keras(model, request, CALIBRATING)
    path.write_bytes(quantized_model.content)
    return quantized_model.notes


def _snr(model: Any, path: Path) -> float:
    truth = np.asarray(model(HELD_OUT), np.float64)
    noise = np.asarray(predict(path, HELD_OUT, Runtime.BUILTIN).real_values) - truth
    return 10 * math.log10(float(np.square(truth).sum() / np.square(noise).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_as_good_as_unrolled_and_far_smaller(name: str, tmp_path: Path) -> None:
    build_model, lstm_count = MODELS[name]
    model, fused_path, unrolled_path = build_model(), tmp_path / "fused.tflite", tmp_path / "unrolled.tflite"
    notes = _write(model, "fused", fused_path)
    _write(model, "unrolled", unrolled_path)
    operators = [operator.name for operator in read(fused_path).operators]
    assert operators.count(FUSED_LSTM) == lstm_count
    assert len(operators) < len(read(unrolled_path).operators) / 1.5
    assert check_integer_only(read(fused_path), allow_float_interface=True) == []
    assert "reset it before each sequence" in notes[0]
    assert _snr(model, fused_path) >= _snr(model, unrolled_path) - MAX_LOSS


@pytest.mark.slow
def test_a_masked_lstm_beside_it_is_unrolled(tmp_path: Path) -> None:
    inputs = keras.Input((STEPS, FEATURES))
    branches = [layers.LSTM(2)(inputs), layers.LSTM(2)(layers.Masking()(inputs))]
    notes = _write(keras.Model(inputs, layers.Concatenate()(branches)), "fused", tmp_path / "m.tflite")
    assert notes[0].startswith("1 LSTM fused into one operator each (1 with a mask unrolled), ")
    assert check_integer_only(read(tmp_path / "m.tflite"), allow_float_interface=True) == []


@pytest.mark.slow
@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason="TFLite Micro is not installed")
def test_micro_computes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(
        convert_keras(
            MODELS["both directions, all steps"][0](), QuantizationRequest(recurrent="fused"), CALIBRATING
        ).content
    )
    reference = np.asarray(predict(path, HELD_OUT, Runtime.REFERENCE).stored_values, np.int32)
    micro = np.asarray(tflm_runtime.predict(path, HELD_OUT).stored_values, np.int32)
    assert np.abs(reference - micro).max() <= MICRO_LSB


def test_the_cell_is_that_of_keras() -> None:
    layer = layers.LSTM(5, return_state=True)
    inputs = keras.Input((STEPS, FEATURES))
    cells = keras.Model(inputs, layer(inputs)[2])
    model = keras.Model(inputs, layer(inputs)[0])
    with float_model(model, CALIBRATING, True, "fused") as (lite, _):
        (lstm,) = find_fused_lstms(GraphIndex(MutableGraph(flatbuffer_edits.unpack_model(lite.content))))
    *_, last_cell = lstm.cells(SAMPLES.astype(np.float64))
    np.testing.assert_allclose(last_cell, np.asarray(cells(SAMPLES)), atol=1e-5)


@pytest.mark.parametrize(
    ("largest", "exponent"), [(0.0, -15), (0.5, -15), (1.0, -14), (1.9, -14), (-7.5, -12), (63.9, -9), (500.0, -9)]
)
def test_the_scale_of_the_cell_is_a_power_of_two(largest: float, exponent: int) -> None:
    encoding = cell_encoding((min(largest, 0.0), max(largest, 0.0)))
    assert (encoding.bits, encoding.scale, encoding.zero_point) == (16, 2.0**exponent, 0)


def test_a_float_tflite_with_a_fused_lstm_becomes_integer(tmp_path: Path) -> None:
    float_path, path = tmp_path / "float.tflite", tmp_path / "m.tflite"
    model = MODELS["last step"][0]()
    with float_model(model, CALIBRATING, True, "fused") as (lite, _):
        float_path.write_bytes(lite.content)
    np.testing.assert_allclose(_predict(float_path), np.asarray(model(HELD_OUT)), atol=1e-5)
    edgepipe.convert(float_path, data=CALIBRATING, out=path)
    assert check_integer_only(read(path)) == []


def _predict(path: Path) -> Array:
    return np.asarray(predict(path, HELD_OUT, Runtime.BUILTIN).real_values)


def _started() -> Any:
    inputs = keras.Input((STEPS, FEATURES))
    states = [layers.Dense(3)(inputs[:, 0]) for _ in range(2)]
    return keras.Model(inputs, layers.LSTM(3, name="it")(inputs, initial_state=states))


def _with_last_cell() -> Any:
    inputs = keras.Input((STEPS, FEATURES))
    return keras.Model(inputs, layers.Concatenate()(layers.LSTM(3, name="it", return_state=True)(inputs)[1:]))


NOTHING_TO_FUSE = "found no layer to fuse; TFLite's fused kernel computes the LSTM layers of a Keras model"
REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "no lstm": (lambda: _model(layers.GRU(3)), NOTHING_TO_FUSE),
    "another activation": (lambda: _model(layers.LSTM(3, activation="relu")), NOTHING_TO_FUSE),
    "masked": (lambda: _model(layers.Masking(), layers.LSTM(3)), "every LSTM has a mask"),
    "first state": (_started, "it.*starts from a state that is not zero, .* `recurrent: unrolled`"),
    "last cell": (_with_last_cell, "it.*gives its last cell to other layers, .* `recurrent: unrolled`"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    build_model, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        convert_keras(build_model(), QuantizationRequest(recurrent="fused"), CALIBRATING)


@pytest.mark.parametrize("scheme", ["int16x8", "dynamic", "float32"])
def test_other_schemes_refuse_it(scheme: Any, tmp_path: Path) -> None:
    _model(layers.SimpleRNN(2, unroll=True)).save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=f"has a kernel for int8, the scheme is {scheme}; use scheme int8"):
        edgepipe.convert(tmp_path / "m.keras", scheme=scheme, recurrent="fused", data=CALIBRATING)


def test_a_tflite_has_no_layers_to_fuse(tmp_path: Path) -> None:
    path = tmp_path / "float.tflite"
    path.write_bytes(convert_keras(_model(layers.SimpleRNN(2, unroll=True)), QuantizationRequest("float32")).content)
    with pytest.raises(InputError, match=r"recurrent fused: the layers of a \.tflite are gone; convert the Keras"):
        edgepipe.convert(path, recurrent="fused", data=CALIBRATING, out=tmp_path / "m.tflite")
