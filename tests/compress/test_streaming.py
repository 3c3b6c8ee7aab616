"""Models that read a sequence in pieces: states are inputs and outputs, and pieces give what the whole gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.quantizer.quantization import QuantizationRequest, QuantizedModel, quantize_tflite
from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.models.saved_model_signatures import SavedModelSignature
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.metadata import add_metadata
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples
from edgepipe.tflite.stream_ports import STREAMING_NAME, own_inputs, read_stream_ports

K = tf_keras.layers
COUNT, STEPS, FEATURES = 24, 12, 3
RANDOM = np.random.RandomState(0)
SEQUENCES = RANDOM.normal(0, 1, (COUNT, STEPS, FEATURES)).astype(np.float32)
LENGTHS = RANDOM.randint(3, STEPS + 1, COUNT)
MASKED_SEQUENCES = np.where(np.arange(STEPS)[None, :, None] < LENGTHS[:, None, None], SEQUENCES, -10)
IDS = RANDOM.randint(0, 9, (COUNT, STEPS))


def _keras3(*stack: Any, steps: int | None = STEPS, batch_size: int | None = None) -> Any:
    return keras.Sequential([keras.Input((steps, FEATURES), batch_size=batch_size), *stack])


def _tf_keras(*stack: Any, batch_size: int | None = None) -> Any:
    return tf_keras.Sequential([tf_keras.Input((STEPS, FEATURES), batch_size=batch_size), *stack])


def _two_heads() -> Any:
    ids, values = keras.Input((STEPS,), name="ids", dtype="int32"), keras.Input((STEPS, FEATURES), name="values")
    joined = layers.Concatenate()([layers.Embedding(9, 4)(ids), values])
    hidden = layers.SimpleRNN(5, return_sequences=True, name="rnn")(joined)
    return keras.Model([ids, values], {"all": layers.Dense(2)(hidden), "last": layers.GRU(4, name="gru")(hidden)})


def _convert(model: Any, scheme: Any, steps: int, samples: Any = SEQUENCES, **options: Any) -> QuantizedModel:
    return convert_keras(model, QuantizationRequest(scheme, streaming=steps, **options), samples[:16], samples[16:])


def _write(content: bytes, folder: Path) -> Model:
    path = folder / "stream.tflite"
    path.write_bytes(content)
    return read(path)


def _check_states(lite: Model, names: tuple[str, ...]) -> None:
    """Each state's input and output are stored alike, so that its codes are handed over as they are."""
    ports = read_stream_ports(lite)
    assert ports is not None
    assert tuple(state.input for state in ports.states) == names
    for state in ports.states:
        given, kept = lite.inputs_by_name[state.input], lite.outputs_by_name[state.output]
        assert (given.dtype, given.shape, given.quantization) == (kept.dtype, kept.shape, kept.quantization)


