"""Faults that were seen in the field, each in a small graph: mask fills, exponentials, comparisons, rescaled copies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import Body, float_graph, signal_to_noise
from reference_quantizers import quantize_with_tensorflow

from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.core.arrays import Array
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

GENERATOR = np.random.default_rng(0)
SCORES = GENERATOR.normal(0, 3, (300, 6, 6)).astype("float32")
KEEP = (np.arange(6) < GENERATOR.integers(2, 7, (300, 1, 1))).astype("float32") * np.ones((1, 6, 1), "float32")
IMAGES = GENERATOR.normal(0, 4, (300, 6, 6, 4)).astype("float32")


def _snr(path: Path, lite: Model, arrays: tuple[Array, ...], runtime: Runtime = Runtime.BUILTIN) -> float:
    """Signal to noise of the model at `path` against the float one, in dB."""
    return signal_to_noise(read(path), lite, arrays, runtime)


MASKED: dict[str, Body] = {
    "where, -1e9": lambda x, keep: tf.nn.softmax(tf.where(keep > 0.5, x, -1e9)),
    "where, minus infinity": lambda x, keep: tf.nn.softmax(tf.where(keep > 0.5, x, -np.inf)),
    "sum, the least float": lambda x, keep: tf.nn.softmax(x + (1.0 - keep) * np.finfo(np.float32).min),
    "sum, -1e4": lambda x, keep: tf.nn.softmax(x + (keep - 1.0) * 1e4),
    "difference, 1e9": lambda x, keep: tf.nn.softmax(0.5 * x - (1.0 - keep) * 1e9),
    "a constant": lambda x, keep: tf.nn.softmax(x + (1.0 - np.tri(6, dtype="float32")) * -1e9) * keep,
    "two masks": lambda x, keep: tf.nn.softmax(x + (1.0 - keep) * -1e9 + (1.0 - np.tri(6, dtype="float32")) * -1e9),
    "a maximum": lambda x, keep: tf.reduce_max(tf.where(keep > 0.5, x, -1e9), axis=2),
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", MASKED)
def test_mask_fills_do_not_stretch_a_scale(name: str, scheme: Any, tmp_path: Path) -> None:
    arrays, path = (SCORES, KEEP), tmp_path / "m.tflite"
    lite = float_graph(MASKED[name], tmp_path, *arrays)
    path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), list(arrays)).content)
    assert not check_integer_only(read(path))
    for runtime in (Runtime.REFERENCE, Runtime.XNNPACK):
        assert _snr(path, lite, arrays, runtime) > (27 if scheme == "int8" else 55)


def test_tensorflows_quantizer_does_stretch_it(tmp_path: Path) -> None:
    """The test above can fail."""
    arrays, path = (SCORES, KEEP), tmp_path / "m.tflite"
    lite = float_graph(MASKED["where, -1e9"], tmp_path, *arrays)
    path.write_bytes(quantize_with_tensorflow(lite.content, list(arrays), ("int8", "int8")))
    assert _snr(path, lite, arrays) < 3


def test_a_large_number_that_is_no_mask_stays_one(tmp_path: Path) -> None:
    lite = float_graph(lambda x: x * 5_000.0 - 20_000.0, tmp_path, SCORES)
    path = tmp_path / "m.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int8"), [SCORES]).content)
    assert _snr(path, lite, (SCORES,)) > 35


EXPONENTIALS: dict[str, Body] = {
    "softplus": tf.nn.softplus,
    "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
    "log-sigmoid": tf.math.log_sigmoid,
    "selu": tf.nn.selu,
    "a branch": lambda x: tf.where(x > 0.0, x, 0.3 * tf.exp(x) - 0.3),
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", EXPONENTIALS)
def test_exponentials_are_bounded(name: str, scheme: Any, tmp_path: Path) -> None:
    lite, path = float_graph(EXPONENTIALS[name], tmp_path, IMAGES), tmp_path / "m.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), [IMAGES]).content)
    assert not check_integer_only(read(path))
    assert _snr(path, lite, (IMAGES,)) > (32 if scheme == "int8" else 50)


@pytest.mark.parametrize("scale", [1.0, 1_000.0])
def test_comparisons_hold_for_every_range(scale: float, tmp_path: Path) -> None:
    """LiteRT's 8-bit kernels compare wrongly where a scale is 1 or more."""
    arrays, path = (IMAGES * scale, IMAGES[::-1] * scale), tmp_path / "m.tflite"
    lite = float_graph(lambda x, y: tf.where(x < y, x, y), tmp_path, *arrays)
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int8"), list(arrays)).content)
    assert _snr(path, lite, arrays) > 35


