"""Recurrent layers as Keras makes them by default - loops - become integers; what cannot is refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers, ops

from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.loop_unrolling import freeze_without_loops
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.core.errors import InputError
from edgepipe.models.recurrent_layers import unrolled
from edgepipe.models.saved_model_signatures import SavedModelSignature
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.reader import read

K = tf_keras.layers
STEPS, FEATURES = 4, 3
SAMPLES = np.random.RandomState(0).normal(0, 1, (40, STEPS, FEATURES)).astype(np.float32)
MASKED_SAMPLES = np.where(np.arange(STEPS)[None, :, None] < np.arange(1, 5).repeat(10)[:, None, None], SAMPLES, -10)


class Gate(keras.layers.Layer):  # type: ignore[misc]
    """A recurrent cell of the user's own."""

    state_size = 3

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.dense = layers.Dense(3, activation="tanh")

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, 3 + input_shape[-1]))

    def call(self, x: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        output = self.dense(ops.concatenate([x, states[0]], axis=-1))
        return output, [output]

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        return [ops.zeros((batch_size, 3))]


class Block(keras.layers.Layer):  # type: ignore[misc]
    """A layer of the user's own with a recurrent layer inside."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.gru = layers.GRU(3)

    def call(self, x: Any) -> Any:
        return self.gru(x) * 2.0


def _keras3(*stack: Any, batch_size: int | None = None) -> Any:
    return keras.Sequential([keras.Input((STEPS, FEATURES), batch_size=batch_size), *stack])


def _tf_keras(*stack: Any, batch_size: int | None = None) -> Any:
    return tf_keras.Sequential([tf_keras.Input((STEPS, FEATURES), batch_size=batch_size), *stack])


def _frames() -> Any:
    return layers.Reshape((STEPS, FEATURES, 1, 1))


LOOPS: dict[str, Callable[[], Any]] = {
    "lstm with dropout": lambda: _keras3(layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2), layers.Dense(2)),
    "stacked, backwards": lambda: _keras3(
        layers.SimpleRNN(3, return_sequences=True), layers.GRU(2, go_backwards=True), layers.Dense(2)
    ),
    "both directions": lambda: _keras3(layers.Bidirectional(layers.GRU(2, return_sequences=True)), layers.Flatten()),
    "masked": lambda: _keras3(layers.Masking(-10.0), layers.LSTM(3), layers.Dense(2)),
    "cells": lambda: _keras3(layers.RNN([layers.LSTMCell(2), Gate()]), layers.Dense(2)),
    "inside a layer inside a model": lambda: _keras3(_keras3(Block()), layers.Dense(2)),
    "images": lambda: _keras3(_frames(), layers.ConvLSTM2D(2, (2, 1)), layers.Flatten()),
    "tf_keras": lambda: _tf_keras(K.Bidirectional(K.GRU(2, return_sequences=True)), K.LSTM(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_becomes_integers(name: str, tmp_path: Path) -> None:
    samples = MASKED_SAMPLES if name == "masked" else SAMPLES
    keras.utils.set_random_seed(0)
    model, path = LOOPS[name](), tmp_path / "m.tflite"
    expected_outputs = np.asarray(model(samples))
    quantized_model = convert_keras(model, QuantizationRequest(), samples[::2], samples[1::2])
    path.write_bytes(quantized_model.content)
    assert not check_integer_only(read(path))
    assert quantized_model.notes[0].startswith("recurrent layers unrolled step by step, for integers: '")
    assert quantized_model.fidelity is not None
    assert not quantized_model.fidelity.findings()
    np.testing.assert_array_equal(model(samples), expected_outputs)  # the model is as it was


def test_the_note_counts_layers_and_operators(tmp_path: Path) -> None:
    model, path = _keras3(layers.LSTM(3, name="a"), layers.Dense(2)), tmp_path / "float.tflite"
    with unrolled(model):
        path.write_bytes(convert(model, "float32"))
    quantized_model = convert_keras(model, QuantizationRequest("int16x8"), SAMPLES)
    assert quantized_model.notes[0] == (
        f"recurrent layers unrolled step by step, for integers: 'a'; {len(read(path).operators)} operators, which "
        "share their weights"
    )


def test_steps_share_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(_keras3(layers.LSTM(3)), "int8", SAMPLES))
    weight_shapes = [tensor.shape for tensor in read(path).parameter_tensors]
    assert weight_shapes.count((12, 3)) == 2  # those of the input and of the state, once each


def test_schemes_without_samples_keep_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    for scheme in ("float32", "float16", "dynamic"):
        quantized_model = convert_keras(_keras3(layers.GRU(3)), QuantizationRequest(scheme))  # type: ignore[arg-type]
        path.write_bytes(quantized_model.content)
        assert [operator.name for operator in read(path).operators].count("WHILE") == 1
        assert quantized_model.notes == ()


def test_unrolled_layers_have_no_note() -> None:
    quantized_model = convert_keras(_keras3(layers.SimpleRNN(2, unroll=True)), QuantizationRequest(), SAMPLES)
    assert not any("unrolled" in note for note in quantized_model.notes)


def _counter() -> Any:
    class Counter(keras.layers.Layer):  # type: ignore[misc]
        def build(self, input_shape: Any) -> None:
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x: Any) -> Any:
            self.calls.assign_add(1.0)
            return x * self.calls

    return _keras3(Counter(name="counter"))


def _scan() -> Any:
    x = keras.Input((STEPS, FEATURES))
    total, _ = ops.scan(lambda carry, step: (carry * 0.5 + step, carry), ops.sum(x, 1), ops.transpose(x, (1, 0, 2)))
    return keras.Model(x, total)


def _open_length() -> Any:
    def drop_zeros(x: Any) -> Any:
        return tf.boolean_mask(x, tf.reduce_any(x != 0.0, [0, 2]), axis=1)

    x = keras.Input((STEPS, FEATURES))
    return keras.Model(x, layers.LSTM(2, name="open")(layers.Lambda(drop_zeros, output_shape=(None, FEATURES))(x)))


def _long() -> Any:
    inputs = keras.Input((STEPS, FEATURES))
    return keras.Model(inputs, layers.GRU(2, name="long")(layers.UpSampling1D(75)(inputs)))


STATEFUL = "stateful=True in 'it': a .tflite keeps no state .* set stateful=False .* the states inputs and outputs"
REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "too long": (_long, "long.*, and 300 steps are too many to be unrolled .at most 256.; shorten the sequence .*"),
    "open": (_open_length, "open.*, and its number of steps is open; give the sequence a fixed length .*"),
    "no recurrent layer": (_scan, "and only recurrent layers of Keras .* can be unrolled; repeat the step"),
    "stateful": (lambda: _keras3(layers.LSTM(2, stateful=True, name="it"), batch_size=1), STATEFUL),
    "stateful tf_keras": (lambda: _tf_keras(K.GRU(2, stateful=True, name="it"), batch_size=1), STATEFUL),
    "variable": (_counter, "changes variables of its own when it runs .'.*counter.*'., and a .tflite keeps no"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_unrolled_is_refused(name: str) -> None:
    build_model, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        convert(build_model(), "int8", SAMPLES)


@pytest.mark.parametrize("scheme", ["float32", "dynamic"])
def test_a_state_is_refused_by_every_scheme(scheme: Any) -> None:
    with pytest.raises(InputError, match=STATEFUL):
        convert(_keras3(layers.LSTM(2, stateful=True, name="it"), batch_size=1), scheme)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.LSTM(2), "the layers of a SavedModel cannot be unrolled; convert the Keras model itself .*unroll=True"),
        (layers.LSTM(2, unroll=True, dropout=0.1), "keeps a state: it assigns a variable"),
    ],
)
def test_a_saved_model_cannot_be_unrolled(layer: Any, message: str, tmp_path: Path) -> None:
    _keras3(layer).export(tmp_path / "saved", verbose=False)
    with pytest.raises(InputError, match=message):
        convert(SavedModelSignature(tmp_path / "saved"), "int8", SAMPLES)


def test_unrolled_steps_that_differ_from_the_loop_are_refused() -> None:
    class Wrong(layers.SimpleRNN):  # type: ignore[misc]
        def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
            return super().call(sequences, initial_state, mask, training) * (1.01 if self.unroll else 1.0)

    graph = freeze_without_loops(_keras3(Wrong(2)))
    with pytest.raises(InputError, match=r"compute something else: an output differs by 1\.0e-02 .*please report it"):
        graph.check_equal([SAMPLES])
