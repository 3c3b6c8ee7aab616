"""Functions without an integer kernel, looked up in tables: exact on every runtime."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import Body, float_graph, quantize_graph, signal_to_noise

from edgepipe.compress.quantizer.kernel_requirements import TABULATED_OPERATORS
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.schemes import SchemeName
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict

X = np.random.default_rng(0).uniform(-3, 3, (120, 4, 6)).astype("float32")
# the body, and the least signal to noise: steps fall between the codes of the input
TABULATED: dict[str, tuple[Body, float]] = {
    "SIN": (tf.sin, 30),
    "COS": (tf.cos, 30),
    "SIGN": (tf.sign, 17),
    "FLOOR": (tf.floor, 20),
    "CEIL": (tf.math.ceil, 20),
    "ROUND": (tf.round, 20),
    "POW": (lambda x: tf.pow(tf.nn.relu(x) + 0.1, 0.3), 40),
    "FLOOR_DIV": (lambda x: tf.math.floordiv(x, 0.75), 20),
    "FLOOR_MOD": (lambda x: tf.math.floormod(x, 2.0), 15),
}


def test_every_table_is_tried() -> None:
    assert set(TABULATED) == TABULATED_OPERATORS


@pytest.mark.parametrize("name", TABULATED)
def test_a_function_is_looked_up(name: str, tmp_path: Path) -> None:
    body, least_snr = TABULATED[name]
    lite = float_graph(body, tmp_path, X)
    assert name in lite.operator_counts
    model = quantize_graph(lite, "int8", (X,))
    assert not check_integer_only(model)
    assert {"CAST", "ADD", "GATHER"} <= set(model.operator_counts)
    assert signal_to_noise(model, lite, (X,)) > least_snr
    outputs = np.asarray(predict(model.path, X, Runtime.BUILTIN).real_values)
    np.testing.assert_array_equal(outputs, np.asarray(predict(model.path, X, Runtime.XNNPACK).real_values))


@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason())
def test_microcontrollers_look_up_alike(tmp_path: Path) -> None:
    lite = float_graph(lambda x: tf.sin(x) + tf.floor(tf.reduce_max(x, axis=1, keepdims=True)), tmp_path, X)
    path = quantize_graph(lite, "int8", (X,)).path
    outputs = np.asarray(predict(path, X, Runtime.BUILTIN).real_values)
    np.testing.assert_array_equal(outputs, np.asarray(tflm_runtime.predict(path, X).real_values))


OF_TWO_TENSORS: dict[str, Body] = {
    "POW": lambda x: tf.pow(tf.nn.relu(x) + 0.1, x),
    "FLOOR_MOD": lambda x: tf.math.floormod(x, np.linspace(1, 2, 6, dtype="float32")),
}


@pytest.mark.parametrize("name", OF_TWO_TENSORS)
def test_a_function_of_two_tensors_stays_in_float(name: str, tmp_path: Path) -> None:
    lite = float_graph(OF_TWO_TENSORS[name], tmp_path, X)
    findings = check_integer_only(quantize_graph(lite, "int8", (X,)))
    assert any(finding.place.startswith(name) for finding in findings)


def test_why_an_operator_stays_in_float_is_said(tmp_path: Path) -> None:
    lite = float_graph(lambda x: tf.sin(x) + tf.atan2(x, tf.abs(x) + 1.0), tmp_path, X)
    schemes: tuple[tuple[SchemeName, list[str]], ...] = (("int8", ["ATAN2"]), ("int16x8", ["ATAN2", "SIN"]))
    for scheme, kinds in schemes:
        notes = quantize_tflite(lite, QuantizationRequest(scheme), [X]).notes
        reasons = [note for note in notes if " stays in float in '" in note]
        assert sorted(note.split()[0] for note in reasons) == kinds
        assert all("LiteRT has no integer kernel for it" in note for note in reasons)
