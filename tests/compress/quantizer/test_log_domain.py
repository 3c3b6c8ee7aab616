"""Logarithms of squares in integers: spectrograms that are computed inside the model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import Body, float_graph, quantize_graph, signal_to_noise

from edgepipe.compress.fidelity import measure_fidelity
from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model, Operator
from edgepipe.tflite.reader import read

GENERATOR = np.random.default_rng(0)
# real and imaginary parts over four decades, as a Fourier transform of speech has them
PARTS = (10 ** GENERATOR.uniform(-3, 1, (120, 8, 12)) * GENERATOR.choice([-1, 1], (120, 8, 12))).astype("float32")
BANK = np.maximum(0, 1 - np.abs(np.subtract.outer(np.arange(12) / 3, np.arange(4)))).astype("float32")


def _power(x: Any) -> Any:
    return tf.square(x) + tf.square(tf.reverse(x, (2,)))


# the body, and the least signal to noise in 16 bits
LOGARITHMS: dict[str, tuple[Body, float]] = {
    "square": (lambda x: tf.math.log(tf.square(x) + 1e-6), 30),
    "square, not offset": (lambda x: tf.math.log(tf.square(x)), 30),
    "power": (lambda x: tf.math.log(_power(x) + 1e-6), 35),
    "decibels": (lambda x: 10 / np.log(10) * tf.math.log(tf.maximum(_power(x), 1e-7)), 35),
    "magnitude": (lambda x: tf.math.log(tf.sqrt(0.1 * _power(x)) + 1e-4), 35),
    "moved before": (
        lambda x: tf.math.log(tf.transpose(tf.reshape(_power(x), (1, 8, 4, 3)), (0, 2, 1, 3)) + 1e-6),
        35,
    ),
}


@pytest.mark.parametrize("name", LOGARITHMS)
def test_sixteen_bits_hold_the_logarithm_of_a_square(name: str, tmp_path: Path) -> None:
    body, least_snr = LOGARITHMS[name]
    lite = float_graph(body, tmp_path, PARTS)
    with decomposed_model(lite, uniform_bit_width(8)) as decomposed:
        outputs = [np.asarray(predict(model.path, PARTS).real_values) for model in (lite, decomposed)]
        assert not {"SQUARE", "SQRT"} & set(decomposed.operator_counts)
    np.testing.assert_allclose(*outputs, atol=0.02)
    model = quantize_graph(lite, "int16x8", (PARTS,))
    assert not check_integer_only(model)
    assert signal_to_noise(model, lite, (PARTS,)) > least_snr


@pytest.mark.parametrize("name", ["square", "power"])
def test_eight_bits_lose_less(name: str, tmp_path: Path) -> None:
    lite = float_graph(LOGARITHMS[name][0], tmp_path, PARTS)
    assert signal_to_noise(quantize_graph(lite, "int8", (PARTS,)), lite, (PARTS,)) > 6


OTHER_LOGARITHMS: dict[str, Body] = {
    "no square": lambda x: tf.math.log(tf.abs(x) + 0.1),
    "square of another sign": lambda x: tf.math.log(20.0 - 0.1 * tf.square(x)),
    "product": lambda x: tf.math.log(tf.abs(x * tf.reverse(x, (1,))) + 0.1),
    "sum of squares": lambda x: tf.math.log(tf.reduce_sum(tf.square(x), 1) + 0.1),
    "square read elsewhere": lambda x: tf.math.log(tf.square(x) + 0.1) + tf.square(x),
}


@pytest.mark.parametrize("name", OTHER_LOGARITHMS)
def test_other_logarithms_mean_the_same(name: str, tmp_path: Path) -> None:
    lite = float_graph(OTHER_LOGARITHMS[name], tmp_path, PARTS)
    with decomposed_model(lite, uniform_bit_width(8)) as decomposed:
        outputs = [np.asarray(predict(model.path, PARTS).real_values) for model in (lite, decomposed)]
    np.testing.assert_allclose(*outputs, rtol=2e-3, atol=1e-3)


def test_a_narrow_logarithm_is_not_split(tmp_path: Path) -> None:
    lite = float_graph(lambda x: tf.math.log(tf.abs(x) + 2.0), tmp_path, PARTS)
    assert quantize_graph(lite, "int16x8", (PARTS,)).operator_counts["LOG"] == 1


def test_a_logarithm_that_integers_do_not_hold_is_named(tmp_path: Path) -> None:
    lite = float_graph(lambda x: tf.math.log(tf.matmul(_power(x) + 1e-5, BANK)), tmp_path, PARTS**2)
    (finding,) = measure_fidelity(lite, quantize_graph(lite, "int8", (PARTS**2,)).content, PARTS**2).findings()
    assert "Log" in finding.observed or "PartitionedCall" in finding.observed or "Identity" in finding.observed
    assert "keep_float_types: {LOG: null}" in finding.suggestion


def test_names_do_not_depend_on_what_else_is_rewritten(tmp_path: Path) -> None:
    """Ranges are calibrated with all operators in 16 bits, and looked up by name with some of them."""
    lite = float_graph(lambda x: (tf.math.log(tf.abs(x) + 1e-3), tf.math.log(tf.abs(x) + 2e-3)), tmp_path, PARTS)

    def keep_first(model: Model) -> list[Operator]:
        return [operator for operator in model.operators if operator.name == "LOG"][:1]

    path = tmp_path / "part.tflite"
    path.write_bytes(quantize_tflite(lite, QuantizationRequest("int16x8", keep_float=keep_first), [PARTS]).content)
    types = [operator.outputs[0].dtype for operator in read(path).operators if operator.name == "LOG"]  # type: ignore[union-attr]
    assert types == ["float32", "int16", "int16"]
