"""Models of odd shape: several outputs, outputs that are read on, names that say nothing, operators without a form."""

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
from edgepipe.commands.sensitivity import How, sense
from edgepipe.compress.conversion import classes, float_file
from edgepipe.compress.keras_to_tflite import convert, convert_keras
from edgepipe.compress.mixed_precision import _otherwise, _refusing, _replay
from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import calibrate
from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
from edgepipe.compress.quantizer.float_exclusions import select_float_operators
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer, build_layerwise_quantizer
from edgepipe.compress.quantizer.mixed_precision_search import SearchResult
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.errors import InputError
from edgepipe.stages.convert import Convert
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read

X = np.random.RandomState(0).randn(20, 6).astype("float32")


def _inner() -> tuple[Any, Any]:
    inputs = keras.Input((6,), name="x")
    return inputs, keras.layers.Dense(4, activation="relu", name="first")(inputs)


def _plain() -> Any:
    inputs, x = _inner()
    return keras.Model(inputs, keras.layers.Dense(3, name="last")(x))


def _two(as_dict: bool = False) -> Any:
    inputs, x = _inner()
    found = {name: keras.layers.Dense(size, name=name, activation="softmax")(x) for name, size in (("z", 3), ("a", 2))}
    return keras.Model(inputs, found if as_dict else list(found.values()))


def _read_on() -> Any:
    inputs, x = _inner()
    chances = keras.layers.Dense(3, activation="softmax", name="chances")(x)
    return keras.Model(inputs, [chances, keras.layers.Dense(2, name="last")(chances)])


def _twice() -> Any:
    inputs, x = _inner()
    last = keras.layers.Dense(3, name="last")
    return keras.Model(inputs, [last(x), last(x * 2.0)])


MODELS: dict[str, Callable[[], Any]] = {
    "plain": _plain,
    "two": _two,
    "dict": lambda: _two(True),
    "read on": _read_on,
    "twice": _twice,
}


def _bench(model: Any, folder: Path) -> LayerwiseQuantizer:
    path = folder / "float.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    ranges = calibrate(lite, X, ActivationCalibration()).by_tensor
    return build_layerwise_quantizer(lite, find_layers(lite, classes(model)), ranges, ("int8", "int8"), X)


@pytest.mark.parametrize("which", sorted(MODELS))
def test_each_layer_can_be_judged_alone_and_left_out(which: str, tmp_path: Path) -> None:
    bench = _bench(MODELS[which](), tmp_path)
    for layer in bench.layers:
        assert 0 <= bench.score_distance({layer.name: "int8"}, "float32") < 0.1
        assert 0 <= bench.score_distance({layer.name: "float32"}) < 0.1


@pytest.mark.parametrize("level", ["int16", "float16", "float32"])
@pytest.mark.parametrize("which", ["plain", "two"])
def test_a_promoted_last_layer_leaves_the_interface_alone(which: str, level: Any, tmp_path: Path) -> None:
    bench = _bench(MODELS[which](), tmp_path)
    for chosen in ([bench.layers[-1].name], [layer.name for layer in bench.layers]):
        with temporary_tflite(bench.quantize(dict.fromkeys(chosen, level))) as path:
            made = read(path)
            assert {tensor.dtype for tensor in (*made.inputs, *made.outputs)} == {"int8"}
            predict(path, X)


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_the_last_layer_is_left_by_its_name_and_the_interface_stays(scheme: Any, tmp_path: Path) -> None:
    model = _plain()
    path = tmp_path / "m.tflite"
    path.write_bytes(
        convert_keras(
            model, QuantizationRequest(scheme, keep_float=select_float_operators([], ["last"], classes(model))), X
        ).content
    )
    made = read(path)
    assert {tensor.dtype for tensor in made.outputs} == {"int8" if scheme == "int8" else "int16"}
    dense = [op.outputs[0] for op in made.operators if op.name == "FULLY_CONNECTED"]
    assert [tensor.dtype == "float32" for tensor in dense if tensor is not None] == [False, True]


@pytest.mark.parametrize("names", [{}, {"first": "Dense", "last": "Dense"}])
def test_the_last_layer_has_a_name(names: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(_plain(), "float32"))
    found = [re.sub(r"_\d+$", "", layer.name) for layer in find_layers(read(path), names)]
    assert found == ["first", "last"]


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU])
def test_an_output_that_nothing_reads_is_integer_too(layer: Any, tmp_path: Path) -> None:
    inputs = keras.Input((3, 2))
    model = keras.Model(inputs, keras.layers.Dense(2)(layer(3, unroll=True)(inputs)))
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "int16x8", np.random.RandomState(0).randn(8, 3, 2).astype("float32")))
    assert check_integer_only(read(path)) == []
    assert flatbuffer_edits.unify_output_types(path.read_bytes()) == path.read_bytes()


