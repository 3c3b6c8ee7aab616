"""SUM as a product with ones: the exact sum, rounded once, on every runtime."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from integer_graphs import Body, float_graph, quantize_graph

from edgepipe.core.arrays import Array
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model

X = np.random.default_rng(0).uniform(-3, 4, (60, 4, 5, 6)).astype("float32")
SUMS: dict[str, tuple[Body, tuple[int, ...]]] = {
    "last": (lambda x: tf.reduce_sum(x, axis=-1, keepdims=True), (3,)),
    "middle": (lambda x: tf.reduce_sum(x, axis=2), (2,)),
    "two": (lambda x: tf.reduce_sum(x, axis=[1, 2]), (1, 2)),
    "all": (lambda x: tf.reduce_sum(x, axis=[1, 2, 3]), (1, 2, 3)),
}


def _exact_codes(model: Model, axes: tuple[int, ...]) -> Array:
    """The codes of the sums of the input's codes, rounded once."""
    source, result = model.inputs[0].quantization, model.outputs[0].quantization
    assert source is not None
    assert result is not None
    codes = np.clip(np.round(X / source.scales[0]) + source.zero_points[0], -128, 127) - source.zero_points[0]
    sums = codes.sum(axis=axes) * (float(source.scales[0]) / float(result.scales[0]))
    return np.asarray(np.clip(np.floor(sums + 0.5) + result.zero_points[0], -128, 127))


@pytest.mark.parametrize("name", SUMS)
def test_all_runtimes_give_the_exact_sum(name: str, tmp_path: Path) -> None:
    body, axes = SUMS[name]
    lite = float_graph(body, tmp_path, X)
    assert lite.operator_counts == {"SUM": 1}
    model = quantize_graph(lite, "int8", (X,))
    assert "SUM" not in model.operator_counts
    expected = _exact_codes(model, axes)
    outputs = [np.asarray(predict(model.path, X, runtime).stored_values, float) for runtime in Runtime]
    if not tflm_runtime.missing_reason():
        outputs.append(np.asarray(tflm_runtime.predict(model.path, X).stored_values, float))
    for output in outputs:
        np.testing.assert_array_equal(output, outputs[0])
        difference = np.abs(output.reshape(expected.shape) - expected)
        assert difference.max() <= 1  # a sum that lies between two codes
        assert (difference > 0).mean() < 0.02


def test_axes_that_are_no_neighbours_stay_a_sum(tmp_path: Path) -> None:
    lite = float_graph(lambda x: tf.reduce_sum(x, axis=[1, 3]), tmp_path, X)
    assert quantize_graph(lite, "int8", (X,)).operator_counts == {"SUM": 1}


def test_a_trained_range_is_that_of_the_product_too(tmp_path: Path) -> None:
    limit = 25.5

    def trained_sum(x: tf.Tensor) -> tf.Tensor:
        x = tf.quantization.fake_quant_with_min_max_args(x, -4, 4)
        total = tf.quantization.fake_quant_with_min_max_args(tf.reduce_sum(x, axis=2), -limit, limit)
        return tf.quantization.fake_quant_with_min_max_args(tf.tanh(total) * total, -limit, limit)

    model = quantize_graph(float_graph(trained_sum, tmp_path, X), "int8", (X,))
    kinds = [operator.name for operator in model.operators]
    position = kinds.index("BATCH_MATMUL")
    assert kinds[position : position + 3] == ["BATCH_MATMUL", "RESHAPE", "TANH"]
    for operator in model.operators[position : position + 2]:
        output = operator.outputs[0]
        assert output is not None
        assert output.quantization is not None
        assert output.quantization.scales[0] == pytest.approx(2 * limit / 255)