def test_equality_with_a_constant_is_exact(tmp_path: Path) -> None:
    padded, path = np.where(IMAGES > 5, np.float32(-10.0), np.maximum(IMAGES, -9)), tmp_path / "m.tflite"
    lite = float_graph(lambda x: tf.where(tf.not_equal(x, -10.0), x, 0.0), tmp_path, padded)
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int8"), [padded]).content)
    assert _snr(path, lite, (padded,)) > 30


def test_a_copy_in_a_much_coarser_scale_has_no_bias(tmp_path: Path) -> None:
    """QUANTIZE rounds twice there; what an average reads must not be shifted."""

    def body(x: Any) -> Any:
        positive = tf.nn.relu(0.1 * x)
        return tf.concat([positive, 0.4 * x], axis=3), tf.reduce_mean(positive, axis=(1, 2))

    lite, path = float_graph(body, tmp_path, IMAGES), tmp_path / "m.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int8"), [IMAGES]).content)
    truth, outputs = (list(predict(each, IMAGES, Runtime.REFERENCE).real_values.values()) for each in (lite.path, path))  # type: ignore[union-attr]
    concatenations = [max((array for array in arrays), key=np.ndim) for arrays in (truth, outputs)]
    bias = np.mean(concatenations[1][..., :4] - concatenations[0][..., :4])
    step = np.ptp(concatenations[0]) / 255
    assert abs(bias) < 0.05 * step


FACTORS = np.array([0.01, 3.0, -0.2, 40.0], "float32")
OFFSETS = np.array([1.0, -2.0, 0.1, 5.0], "float32")
AFFINES: dict[str, Body] = {
    "sum": lambda x: x * FACTORS + OFFSETS,
    "difference": lambda x: tf.nn.relu(x * FACTORS - OFFSETS),
    "one offset": lambda x: x * FACTORS + 0.5,
    "the other way round": lambda x: OFFSETS + FACTORS * x,
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", AFFINES)
def test_factors_of_channels_keep_a_scale_each(name: str, scheme: Any, tmp_path: Path) -> None:
    """A batch normalization that no convolution precedes; MUL would take all factors in one 8-bit scale."""
    lite, path = float_graph(AFFINES[name], tmp_path, IMAGES), tmp_path / "m.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), [IMAGES]).content)
    assert "DEPTHWISE_CONV_2D" in read(path).operator_counts
    assert "MUL" not in read(path).operator_counts
    assert not check_integer_only(read(path))
    assert _snr(path, lite, (IMAGES,)) > (33 if scheme == "int8" else 45)


NOT_AFFINE: dict[str, Body] = {
    "constant minus product": lambda x: OFFSETS - x * FACTORS,
    "product read twice": lambda x: (lambda y: tf.concat([y + OFFSETS, y], axis=3))(x * FACTORS),
    "rows": lambda x: x * np.linspace(1, 2, 6, dtype="float32").reshape(6, 1) + OFFSETS,
    "numbers for all": lambda x: x * 0.3 + 0.5,
    "vectors": lambda x: tf.reduce_max(x, axis=1) * FACTORS + OFFSETS,
}


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_other_products_and_sums_stay(name: str, tmp_path: Path) -> None:
    lite, path = float_graph(NOT_AFFINE[name], tmp_path, IMAGES), tmp_path / "m.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int8"), [IMAGES]).content)
    assert "DEPTHWISE_CONV_2D" not in read(path).operator_counts
    assert _snr(path, lite, (IMAGES,)) > 25
