"""Unusual models: several outputs, outputs read inside, meaningless names, operators without integer kernels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.tools import flatbuffer_utils

from edgepipe.commands.convert import convert as convert_file
from edgepipe.commands.sensitivity import SensitivityOptions, rank_model_layers
from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.mixed_precision import build_mix_check, missing_kernel_notes, replay_note
from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.float_exclusions import select_float_operators
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer, build_layerwise_quantizer
from edgepipe.compress.quantizer.mixed_precision_search import SearchResult
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.compress.source_model import map_layer_classes, read_float_tflite
from edgepipe.core.errors import InputError
from edgepipe.devices import device_profile
from edgepipe.stages.convert import Convert
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

X = np.random.RandomState(0).randn(20, 6).astype("float32")


def _input_and_dense() -> tuple[Any, Any]:
    inputs = keras.Input((6,), name="x")
    return inputs, keras.layers.Dense(4, activation="relu", name="first")(inputs)


def _plain_model() -> Any:
    inputs, x = _input_and_dense()
    return keras.Model(inputs, keras.layers.Dense(3, name="last")(x))


def _two_outputs(as_dict: bool = False) -> Any:
    inputs, x = _input_and_dense()
    outputs = {
        name: keras.layers.Dense(size, name=name, activation="softmax")(x) for name, size in (("z", 3), ("a", 2))
    }
    return keras.Model(inputs, outputs if as_dict else list(outputs.values()))


def _output_read_inside() -> Any:
    inputs, x = _input_and_dense()
    chances = keras.layers.Dense(3, activation="softmax", name="chances")(x)
    return keras.Model(inputs, [chances, keras.layers.Dense(2, name="last")(chances)])


def _layer_called_twice() -> Any:
    inputs, x = _input_and_dense()
    last_layer = keras.layers.Dense(3, name="last")
    return keras.Model(inputs, [last_layer(x), last_layer(x * 2.0)])


MODELS: dict[str, Callable[[], Any]] = {
    "plain": _plain_model,
    "two": _two_outputs,
    "dict": lambda: _two_outputs(True),
    "read on": _output_read_inside,
    "twice": _layer_called_twice,
}


def _layerwise_quantizer(model: Any, folder: Path) -> LayerwiseQuantizer:
    path = folder / "float.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    ranges = calibrate(lite, X, ActivationCalibration()).by_tensor
    return build_layerwise_quantizer(lite, find_layers(lite, map_layer_classes(model)), ranges, ("int8", "int8"), X)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_layer_can_be_judged_alone_and_left_out(name: str, tmp_path: Path) -> None:
    quantizer = _layerwise_quantizer(MODELS[name](), tmp_path)
    for layer in quantizer.layers:
        assert 0 <= quantizer.score_distance({layer.name: "int8"}, "float32") < 0.1
        assert 0 <= quantizer.score_distance({layer.name: "float32"}) < 0.1


@pytest.mark.parametrize("level", ["int16", "float16", "float32"])
@pytest.mark.parametrize("name", ["plain", "two"])
def test_a_promoted_last_layer_leaves_the_interface_alone(name: str, level: Any, tmp_path: Path) -> None:
    quantizer = _layerwise_quantizer(MODELS[name](), tmp_path)
    for chosen in ([quantizer.layers[-1].name], [layer.name for layer in quantizer.layers]):
        with temporary_tflite(quantizer.quantize(dict.fromkeys(chosen, level))) as path:
            quantized = read(path)
            assert {tensor.dtype for tensor in (*quantized.inputs, *quantized.outputs)} == {"int8"}
            predict(path, X)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_the_last_layer_is_left_by_its_name_and_the_interface_stays(scheme: Any, tmp_path: Path) -> None:
    model = _plain_model()
    path = tmp_path / "m.tflite"
    request = QuantizationRequest(scheme, keep_float=select_float_operators([], ["last"], map_layer_classes(model)))
    path.write_bytes(convert_keras(model, request, X).content)
    quantized = read(path)
    assert {tensor.dtype for tensor in quantized.outputs} == {"int8" if scheme == "int8" else "int16"}
    dense = [op.outputs[0] for op in quantized.operators if op.name == "FULLY_CONNECTED"]
    assert [tensor.dtype == "float32" for tensor in dense if tensor is not None] == [False, True]


@pytest.mark.parametrize("names", [{}, {"first": "Dense", "last": "Dense"}])
def test_the_last_layer_has_a_name(names: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(_plain_model(), "float32"))
    layer_names = [re.sub(r"_\d+$", "", layer.name) for layer in find_layers(read(path), names)]
    assert layer_names == ["first", "last"]


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU])
def test_an_output_that_nothing_reads_is_integer_too(layer: Any, tmp_path: Path) -> None:
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, keras.layers.Dense(2)(layer(3, unroll=True)(inputs)))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "int16x8", np.random.RandomState(0).randn(8, 3, 2).astype("float32")))
    assert check_integer_only(read(path)) == []


@pytest.mark.parametrize("scheme", ["float32", "int8"])
@pytest.mark.parametrize("name", ["two", "dict", "twice"])
def test_outputs_are_compared_with_their_own(name: str, scheme: Any, tmp_path: Path) -> None:
    source = tmp_path / "m.keras"
    MODELS[name]().save(source)
    conversion = convert_file(
        source, data=X, scheme=scheme, input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    worst = next(metric.value for metric in conversion.metrics if metric.name == "max_difference")
    assert worst is not None
    assert worst < (1e-5 if scheme == "float32" else 0.2)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [("weight_only_int8", r"2 of \d+ operators compute in float: FULLY_CONNECTED"), ("int8", None), ("float16", None)],
)
def test_a_command_says_what_computes_in_float(scheme: Any, message: str | None, tmp_path: Path) -> None:
    source = tmp_path / "m.keras"
    _plain_model().save(source)
    conversion = convert_file(
        source, data=X, scheme=scheme, input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    float_notes = [note for note in conversion.notes if "compute in float" in note]
    assert len(float_notes) == (message is not None)
    assert all(re.search(message or "", note) for note in float_notes)


@pytest.mark.parametrize(
    ("samples", "scheme", "layers", "message"),
    [
        ({"a": X, "b": X}, "dynamic", [], "named a, b, the model's inputs x"),
        (X[:, :5], "float16", [], r"shape \(5,\), input 'x' takes \(6,\)"),
        (X, "int8", ["("], r"--keep-float-layers '\(' is not a regular expression: missing \)"),
    ],
)
def test_what_does_not_fit_is_refused_by_every_scheme(
    samples: Any, scheme: Any, layers: list[str], message: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "m.keras", tmp_path / "m.tflite"
    _plain_model().save(source)
    with pytest.raises(InputError, match=message):
        convert_file(
            source, data=samples, scheme=scheme, input_type=None, output_type=None, out=out, allow_code=False,
            keep_float_layers=layers,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("samples", "fits"), [([0.0, 1.0], True), ([0.5, 1.0], False), ([0.0, 300.0], False)])
def test_integer_inputs_take_whole_numbers_that_they_hold(samples: list[float], fits: bool) -> None:
    inputs = keras.Input((1,), dtype="uint8", name="ids")
    model = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs)))
    array = np.array(samples, np.float32)[:, None]
    if fits:
        assert convert(model, "int8", array)
        return
    with pytest.raises(InputError, match="input 'ids' are not all whole numbers that uint8"):
        convert(model, "int8", array)


def test_a_model_without_operators_is_refused() -> None:
    inputs = keras.Input((6,))
    with pytest.raises(InputError, match="no operator"):
        convert(keras.Model(inputs, keras.layers.Identity()(inputs)), "int8", X)


@pytest.mark.parametrize("name", [None, b"same"])
def test_tensors_without_a_name_of_their_own_are_refused(name: bytes | None, tmp_path: Path) -> None:
    model = flatbuffer_edits.unpack_model(convert(_plain_model(), "float32"))
    flatbuffer_utils.strip_strings(model)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = name
    path = tmp_path / "m.tflite"
    path.write_bytes(flatbuffer_edits.pack_model(model))
    with pytest.raises(InputError, match=r"has no name|are called 'same'"):
        read_float_tflite(path)


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("plain", [0, 2], None),
        ("plain", [-1, 2], "-1"),
        ("plain", [0, 3], "4 classes, the model has 1 output of 3"),
        ("two", [0, 1], "2 outputs of"),
    ],
)
def test_accuracy_only_where_each_class_has_a_score(
    name: str, labels: list[int], message: str | None, tmp_path: Path
) -> None:
    source, data = tmp_path / "m.tflite", tmp_path / "d.npz"
    source.write_bytes(convert(MODELS[name](), "float32"))
    np.savez(data, x=X[:2], y=np.array(labels))
    report = rank_model_layers(source, str(data), SensitivityOptions(), False, None)
    notes = [note for note in report.notes if note.startswith("no accuracy")]
    assert (report.quality_float is None) == bool(notes) == (message is not None)
    assert all(str(message) in note for note in notes)


def test_a_model_without_layers_is_not_ranked(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    source = tmp_path / "m.tflite"
    source.write_bytes(convert(keras.Model(inputs, keras.layers.Identity()(inputs)), "float32"))
    with pytest.raises(InputError, match="no operator"):
        rank_model_layers(source, X, SensitivityOptions(), False, None)


def test_operators_that_were_not_promoted_with_their_layer_are_reported(tmp_path: Path) -> None:
    inputs, x = _input_and_dense()
    x = keras.layers.Lambda(tf.sin, name="waves")(
        keras.layers.Dense(4, name="mid")(x)
    )  # a table in 8 bits, too large in 16
    x = keras.layers.Dense(3, name="last")(x)
    quantizer = _layerwise_quantizer(keras.Model(inputs, x), tmp_path)
    levels: Any = dict.fromkeys(("first", "waves"), "int16")
    mix = SearchResult(levels, quantizer.quantize(levels), 0.0, (), ())
    notes = missing_kernel_notes(quantizer, mix)
    assert len(notes) == 1
    assert notes[0].endswith("for 1 operator of promoted layers: waves SIN int8")
    assert missing_kernel_notes(quantizer, SearchResult({}, quantizer.quantize({}), 0.0, (), ())) == []


@pytest.mark.parametrize(
    ("options", "fragment"),
    [({}, "json}`"), ({"equalize": "samples", "representative": 40}, "json, representative: 40, equalize: samples}`")],
)
def test_the_note_on_a_recipe_says_what_else_to_repeat(options: dict[str, Any], fragment: str) -> None:
    convert = Convert(scheme="mixed", max_drop="0.5 point", **options)
    assert fragment in replay_note(convert.repeat_options(), SearchResult({}, b"", 0.0, (), ()))


def test_a_model_that_gives_nan_itself_is_converted_without_a_comparison(tmp_path: Path) -> None:
    inputs = keras.Input((6,), name="x")
    source = tmp_path / "m.keras"
    keras.Model(inputs, keras.ops.log(inputs)).save(source)
    conversion = convert_file(
        source, data=X, scheme="float32", input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    difference = next(metric for metric in conversion.metrics if metric.name == "max_difference")
    assert difference.value is None


IMAGES = np.random.RandomState(0).randn(40, 8, 8, 4).astype("float32")
L = keras.layers


def _model_read_inside(which: str) -> Any:
    """A model with an output that is also read inside."""
    inputs = keras.Input(IMAGES.shape[1:])
    first_output = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    scores = L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(first_output))
    outputs_by_name = {
        "convolution": lambda: [first_output, L.Conv2D(4, 3)(first_output)],
        "twice": lambda: [L.Conv2D(4, 3)(first_output), first_output, L.Conv2D(2, 3)(first_output)],
        "softmax": lambda: [scores, L.Dense(2)(scores)],
        "reshape": lambda: [L.Reshape((256,))(first_output), first_output],
        "sum": lambda: [first_output, L.Add()([first_output, inputs])],
        "concatenation": lambda: [first_output, L.Concatenate()([first_output, inputs])],
        "pooling": lambda: [first_output, L.MaxPooling2D()(first_output)],
    }
    return keras.Model(inputs, outputs_by_name[which]())


@pytest.mark.parametrize("case", ["convolution", "twice", "softmax", "reshape", "sum", "concatenation", "pooling"])
def test_an_output_that_is_read_inside_is_right_in_every_type(case: str, tmp_path: Path) -> None:
    """In integers of one width, and in mixed types."""
    model = _model_read_inside(case)
    expected = model.predict(IMAGES, verbose=0)
    float_path = tmp_path / "float.tflite"
    float_path.write_bytes(convert(model, "float32"))
    lite = read(float_path)
    int16_rule = recipes.make_rule(recipes.integer_config(16), recipes.operator_pattern(lite.operators[0]))
    mixed_recipe = [*recipes.scheme_recipe("int8"), int16_rule]
    for name, kinds, recipe in (
        ("int8", ("int8", "uint8", "float32"), None),
        ("int16x8", ("int16", "float32"), None),
        ("recipe", ("int8", "uint8", "float32"), recipes.scheme_recipe("int8")),
        ("recipe", ("int8", "float32"), mixed_recipe),
    ):  # fmt: skip
        for kind in kinds:
            request: Any = QuantizationRequest(name, "int8" if recipe else None, kind, recipe=recipe)  # type: ignore[arg-type]
            path = tmp_path / "m.tflite"
            path.write_bytes(quantize_tflite(lite, request, [IMAGES]).content)
            assert [tensor.dtype for tensor in read(path).outputs] == [kind] * len(expected)
            assert check_integer_only(read(path), allow_float_interface=kind == "float32") == []
            outputs = predict(path, IMAGES).real_values
            for output, truth in zip(outputs.values(), expected, strict=True):  # type: ignore[union-attr]
                assert np.abs(np.asarray(output) - truth).max() < 0.04 * np.abs(truth).max(), (name, kind)


@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason())
@pytest.mark.parametrize(("activation", "expects_note"), [("exponential", True), ("relu", False)])
def test_where_tflite_micro_cannot_tell_mixes_apart_a_note_says_so(
    activation: str, expects_note: bool, tmp_path: Path
) -> None:
    """It has no integer EXP: neither int8 nor any mix of such a model runs there."""
    inputs = keras.Input((6,), name="x")
    quantizer = _layerwise_quantizer(
        keras.Model(inputs, keras.layers.Dense(3, activation=activation)(inputs)), tmp_path
    )
    check_mix, notes = build_mix_check(device_profile.load("nucleo-l4r5zi", tmp_path), quantizer)
    assert bool(notes) == expects_note
    assert all(note.startswith("mixes are not tried on TFLite Micro: ") for note in notes)
    with temporary_tflite(quantizer.quantize({})) as path:
        check_mix(path)
