"""Equality with a constant in integers: the constant has a code of its own just beyond the real values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.arrays import Array
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.tflite.sample_conversion import quantize_array

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.normal(0, 1, (300, 6, 4)).astype("float32")
IS_MISSING = (GENERATOR.random((300, 6, 1)) < 0.3) & np.ones((1, 1, 4), bool)
WEIGHTS = GENERATOR.normal(0, 1, (4, 5)).astype("float32")

Body = Callable[[Any, float], Any]


def _masked(x: Any, missing: float) -> Any:
    """As keras.layers.Masking does it."""
    is_present = tf.reduce_any(tf.not_equal(x, missing), axis=-1, keepdims=True)
    return x * tf.cast(is_present, tf.float32)


BODIES: dict[str, Body] = {
    "masking": _masked,
    "where": lambda x, missing: tf.where(tf.equal(x, missing), 0.0, x),
    "moved first": lambda x, missing: _masked(tf.transpose(tf.reshape(x, (1, 3, 2, 4)), (0, 2, 1, 3)), missing),
    "compared after a slice": lambda x, missing: x[:, 1:] * tf.cast(tf.not_equal(x[:, 1:], missing), tf.float32),
    "with an indicator": lambda x, missing: tf.concat(
        [tf.where(tf.equal(x, missing), 0.5, x), tf.cast(tf.equal(x, missing), tf.float32)], axis=-1
    ),
}


def _samples(missing: float) -> Array:
    return np.where(IS_MISSING, np.float32(missing), VALUES)


def _float_model(folder: Path, body: Body, missing: float) -> Model:
    def infer(x: Any) -> Any:
        y = body(x, missing)
        return tf.matmul(tf.reshape(y, (-1, 4)), WEIGHTS)

    function = tf.function(infer, input_signature=[tf.TensorSpec((1, 6, 4), name="x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    path = folder / "float.tflite"
    path.write_bytes(converter.convert())
    return read(path)


def _snr(path: Path, lite: Model, samples: Array, runtime: Runtime = Runtime.BUILTIN) -> float:
    truth = np.asarray(predict(lite.path, samples).real_values)
    output = np.asarray(predict(path, samples, runtime).real_values)
    return float(10 * np.log10(np.square(truth).sum() / np.square(output - truth).sum()))


def _quantize(lite: Model, folder: Path, samples: Array, **request: Any) -> tuple[Path, tuple[str, ...]]:
    quantized_model = quantize_tflite(lite, QuantizationRequest(**request), [samples])
    path = folder / "m.tflite"
    path.write_bytes(quantized_model.content)
    return path, quantized_model.notes


MISSING_CASES = [("masking", -10.0), ("masking", 1e20), ("where", 50.0), *((name, -999.0) for name in BODIES)]


@pytest.mark.parametrize(("name", "missing"), MISSING_CASES)
def test_a_missing_value_costs_no_codes(name: str, missing: float, tmp_path: Path) -> None:
    lite, samples = _float_model(tmp_path, BODIES[name], missing), _samples(missing)
    for scheme, least_snr in (("int8", 35), ("int16x8", 50)):
        path, _ = _quantize(lite, tmp_path, samples, scheme=scheme)
        assert not check_integer_only(read(path))
        for runtime in (Runtime.REFERENCE, Runtime.XNNPACK):
            assert _snr(path, lite, samples, runtime) > least_snr, (scheme, runtime)


def test_the_missing_value_in_the_scale_of_the_input_has_a_code_of_its_own(tmp_path: Path) -> None:
    lite = _float_model(tmp_path, BODIES["masking"], -999.0)
    path, _ = _quantize(lite, tmp_path, _samples(-999.0))
    (tensor,) = read(path).inputs
    assert (quantize_array(np.array([-999.0]), tensor) == -128).all()
    assert (quantize_array(VALUES[~IS_MISSING], tensor) > -128).all()


@pytest.mark.parametrize("method", ["percentile", "mse", "moving_average"])
def test_clipped_values_are_not_missing(method: Any, tmp_path: Path) -> None:
    lite, samples = _float_model(tmp_path, BODIES["where"], -999.0), _samples(-999.0)
    samples[7, 3, 2] = -6.0
    calibration = ActivationCalibration(method, 99.0) if method == "percentile" else ActivationCalibration(method)
    path, _ = _quantize(lite, tmp_path, samples, calibration=calibration)
    (tensor,) = read(path).inputs
    assert quantize_array(np.array([-6.0]), tensor)[0] > -128


def test_samples_without_missing_values_leave_a_code_for_them(tmp_path: Path) -> None:
    lite = _float_model(tmp_path, BODIES["where"], -999.0)
    path, notes = _quantize(lite, tmp_path, VALUES)
    assert not [note for note in notes if "compared" in note]
    assert _snr(path, lite, _samples(-999.0)) > 35


def test_a_missing_value_that_is_read_as_a_number_too_stays_in_the_range(tmp_path: Path) -> None:
    def body(x: Any, missing: float) -> Any:
        return x * 0.01 + tf.where(tf.equal(x, missing), 0.0, x)

    lite, samples = _float_model(tmp_path, body, -999.0), _samples(-999.0)
    path, notes = _quantize(lite, tmp_path, samples)
    (note,) = [note for note in notes if "compared" in note]
    assert "'x' is compared with -999, and MUL reads it as a number" in note
    assert read(path).inputs[0].quantization.scales[0] > 3  # type: ignore[union-attr]


def test_a_step_that_is_missing_in_part_only_stays_in_the_range(tmp_path: Path) -> None:
    """Masking drops a step only if all of its features are missing."""
    lite, samples = _float_model(tmp_path, BODIES["masking"], -20.0), _samples(-20.0)
    samples[0, :, 0], samples[1, 0, 1:] = -20.0, 1.0
    path, notes = _quantize(lite, tmp_path, samples)
    assert [note for note in notes if "compared with -20, and MUL reads it as a number" in note]
    assert _snr(path, lite, samples) > 20
