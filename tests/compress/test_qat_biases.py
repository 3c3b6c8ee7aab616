"""With rounded biases, a fake-quant layer computes the same as exact arithmetic on the stored integers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.qat import bias_limits, range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant
from edgepipe.compress.qat.scales import read_fake_quant_range
from edgepipe.models.perturb import perturb
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
DATA = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 2)).astype("float32")


def _model() -> Any:
    set_seeds(1)
    x = tf_keras.Input((8, 8, 2), name="x")
    y = K.ReLU(6.0, name="relu")(K.BatchNormalization(name="norm")(K.Conv2D(5, 3, use_bias=False, name="conv")(x)))
    base = tf_keras.Model(x, K.Dense(3, name="out")(K.Flatten()(y)), name="user")
    perturb(base)
    fake_quant_model = build_fake_quant(base, QatRecipe(), DATA).model
    range_initialization.initialize_ranges(fake_quant_model, DATA, seed=0, use_batch_statistics=False)
    return fake_quant_model


def _integer_convolution(path: Path, integers: Any) -> Any:
    """The first convolution in float64 on the integers of the file, rounded once."""
    from ai_edge_litert.interpreter import Interpreter

    lite = read(path)
    op, interpreter = lite.operators[0], Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    source, weights, bias = (tensor for tensor in op.inputs if tensor is not None)
    kernel = interpreter.get_tensor(weights.index).astype(np.float64).transpose(1, 2, 3, 0)
    target = op.outputs[0]
    assert source.quantization is not None
    assert weights.quantization is not None
    assert target is not None
    assert target.quantization is not None
    centred = integers.astype(np.float64) - source.quantization.zero_points[0]
    total = tf.nn.conv2d(centred, kernel, 1, "VALID").numpy() + interpreter.get_tensor(bias.index)
    scale = source.quantization.scales[0] * np.array(weights.quantization.scales) / target.quantization.scales[0]
    return np.clip(np.rint(total * scale) + target.quantization.zero_points[0], -128, 127)


@pytest.mark.slow
@pytest.mark.parametrize("is_rounded", [True, False])
def test_fake_quant_is_exact_arithmetic(is_rounded: bool, tmp_path: Path) -> None:
    model = _model()
    if is_rounded:
        assert bias_limits.round_biases(model) == 2
    (tmp_path / "m.tflite").write_bytes(convert(model, samples=DATA))
    layers = [model.get_layer(f"{name}_fake_quant") for name in ("x", "relu")]
    probe = tf_keras.Model(model.inputs, [layer.output for layer in layers])
    x, y = (
        np.rint(np.asarray(values) / read_fake_quant_range(layer).scale) + read_fake_quant_range(layer).zero_point
        for values, layer in zip(probe(DATA), layers, strict=True)
    )
    same = (_integer_convolution(tmp_path / "m.tflite", x) == y).mean()
    assert same == 1.0 if is_rounded else same > 0.98


def test_rounding_moves_a_bias_by_half_a_step_at_most() -> None:
    model = _model()
    norm = model.get_layer("norm").beta.numpy()
    bias_limits.round_biases(model)
    bias_shift = np.abs(model.get_layer("norm").beta.numpy() - norm)
    assert 0 < bias_shift.max() < 1e-3


def test_rounding_twice_changes_nothing() -> None:
    model = _model()
    bias_limits.round_biases(model)
    rounded_once = [weight.numpy() for weight in model.weights]
    bias_limits.round_biases(model)
    assert all(np.allclose(a, b.numpy(), atol=1e-7) for a, b in zip(rounded_once, model.weights, strict=True))
