"""Divisions in integers, against float, on LiteRT and TensorFlow Lite Micro."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from integer_graphs import Body, float_graph, quantize_graph, signal_to_noise

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.division import replace_divisions
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.operator_codes import ensure_code
from edgepipe.core.arrays import Array
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import Runtime, predict

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-3, 3, (120, 4, 6)).astype("float32")
Y = GENERATOR.uniform(0.3, 4, X.shape).astype("float32")
SIGNED = Y * GENERATOR.choice([-1, 1], X.shape).astype("float32")
PADDED = np.where(np.arange(4)[None, :, None] < GENERATOR.integers(1, 5, (120, 1, 1)), X, np.float32(0))
MIN_SNR = {"int8": 27, "int16x8": 45}  # LiteRT's 16-bit RSQRT is a table of 513 numbers
# the body, its samples, and the kinds of operators that take the place of DIV
DIVISIONS: dict[str, tuple[Body, tuple[Array, ...], list[str]]] = {
    "softsign": (tf.nn.softsign, (X,), ["ABS", "ADD", "RSQRT", "MUL", "MUL"]),
    "by a sum of magnitudes": (
        lambda x: x / (tf.reduce_sum(tf.abs(x), -1, keepdims=True) + 1e-6),
        (PADDED,),
        ["ABS", "BATCH_MATMUL", "ADD", "RSQRT", "MUL", "MUL"],
    ),
    "weighted mean": (
        lambda x: tf.reduce_sum(x * tf.nn.relu(x), 1) / (tf.reduce_sum(tf.nn.relu(x), 1) + 1e-3),
        (X,),
        ["RELU", "MUL", *(["BATCH_MATMUL", "RESHAPE"] * 2), "ADD", "RSQRT", "MUL", "MUL"],
    ),
    "one by a square": (lambda x: 1.0 / (tf.square(x) + 1.0), (X,), ["MUL", "ADD", "RSQRT", "MUL"]),
    "positive by the samples only": (
        lambda x, y: x / y,
        (X, Y),
        ["ABS", "RSQRT", "MUL", "MUL", "MUL", "GREATER_EQUAL", "SELECT_V2"],
    ),
    "either sign": (
        lambda x, y: x / y,
        (X, SIGNED),
        ["ABS", "RSQRT", "MUL", "MUL", "MUL", "GREATER_EQUAL", "QUANTIZE", "SELECT_V2"],
    ),
    "with an activation": (
        lambda x, y: tf.nn.relu6(x / y),
        (X, SIGNED),
        ["ABS", "RSQRT", "MUL", "MUL", "MUL", "GREATER_EQUAL", "QUANTIZE", "SELECT_V2", "RELU6"],
    ),
}


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
@pytest.mark.parametrize("name", DIVISIONS)
def test_a_division_is_a_product(name: str, scheme: Any, tmp_path: Path) -> None:
    body, arrays, kinds = DIVISIONS[name]
    lite = float_graph(body, tmp_path, *arrays)
    assert "DIV" in lite.operator_counts
    model = quantize_graph(lite, scheme, arrays)
    assert not check_integer_only(model)
    if scheme == "int8":
        assert [operator.name for operator in model.operators] == kinds
    for runtime in (Runtime.BUILTIN, Runtime.XNNPACK):
        assert signal_to_noise(model, lite, arrays, runtime) > MIN_SNR[scheme]


@pytest.mark.skipif(bool(tflm_runtime.missing_reason()), reason=tflm_runtime.missing_reason())
@pytest.mark.parametrize("name", ["softsign", "either sign"])
def test_microcontrollers_divide_alike(name: str, tmp_path: Path) -> None:
    body, arrays, _ = DIVISIONS[name]
    lite = float_graph(body, tmp_path, *arrays)
    model = quantize_graph(lite, "int8", arrays)
    samples = dict(zip(model.inputs_by_name, arrays, strict=True))
    outputs = [
        np.asarray(outputs.real_values)
        for outputs in (predict(model.path, samples, Runtime.BUILTIN), tflm_runtime.predict(model.path, samples))
    ]
    np.testing.assert_allclose(*outputs, atol=np.ptp(outputs[0]) * 0.004)


def test_rows_of_zeros_do_not_stretch_the_root(tmp_path: Path) -> None:
    """The reciprocal root of an epsilon, which only padding has, is a thousand times that of the data."""
    lite = float_graph(
        lambda x: x * tf.math.rsqrt(tf.reduce_mean(tf.square(x), -1, keepdims=True) + 1e-6), tmp_path, PADDED
    )
    assert signal_to_noise(quantize_graph(lite, "int8", (PADDED,)), lite, (PADDED,)) > 30


# a product whose first MUL is renamed DIV, because TensorFlow's converter rewrites these divisions itself; other
# exporters do not. What is divided, and the kinds of the float operators that take its place
WRITTEN_DIVISIONS: dict[str, tuple[Body, list[str]]] = {
    "by constants": (lambda x: x * np.linspace(0.5, 3, 6, dtype="float32"), ["MUL"]),
    "by a root": (lambda x: x * tf.sqrt(tf.exp(x)), ["EXP", "RSQRT", "MUL"]),
    "softmax": (lambda x: tf.exp(x) * tf.reduce_sum(tf.exp(x), -1, keepdims=True), ["SOFTMAX"]),
    "sum over another axis": (
        lambda x: tf.exp(x) * tf.reduce_sum(tf.exp(x), 1, keepdims=True),
        ["EXP", "SUM", "RSQRT", "MUL", "MUL"],
    ),
}


@pytest.mark.parametrize("name", WRITTEN_DIVISIONS)
def test_a_division_of_a_known_form(name: str, tmp_path: Path) -> None:
    body, kinds = WRITTEN_DIVISIONS[name]
    graph = MutableGraph(flatbuffer_edits.unpack_model(float_graph(body, tmp_path, X).content))
    division = next(operator for operator in graph.operators if graph.kind(operator) == "MUL")
    division.opcodeIndex = ensure_code(graph.model, "DIV")
    division.builtinOptionsType, division.builtinOptions = schema.BuiltinOptions.DivOptions, schema.DivOptionsT()
    outputs = []
    for is_rewritten in (False, True):
        assert replace_divisions(graph, lambda kind, names: 8) if is_rewritten else True
        path = tmp_path / f"{is_rewritten}.tflite"
        path.write_bytes(flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model)))
        outputs.append(np.asarray(predict(path, X, Runtime.BUILTIN).real_values))
    assert [graph.kind(operator) for operator in graph.operators] == kinds
    np.testing.assert_allclose(*outputs, rtol=1e-5)