STREAMS: dict[str, tuple[Callable[[], Any], int, tuple[str, ...]]] = {
    "one step": (lambda: _keras3(layers.LSTM(6, name="rnn"), layers.Dense(3)), 1, ("rnn_h", "rnn_c")),
    "every step": (
        lambda: _keras3(layers.SimpleRNN(5, return_sequences=True, name="rnn"), layers.Dense(3), steps=None),
        3,
        ("rnn_h",),
    ),
    "stateful": (
        lambda: _keras3(
            layers.GRU(4, stateful=True, return_sequences=True, name="a"),
            layers.LSTM(3, stateful=True, name="b"),
            steps=2,
            batch_size=5,
        ),
        2,
        ("a_h", "b_h", "b_c"),
    ),
    "causal convolutions": (
        lambda: _keras3(
            layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", name="a"),
            layers.Conv1D(4, 2, padding="causal", name="b"),
        ),
        2,
        ("a_steps", "b_steps"),
    ),
    "masked": (
        lambda: _keras3(layers.Masking(-10.0), layers.GRU(5, name="rnn"), layers.Dense(3)),
        4,
        ("rnn_h",),
    ),
    "cells": (
        lambda: _keras3(layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], name="rnn"), layers.Dense(3)),
        1,
        ("rnn_state_0", "rnn_state_1", "rnn_state_2"),
    ),
    "tf_keras": (
        lambda: _tf_keras(K.Conv1D(5, 3, padding="causal", name="front"), K.LSTM(5, name="rnn"), K.Dense(3)),
        2,
        ("front_steps", "rnn_h", "rnn_c"),
    ),
    "tf_keras stateful": (
        lambda: _tf_keras(K.GRU(5, stateful=True, name="rnn"), K.Dense(3), batch_size=2),
        1,
        ("rnn_h",),
    ),
}
LEAST_DECIBELS = {"int8": 18, "int16x8": 35}
CASES = [*((name, "int8") for name in STREAMS), ("one step", "int16x8"), ("every step", "int16x8")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_pieces_give_what_the_whole_gives(name: str, scheme: Any, tmp_path: Path) -> None:
    build_model, steps, state_names = STREAMS[name]
    samples = MASKED_SEQUENCES if name == "masked" else SEQUENCES
    keras.utils.set_random_seed(0)
    model = build_model()
    quantized_model = convert_keras(model, QuantizationRequest(scheme, streaming=steps), samples, samples)
    lite = _write(quantized_model.content, tmp_path)
    _check_states(lite, state_names)
    assert not check_integer_only(lite)
    assert quantized_model.fidelity is not None
    (output,) = quantized_model.fidelity.outputs  # states are none
    assert output.decibels is not None
    assert output.decibels > LEAST_DECIBELS[scheme]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_tflite_micro_runs_the_same_sequences(scheme: Any, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = _keras3(layers.GRU(4, return_sequences=True), layers.Dense(3, activation="softmax"))
    lite = _write(_convert(model, scheme, 2).content, tmp_path)
    codes = [
        np.asarray(outputs.stored_values, np.int64)
        for outputs in (predict(lite.path, SEQUENCES, Runtime.REFERENCE), tflm_runtime.predict(lite.path, SEQUENCES))
    ]
    assert codes[0].shape == (COUNT, STEPS, 3)
    assert np.abs(codes[0] - codes[1]).max() <= (2 if scheme == "int8" else 30)


def test_a_caller_copies_codes_by_the_names_of_the_signature(tmp_path: Path) -> None:
    """What a device does: no scale but that of input and output is needed, a sequence starts from the code of zero."""
    lite = _write(
        _convert(_keras3(layers.GRU(4, name="rnn"), layers.Dense(2, name="head")), "int8", 3).content, tmp_path
    )
    runner = Interpreter(str(lite.path)).get_signature_runner()
    (features,) = convert_samples(lite, SEQUENCES[:2])
    state_quantization = lite.inputs_by_name["rnn_h"].quantization
    assert state_quantization is not None
    for sequence, expected_codes in zip(
        features, np.asarray(predict(lite.path, SEQUENCES[:2]).stored_values), strict=True
    ):
        state = np.full((1, 4), state_quantization.zero_points[0], np.int8)
        for start in range(0, STEPS, 3):
            outputs = runner(**{next(iter(own_inputs(lite))): sequence[None, start : start + 3], "rnn_h": state})
            state = outputs["rnn_h_next"]
        np.testing.assert_array_equal(outputs["head"][0], expected_codes)


def test_several_inputs_and_outputs_with_and_without_steps(tmp_path: Path) -> None:
    model, samples = _two_heads(), cast(Arrays, {"ids": IDS, "values": SEQUENCES})
    quantized_model = convert_keras(model, QuantizationRequest("float32", streaming=4), samples)
    lite = _write(quantized_model.content, tmp_path)
    outputs = predict(lite.path, {"ids": IDS[:3], "values": SEQUENCES[:3]}, Runtime.BUILTIN).real_values
    expected_outputs = model({"ids": IDS[:3], "values": SEQUENCES[:3]})
    assert isinstance(outputs, dict)
    assert set(outputs) == {"all", "last"}
    for name, array in outputs.items():
        np.testing.assert_allclose(array, np.asarray(expected_outputs[name]), atol=1e-5)


def test_states_stay_integers_behind_float_interfaces(tmp_path: Path) -> None:
    """The last output of an LSTM is its state too: one tensor, two outputs of different types."""
    model = _keras3(layers.LSTM(4, name="rnn"))
    content = _convert(model, "int8", 4, input_type="float32", output_type="float32").content
    lite = _write(content, tmp_path)
    _check_states(lite, ("rnn_h", "rnn_c"))
    assert {name: tensor.dtype for name, tensor in lite.outputs_by_name.items()} == {
        "rnn": "float32", "rnn_h_next": "int8", "rnn_c_next": "int8"
    }  # fmt: skip
    outputs = predict(lite.path, SEQUENCES[:4]).real_values
    np.testing.assert_allclose(np.asarray(outputs), model(SEQUENCES[:4]), atol=0.1)


def test_a_float_stream_becomes_integer_later(float_stream: Model, tmp_path: Path) -> None:
    sequences = convert_samples(float_stream, SEQUENCES)
    lite = _write(quantize_tflite(float_stream, QuantizationRequest("int8"), sequences).content, tmp_path)
    _check_states(lite, ("rnn_h",))
    assert not check_integer_only(lite)


def test_the_notes_say_what_feeds_what() -> None:
    notes = _convert(_keras3(layers.GRU(4, name="rnn"), layers.Dense(2, name="head"), steps=4), "int8", 4).notes
    assert notes[0].startswith("streaming: 4 steps a call; the next call takes 'rnn_h_next' as 'rnn_h' (zero is code ")
    assert "the first call zeros; 'head' holds after the last call; in float, equal to the model over whole" in notes[0]


def test_samples_of_one_call_are_named() -> None:
    notes = _convert(_keras3(layers.GRU(4), steps=4), "int8", 4, SEQUENCES[:, :4]).notes
    assert notes[1].startswith(
        "streaming: every sample is as long as one call, so that no state of an earlier call was"
    )


def test_the_model_is_as_it_was() -> None:
    model = _keras3(layers.LSTM(4, stateful=True), steps=4, batch_size=2)
    model(SEQUENCES[:2, :4])
    states = [np.asarray(variable) for variable in model.layers[0].states]
    _convert(model, "float32", 4)
    for variable, state in zip(model.layers[0].states, states, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), state)
    assert model.layers[0].stateful
    assert not model.layers[0].unroll


def _shared_layer() -> Any:
    inputs, layer = keras.Input((STEPS, FEATURES)), layers.GRU(FEATURES, return_sequences=True, name="twice")
    return keras.Model(inputs, layer(layer(inputs)))


def _given_state() -> Any:
    inputs = keras.Input((STEPS, FEATURES))
    return keras.Model(inputs, layers.GRU(3, name="late")(inputs, initial_state=layers.Dense(3)(inputs[:, 0])))


def _still_input() -> Any:
    inputs, still = keras.Input((STEPS, FEATURES), name="x"), keras.Input((2,), name="still")
    return keras.Model([inputs, still], layers.Concatenate()([layers.GRU(2)(inputs), still]))


def _masked_steps() -> Any:
    return _keras3(layers.Masking(-10.0), layers.GRU(3, return_sequences=True), layers.Dense(2))


REFUSALS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "backwards": (lambda: _keras3(layers.GRU(2, go_backwards=True, name="b")), {}, r"'b' \(GRU\) reads the .* backw"),
    "both ways": (lambda: _keras3(layers.Bidirectional(layers.GRU(2), name="b")), {}, r"'b' \(Bidirectional\) reads"),
    "no state": (lambda: _keras3(layers.Dense(2)), {}, "found no recurrent layer .* and no causal Conv1D; drop `str"),
    "shared": (_shared_layer, {}, "'twice' is called more than once, .* give each call a layer of its own"),
    "given state": (_given_state, {}, "'late' starts from a state that the model computes .initial_state., which"),
    "still input": (_still_input, {}, "every input must be a sequence .* 'still' .None, 2.; give what does not change"),
    "several steps at once": (
        lambda: _keras3(layers.Conv1D(2, 3, padding="same", name="front"), layers.GRU(2)),
        {},
        r"something else than over the whole sequence of 12 steps: .* 'front' \(Conv1D\) may read several steps",
    ),
    "pooled": (
        lambda: _keras3(layers.GRU(2, return_sequences=True), layers.GlobalAveragePooling1D(name="mean")),
        {},
        r"'mean' \(GlobalAveragePooling1D\) may read several steps at once, .* use Conv1D\(padding='causal'\)",
    ),
    "fixed size": (
        lambda: _keras3(layers.GRU(2, return_sequences=True), layers.Flatten(name="flat"), layers.Dense(2)),
        {},
        r"streaming, 4 steps a call: .* does not take inputs .* 'flat' \(Flatten\) may read several steps",
    ),
    "strided": (
        lambda: _keras3(layers.Conv1D(2, 3, strides=3, padding="causal", name="c"), layers.GRU(2)),
        {},
        "'c' .causal Conv1D. has a stride of 3 and reads 4 steps in a call, .* a multiple of the stride",
    ),
    "masked steps": (_masked_steps, {"samples": MASKED_SEQUENCES}, r"'masking\w*' \(Masking\) may read several steps"),
    "rest": (lambda: _keras3(layers.GRU(2)), {"steps": 5}, r"of the 5 steps of a call; found the shape \(16, 12"),
    "too many": (lambda: _keras3(layers.GRU(2)), {"steps": 300}, "a call takes at most 256 steps, found 300"),
    "none": (lambda: _keras3(layers.GRU(2)), {"steps": 0}, "streaming 0: a call takes one step or more, such as `stre"),
    "fused": (lambda: _keras3(layers.LSTM(2)), {"recurrent": "fused"}, "keeps its state inside the operator, not in"),
    "mixed": (lambda: _keras3(layers.LSTM(2)), {"scheme": "mixed"}, "scheme mixed is decided on whole windows; use"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_stream_is_refused(name: str) -> None:
    build_model, options, message = REFUSALS[name]
    with pytest.raises(InputError, match=message) as refusal:
        _convert(build_model(), **{"scheme": "int8", "steps": 4, **options})
    assert "\n" not in str(refusal.value)


def test_a_saved_model_cannot_stream(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not say which of its variables are states .* convert the Keras model"):
        _convert(SavedModelSignature(tmp_path / "saved"), "int8", 4)


@pytest.fixture(scope="module")
def float_stream(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A GRU of four steps a call, in float."""
    inputs = keras.Input((STEPS, FEATURES), name="x")
    model = keras.Model(inputs, layers.GRU(2, name="rnn")(inputs))
    content = convert_keras(model, QuantizationRequest("float32", streaming=4)).content
    return _write(content, tmp_path_factory.mktemp("stream"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"[]", "metadata 'edgepipe.streaming' cannot be read: Input should be an object"),
        (b'{"steps": 4, "states": []}', "cannot be read: Tuple should have at least 1 item"),
        (b'{"steps": 4, "states": [{"input": "a", "output": "b"}]}', "names '[ab]', which is no port of it"),
    ],
)
def test_damaged_metadata_is_refused(entry: bytes, message: str, float_stream: Model, tmp_path: Path) -> None:
    lite = _write(add_metadata(float_stream.content, STREAMING_NAME, entry), tmp_path)
    with pytest.raises(InputError, match=message):
        predict(lite.path, SEQUENCES)


SEQUENCE_PROBLEMS = {
    "rest": (SEQUENCES[:, :7], "a call takes 4 steps, so samples are sequences .* found steps: 'x' 7"),
    "one step": (SEQUENCES[:, 0], "input 'x' takes samples of shape .any, 3.*|found steps: 'x' 3"),
    "states too": ({"x": SEQUENCES, "rnn_h": np.zeros((COUNT, 2))}, "inputs given: x, rnn_h; the model's inputs: x"),
}


@pytest.mark.parametrize("name", SEQUENCE_PROBLEMS)
def test_sequences_that_do_not_fit_are_refused(name: str, float_stream: Model) -> None:
    samples, message = SEQUENCE_PROBLEMS[name]
    with pytest.raises(InputError, match=message):
        predict(float_stream.path, cast(Arrays, samples))
