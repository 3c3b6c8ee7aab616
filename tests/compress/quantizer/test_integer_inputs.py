"""Inputs that hold integers in floats or in 64 bits, and casts of integers and bools to float."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import edgepipe
from edgepipe.compress.conversion import convert_model
from edgepipe.compress.quantizer.integer_inputs import integer_input_names
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import convert_samples

GENERATOR = np.random.default_rng(0)
IDS = GENERATOR.integers(0, 20, (64, 6))
NUMBERS = GENERATOR.normal(0, 1, (64, 6)).astype("float32")
Body = Callable[[Any], Any]


def _embedded(ids: Any, vocabulary: int = 20) -> Any:
    return layers.GlobalAveragePooling1D()(layers.Embedding(vocabulary, 8)(ids))


def _convert(
    folder: Path, model: keras.Model, samples: Arrays, scheme: Any = "int8", input_type: Any = None
) -> tuple[Model, tuple[str, ...]]:
    converted_model = convert_model(model, QuantizationRequest(scheme, input_type, "float32"), samples)
    path = folder / "m.tflite"
    path.write_bytes(converted_model.content)
    return read(path), converted_model.notes


def _model(body: Body, dtype: str, shape: tuple[int, ...] = (6,)) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype=dtype, name="ids")
    return keras.Model(inputs, layers.Dense(3)(body(inputs)))


def _check_equal(lite: Model, model: keras.Model, samples: Array, tolerance: float) -> None:
    truth = model.predict(samples, verbose=0)
    assert np.abs(predict(lite.path, samples).real_values - truth).max() < tolerance * np.abs(truth).max()


INTEGER_BODIES: dict[str, Body] = {
    "embedding": _embedded,
    "mask_zero": lambda x: layers.GlobalAveragePooling1D()(layers.Embedding(20, 8, mask_zero=True)(x)),
    "reshaped and sliced": lambda x: _embedded(ops.transpose(ops.reshape(x, (-1, 3, 2)), (0, 2, 1))[:, 0]),
    "rounded": lambda x: _embedded(ops.cast(ops.floor(ops.cast(x, "float32")), "int32")),
    "joined with itself": lambda x: _embedded(ops.concatenate([x, x[:, :2]], axis=1)),
    "one-hot": lambda x: layers.Flatten()(ops.one_hot(x, 20)),
    "category encoding": lambda x: layers.CategoryEncoding(20, output_mode="one_hot")(x[:, 0]),
}


INTEGER_CASES = [
    *((name, "float32") for name in INTEGER_BODIES),
    *(("embedding", "int64"), ("mask_zero", "int64"), ("rounded", "int64"), ("category encoding", "int32")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), INTEGER_CASES)
def test_ids_become_int32(name: str, dtype: str, tmp_path: Path) -> None:
    model, ids = _model(INTEGER_BODIES[name], dtype), IDS.astype(dtype)
    lite, notes = _convert(tmp_path, model, ids)
    assert lite.inputs_by_name["ids"].dtype == "int32"
    assert lite.inputs_by_name["ids"].quantization is None
    assert any("input 'ids' is int32" in note for note in notes) == (dtype != "int32")
    assert not check_integer_only(lite, allow_float_interface=True)
    assert "int64" not in {tensor.dtype for tensor in lite.used_tensors}
    _check_equal(lite, model, ids, 0.05)


def test_each_scheme_that_calibrates_takes_ids_as_int32(tmp_path: Path) -> None:
    model = _model(_embedded, "float32")
    for scheme, expected_type in {"int16x8": "int32", "dynamic": "float32", "float32": "float32"}.items():
        lite, _ = _convert(tmp_path, model, IDS.astype("float32"), scheme)
        assert lite.inputs_by_name["ids"].dtype == expected_type, scheme


def test_the_user_can_keep_float32(tmp_path: Path) -> None:
    model, ids = _model(INTEGER_BODIES["mask_zero"], "float32"), IDS.astype("float32")
    lite, notes = _convert(tmp_path, model, ids, input_type="float32")
    assert lite.inputs_by_name["ids"].dtype == "float32"
    assert [operator.name for operator in lite.operators].count("CAST") == 1
    assert not check_integer_only(lite, allow_float_interface=True)
    assert not any("int32" in note for note in notes)
    _check_equal(lite, model, ids, 0.05)


def test_samples_that_are_no_whole_numbers_keep_float32(tmp_path: Path) -> None:
    model, numbers = _model(_embedded, "float32"), IDS + np.float32(0.25)
    lite, notes = _convert(tmp_path, model, numbers)
    assert lite.inputs_by_name["ids"].dtype == "float32"
    assert any("its samples hold" in note and ".25" in note for note in notes)
    _check_equal(lite, model, numbers, 0.05)


def test_an_input_that_is_a_number_too_stays_one(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        return layers.Concatenate()([_embedded(ops.cast(x[:, :2], "int32")), layers.Dense(4)(x)])

    lite, _ = _convert(tmp_path, _model(body, "float32"), IDS.astype("float32"))
    assert lite.inputs_by_name["ids"].dtype == "int8"


def test_several_inputs_are_judged_one_by_one(tmp_path: Path) -> None:
    ids, other_ids, numbers = (keras.Input((6,), name=name) for name in ("ids", "other_ids", "numbers"))
    joined = _embedded(layers.Concatenate()([ids, other_ids]))
    model = keras.Model([ids, other_ids, numbers], layers.Dense(3)(layers.Concatenate()([joined, numbers])))
    samples = {"ids": IDS.astype("float32"), "other_ids": IDS[::-1].astype("float32"), "numbers": NUMBERS}
    lite, _ = _convert(tmp_path, model, samples)
    dtypes = {name: tensor.dtype for name, tensor in lite.inputs_by_name.items()}
    assert dtypes == {"ids": "int32", "other_ids": "int32", "numbers": "int8"}


def test_such_a_model_is_fed_whole_numbers_only(tmp_path: Path) -> None:
    lite, _ = _convert(tmp_path, _model(_embedded, "float32"), IDS.astype("float32"))
    assert np.array_equal(
        predict(lite.path, IDS.astype("float32")).stored_values, predict(lite.path, IDS.astype("int64")).stored_values
    )
    with pytest.raises(InputError, match=r"input 'ids': takes int32 \(no scale\), found 0.5 in float32 samples"):
        predict(lite.path, np.full((2, 6), 0.5, "float32"))


def test_negative_ids_are_left_out_where_the_samples_hold_none(tmp_path: Path) -> None:
    model = _model(_embedded, "int32")
    lite, notes = _convert(tmp_path, model, IDS.astype("int32"))
    assert [operator.name for operator in lite.operators][:2] == ["GATHER", "MEAN"]
    assert any("no negative ones" in note for note in notes)
    negative_ids = (IDS - 20).astype("int32")
    lite, notes = _convert(tmp_path, model, negative_ids)
    assert not any("no negative ones" in note for note in notes)
    _check_equal(lite, model, negative_ids, 0.05)


def test_random_inputs_of_a_float_model_are_ids_too(tmp_path: Path) -> None:
    model = _model(_embedded, "float32")
    model.save(tmp_path / "m.keras")
    conversion = edgepipe.convert(tmp_path / "m.keras", scheme="float32", out=tmp_path / "m.tflite")
    assert integer_input_names(read(tmp_path / "m.tflite")) == {"ids"}
    difference = next(metric for metric in conversion.metrics if metric.name == "max_difference")
    assert difference.value is not None
    assert difference.value < 1e-5


MICRO_BODIES: dict[str, tuple[Body, str, Array]] = {
    "embedding": (_embedded, "float32", IDS),
    "mask": (
        lambda x: layers.Flatten()(layers.Embedding(20, 8)(x) * ops.cast(ops.not_equal(x, 0), "float32")[..., None]),
        "int64",
        IDS,
    ),
    "masking": (
        lambda x: ops.reshape(layers.Masking(-999.0)(ops.reshape(x, (-1, 3, 2))), (-1, 6)),
        "float32",
        np.where(IDS.repeat(2, axis=1)[:, :6] < 5, -999.0, NUMBERS),
    ),
}


@pytest.mark.parametrize("name", MICRO_BODIES)
def test_tflite_micro_gives_the_same(name: str, tmp_path: Path) -> None:
    micro = pytest.importorskip("tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed")
    body, dtype, samples = MICRO_BODIES[name]
    lite, _ = _convert(tmp_path, _model(body, dtype), samples.astype(dtype))
    inputs = convert_samples(lite, samples[:5].astype(dtype))[0]
    interpreter = micro.Interpreter.from_bytes(lite.path.read_bytes())
    outputs = []
    for sample in inputs:
        interpreter.set_input(sample[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0)[0])
    expected = predict(lite.path, samples[:5].astype(dtype), Runtime.REFERENCE).stored_values
    assert np.allclose(outputs, expected, atol=1e-6)


CASTS: dict[str, tuple[Body, str, Array]] = {
    "bool": (lambda x: x * ops.cast(x > 0.0, "float32"), "float32", NUMBERS),
    "pixels": (lambda x: layers.Rescaling(1 / 255)(x), "uint8", GENERATOR.integers(0, 256, (64, 6)).astype("uint8")),
    "counts": (lambda x: ops.cast(x, "float32"), "int32", GENERATOR.integers(0, 300, (64, 6)).astype("int32")),
    "long counts": (lambda x: ops.cast(x, "float32"), "int64", GENERATOR.integers(-90, 90, (64, 6))),
    "number of words": (
        lambda x: ops.cast(ops.sum(ops.cast(ops.not_equal(x, 0), "int32"), axis=-1, keepdims=True), "float32"),
        "int32",
        (IDS % 3).astype("int32"),
    ),
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", CASTS)
def test_casts_to_float_have_an_integer_form(name: str, scheme: Any, tmp_path: Path) -> None:
    body, dtype, samples = CASTS[name]
    model = _model(body, dtype)
    lite, _ = _convert(tmp_path, model, samples, scheme)
    assert not check_integer_only(lite, allow_float_interface=True)
    _check_equal(lite, model, samples, 0.03)