@pytest.mark.parametrize("scheme", ["float32", "int8"])
@pytest.mark.parametrize("which", ["two", "dict", "twice"])
def test_outputs_are_compared_with_their_own(which: str, scheme: Any, tmp_path: Path) -> None:
    source = tmp_path / "m.keras"
    MODELS[which]().save(source)
    done = convert_file(
        source, data=X, scheme=scheme, input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    worst = next(metric.value for metric in done.metrics if metric.name == "max_difference")
    assert worst is not None
    assert worst < (1e-5 if scheme == "float32" else 0.2)


@pytest.mark.parametrize(
    ("scheme", "told"),
    [("weight_only_int8", r"2 of \d+ operators compute in float: FULLY_CONNECTED"), ("int8", None), ("float16", None)],
)
def test_a_command_says_what_computes_in_float(scheme: Any, told: str | None, tmp_path: Path) -> None:
    source = tmp_path / "m.keras"
    _plain().save(source)
    done = convert_file(
        source, data=X, scheme=scheme, input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    found = [note for note in done.notes if "compute in float" in note]
    assert len(found) == (told is not None)
    assert all(re.search(told or "", note) for note in found)


@pytest.mark.parametrize(
    ("data", "scheme", "layers", "told"),
    [
        ({"a": X, "b": X}, "dynamic", [], "named a, b, the model's inputs x"),
        (X[:, :5], "float16", [], r"shape \(5,\), input 'x' takes \(6,\)"),
        (X, "int8", ["("], r"--leave '\(' is no regular expression: missing \)"),
    ],
)
def test_what_does_not_fit_is_refused_by_every_scheme(
    data: Any, scheme: Any, layers: list[str], told: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "m.keras", tmp_path / "m.tflite"
    _plain().save(source)
    with pytest.raises(InputError, match=told):
        convert_file(
            source, data=data, scheme=scheme, input_type=None, output_type=None, out=out, allow_code=False,
            layers=layers,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("samples", "fits"), [([0.0, 1.0], True), ([0.5, 1.0], False), ([0.0, 300.0], False)])
def test_integer_inputs_take_whole_numbers_that_they_hold(samples: list[float], fits: bool) -> None:
    inputs = keras.Input((1,), dtype="uint8", name="ids")
    model = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Embedding(5, 3)(inputs)))
    given = np.array(samples, np.float32)[:, None]
    if fits:
        assert convert(model, "int8", given)
        return
    with pytest.raises(InputError, match="input 'ids' are not all whole numbers that uint8"):
        convert(model, "int8", given)


def test_a_model_without_operators_is_refused() -> None:
    inputs = keras.Input((6,))
    with pytest.raises(InputError, match="no operator"):
        convert(keras.Model(inputs, keras.layers.Identity()(inputs)), "int8", X)


@pytest.mark.parametrize("name", [None, b"same"])
def test_tensors_without_a_name_of_their_own_are_refused(name: bytes | None, tmp_path: Path) -> None:
    model = flatbuffer_edits.unpack_model(convert(_plain(), "float32"))
    flatbuffer_utils.strip_strings(model)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = name
    path = tmp_path / "m.tflite"
    path.write_bytes(flatbuffer_edits.pack_model(model))
    with pytest.raises(InputError, match=r"has no name|are called 'same'"):
        float_file(path)


@pytest.mark.parametrize(
    ("which", "labels", "told"),
    [
        ("plain", [0, 2], None),
        ("plain", [-1, 2], "-1"),
        ("plain", [0, 3], "4 classes, the model 1 output(s) of 3"),
        ("two", [0, 1], "2 output(s)"),
    ],
)
def test_accuracy_only_where_each_class_has_a_score(
    which: str, labels: list[int], told: str | None, tmp_path: Path
) -> None:
    source, data = tmp_path / "m.tflite", tmp_path / "d.npz"
    source.write_bytes(convert(MODELS[which](), "float32"))
    np.savez(data, x=X[:2], y=np.array(labels))
    found = sense(source, str(data), How(), False, None)
    notes = [note for note in found.notes if note.startswith("no accuracy")]
    assert (found.quality_float is None) == bool(notes) == (told is not None)
    assert all(str(told) in note for note in notes)


def test_a_model_without_layers_is_not_ranked(tmp_path: Path) -> None:
    inputs = keras.Input((6,))
    source = tmp_path / "m.tflite"
    source.write_bytes(convert(keras.Model(inputs, keras.layers.Identity()(inputs)), "float32"))
    with pytest.raises(InputError, match="no operator"):
        sense(source, X, How(), False, None)


def test_operators_that_were_not_promoted_with_their_layer_are_told(tmp_path: Path) -> None:
    inputs, x = _inner()
    x = keras.layers.Lambda(tf.nn.log_softmax, name="logs")(
        keras.layers.Dense(4, name="mid")(x)
    )  # has no kernel of 16 bits
    x = keras.layers.Dense(3, name="last")(x)
    bench = _bench(keras.Model(inputs, x), tmp_path)
    levels: Any = dict.fromkeys(("first", "logs"), "int16")
    found = SearchResult(levels, bench.quantize(levels), 0.0, (), ())
    notes = _otherwise(bench, found)
    assert len(notes) == 1
    assert notes[0].endswith("of 1 operators of promoted layers: logs LOG_SOFTMAX int8")
    assert _otherwise(bench, SearchResult({}, bench.quantize({}), 0.0, (), ())) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [({}, "json}`"), ({"equalize": "samples", "representative": 40}, "json, representative: 40, equalize: samples}`")],
)
def test_the_note_on_a_recipe_says_what_else_to_repeat(options: dict[str, Any], told: str) -> None:
    convert = Convert(scheme="mixed", max_drop="0.5 point", **options)
    assert told in _replay(convert, SearchResult({}, b"", 0.0, (), ()))


def test_a_model_that_gives_nan_itself_is_converted_without_a_comparison(tmp_path: Path) -> None:
    inputs = keras.Input((6,), name="x")
    source = tmp_path / "m.keras"
    keras.Model(inputs, keras.ops.log(inputs)).save(source)
    done = convert_file(
        source, data=X, scheme="float32", input_type=None, output_type=None, out=tmp_path / "m.tflite", allow_code=False
    )
    found = next(metric for metric in done.metrics if metric.name == "max_difference")
    assert found.value is None


IMAGES = np.random.RandomState(0).randn(40, 8, 8, 4).astype("float32")
L = keras.layers


def _read_inside(which: str) -> Any:
    """A model with an output that it reads itself."""
    inputs = keras.Input(IMAGES.shape[1:])
    first = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    scores = L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(first))
    found = {
        "convolution": lambda: [first, L.Conv2D(4, 3)(first)],
        "twice": lambda: [L.Conv2D(4, 3)(first), first, L.Conv2D(2, 3)(first)],
        "softmax": lambda: [scores, L.Dense(2)(scores)],
        "reshape": lambda: [L.Reshape((256,))(first), first],
        "sum": lambda: [first, L.Add()([first, inputs])],
        "concatenation": lambda: [first, L.Concatenate()([first, inputs])],
        "pooling": lambda: [first, L.MaxPooling2D()(first)],
    }
    return keras.Model(inputs, found[which]())


@pytest.mark.parametrize("which", ["convolution", "twice", "softmax", "reshape", "sum", "concatenation", "pooling"])
def test_an_output_that_is_read_inside_is_right_in_every_type(which: str, tmp_path: Path) -> None:
    """By TensorFlow's quantizer, by litert-quantizer, and in mixed types."""
    model = _read_inside(which)
    wanted = model.predict(IMAGES, verbose=0)
    plain = tmp_path / "float.tflite"
    plain.write_bytes(convert(model, "float32"))
    lite = read(plain)
    wide = recipes.make_rule(recipes.integer_config(16), recipes.operator_pattern(lite.operators[0]))
    mixed = [*recipes.scheme_recipe("int8"), wide]
    for name, kinds, recipe in (
        ("int8", ("int8", "uint8", "float32"), None), ("int16x8", ("int16", "float32"), None),
        ("recipe", ("int8", "uint8", "float32"), recipes.scheme_recipe("int8")), ("recipe", ("int8", "float32"), mixed),
    ):  # fmt: skip
        for kind in kinds:
            request: Any = QuantizationRequest(name, "int8" if recipe else None, kind, recipe=recipe)  # type: ignore[arg-type]
            path = tmp_path / "m.tflite"
            path.write_bytes(quantize_tflite(lite, request, [IMAGES]).content)
            assert [tensor.dtype for tensor in read(path).outputs] == [kind] * len(wanted)
            assert check_integer_only(read(path), allow_float_interface=kind == "float32") == []
            found = predict(path, IMAGES).real_values
            for made, truth in zip(found.values(), wanted, strict=True):  # type: ignore[union-attr]
                assert np.abs(np.asarray(made) - truth).max() < 0.04 * np.abs(truth).max(), (name, kind)


@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason())
@pytest.mark.parametrize(("activation", "told"), [("softplus", True), ("relu", False)])
def test_where_tflite_micro_cannot_tell_mixes_apart_a_note_says_so(activation: str, told: bool, tmp_path: Path) -> None:
    """It has no integer EXP, of which a softplus is made: no mix of such a model runs there, nor int8."""
    inputs = keras.Input((6,), name="x")
    bench = _bench(keras.Model(inputs, keras.layers.Dense(3, activation=activation)(inputs)), tmp_path)
    convert = Convert(scheme="mixed", max_drop="0.5 point", device="nucleo-l4r5zi")
    refuse, notes = _refusing(convert, tmp_path, bench)
    assert bool(notes) == told
    assert all(note.startswith("mixes are not tried on TFLite Micro: ") for note in notes)
    with temporary_tflite(bench.quantize({})) as path:
        refuse(path)
