"""Ranges that training has learned: read from fake-quant, whoever trained the model, and kept in integers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from ai_edge_litert.schema_py_generated import TensorType

from edgepipe.compress.agreement import Agreement, TensorAgreement
from edgepipe.compress.keras_to_tflite import convert_keras, float_model
from edgepipe.compress.qat.fake_quant import QatRecipe, activation_quantize_layers, build_fake_quant
from edgepipe.compress.qat.range_initialization import initialize_ranges
from edgepipe.compress.quantizer.flatbuffer_edits import pack_model, unpack_model
from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.compress.quantizer.trained_ranges import without_fake_quant
from edgepipe.compress.source_model import read_float_tflite
from edgepipe.core.arrays import Array
from edgepipe.models.saved_model_signatures import SavedModelSignature
from edgepipe.stages.convert.qat_agreement import describe_agreement
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 1, (64, 12, 12, 3)).astype("float32")


def _mixed_net() -> Any:
    """Convolution, squeeze-excite, hard-swish, GELU and LayerNormalization."""
    inputs = tf_keras.Input((12, 12, 3), name="pixels")
    x = K.ReLU()(K.BatchNormalization()(K.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    gate = K.Dense(4, "relu")(K.GlobalAveragePooling2D(keepdims=True)(x))
    x = K.Multiply()([x, K.Dense(8, "sigmoid")(gate)])
    x = K.Add()([x, K.Activation("gelu")(K.Conv2D(8, 3, padding="same")(x))])
    x = K.Activation("swish")(K.Conv2D(8, 1)(K.LayerNormalization()(x)))
    return tf_keras.Model(inputs, K.Dense(5, "softmax")(K.Flatten()(x)))


@pytest.fixture(scope="module")
def tfmot_model() -> Any:
    """A model as tfmot's users train it: fake-quant of activations, of kernels by channel, of a dense kernel as one."""
    set_seeds(0)
    inputs = tf_keras.Input((12, 12, 3), name="pixels")
    x = K.ReLU()(K.BatchNormalization()(K.Conv2D(8, 3, padding="same", use_bias=False)(inputs)))
    y = K.ReLU(6.0)(K.BatchNormalization()(K.DepthwiseConv2D(3, padding="same")(x)))
    x = K.MaxPooling2D()(K.Concatenate(name="concatenate")([K.Add()([x, y]), y]))
    outputs = K.Dense(5, "softmax")(K.GlobalAveragePooling2D()(x))
    model = tfmot.quantization.keras.quantize_model(tf_keras.Model(inputs, outputs))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(IMAGES, np.arange(64) % 5, epochs=2, verbose=0)
    return model


@pytest.mark.slow
def test_every_fake_quant_is_found() -> None:
    fake_quant = build_fake_quant(_mixed_net(), QatRecipe(), IMAGES[:2]).model
    initialize_ranges(fake_quant, IMAGES, seed=0, use_batch_statistics=False)
    with float_model(fake_quant, IMAGES, True) as (lite, _), without_fake_quant(lite) as (plain_lite, trained_ranges):
        assert len(trained_ranges.tensor_by_fake_quant) == len(activation_quantize_layers(fake_quant))
        assert trained_ranges.notes() == []
        assert not {"QUANTIZE", "DEQUANTIZE"} & {operator.name for operator in plain_lite.operators}
        assert set(trained_ranges.by_tensor) <= {tensor.name for tensor in plain_lite.tensors}


@pytest.mark.slow
@pytest.mark.parametrize("is_saved_model", [False, True])
def test_a_model_that_tfmot_trained(tfmot_model: Any, is_saved_model: bool, tmp_path: Path) -> None:
    source = SavedModelSignature(tmp_path / "saved_model") if is_saved_model else tfmot_model
    if is_saved_model:
        tfmot_model.save(tmp_path / "saved_model", save_format="tf")
    quantized_model = convert_keras(source, QuantizationRequest(), IMAGES[:8], IMAGES)
    assert quantized_model.notes == ()
    assert quantized_model.agreement is not None
    assert [tensor.missing_reason for tensor in quantized_model.agreement.tensors] == [""] * 7
    assert max(tensor.p99_lsb for tensor in quantized_model.agreement.tensors) <= 1
    assert {"quantize_layer", "concatenate"} <= {tensor.layer for tensor in quantized_model.agreement.tensors}


def _fake_quant(x: Any, low: float, high: float) -> Any:
    return tf.quantization.fake_quant_with_min_max_args(x, low, high)


def _lite(body: Any, folder: Path, *shapes: tuple[int, ...]) -> Path:
    specs = [tf.TensorSpec(shape, tf.float32, name=f"x{number}") for number, shape in enumerate(shapes)]
    function = tf.function(body).get_concrete_function(*specs)
    path = folder / "fake_quant.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function], function).convert())
    return path


def _integer_model(path: Path, samples: Array, folder: Path) -> tuple[Model, tuple[str, ...]]:
    quantized_model = quantize_tflite(read_float_tflite(path), QuantizationRequest(), [samples])
    (folder / "int8.tflite").write_bytes(quantized_model.content)
    return read(folder / "int8.tflite"), quantized_model.notes


def test_a_float_tflite_with_fake_quant_keeps_its_ranges(tmp_path: Path) -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (6, 4)).astype("float32")

    def body(x: Any) -> Any:
        y = _fake_quant(_fake_quant(x, -4, 4) @ kernel, -3, 3)
        return _fake_quant(tf.nn.tanh(tf.reshape(y, (1, 2, 2))), -1, 0.9921875)

    path = _lite(body, tmp_path, (1, 6))
    lite, notes = _integer_model(path, np.random.default_rng(2).normal(0, 9, (16, 6)).astype("float32"), tmp_path)
    scale_by_kind = {op.name: op.outputs[0].quantization.scales[0] for op in lite.operators}
    assert scale_by_kind["FULLY_CONNECTED"] == pytest.approx(6 / 255)
    assert scale_by_kind["TANH"] == 1 / 128
    assert notes == ()


def test_a_tensor_without_a_range_is_calibrated_and_named(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        return _fake_quant(tf.exp(_fake_quant(x, -0.5, 0.5) * 2.0), 0, 4)

    samples = np.linspace(-0.5, 0.5, 32, dtype="float32").reshape(16, 2)
    lite, notes = _integer_model(_lite(body, tmp_path, (1, 2)), samples, tmp_path)
    assert notes[0] == "training left 1 tensor without a range, calibrated on the samples: 'mul'"
    assert [op.outputs[0].quantization.scales[0] for op in lite.operators] == pytest.approx(
        [2 / 254, 4 / 255]
    )  # from -1 to 1: zero has a code


def test_several_ranges_of_one_tensor_are_named(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        y = tf.nn.relu(x - 1.0)
        return _fake_quant(_fake_quant(y, 0, 2) * _fake_quant(y, 0, 5), 0, 10)

    samples = np.linspace(-3, 3, 32, dtype="float32").reshape(16, 2)
    lite, notes = _integer_model(_lite(body, tmp_path, (1, 2)), samples, tmp_path)
    assert any(note.startswith("trained with several ranges, the widest is taken: ") for note in notes), notes
    assert 5 / 255 in [pytest.approx(op.outputs[0].quantization.scales[0]) for op in lite.operators]


def test_a_trained_range_is_not_given_up_for_a_concatenation(tmp_path: Path) -> None:
    """Both tensors are read by others too: the concatenation reads copies of them."""

    def body(x: Any) -> Any:
        a, b = _fake_quant(tf.nn.relu(x), 0, 3), _fake_quant(tf.nn.relu(-x), 0, 3.5)
        return _fake_quant(tf.concat([a, b, a * b], -1), 0, 4)

    samples = np.linspace(-3, 3, 32, dtype="float32").reshape(16, 2)
    lite, _ = _integer_model(_lite(body, tmp_path, (1, 2)), samples, tmp_path)
    relu_scales = sorted(op.outputs[0].quantization.scales[0] for op in lite.operators if op.name == "RELU")
    assert relu_scales == pytest.approx([3 / 255, 3.5 / 255])


def test_weights_are_rounded_as_trained(tmp_path: Path) -> None:
    """A kernel that was trained with four levels keeps them."""
    kernel = np.random.default_rng(1).uniform(-1, 1, (6, 4)).astype("float32")

    def body(x: Any) -> Any:
        rounded = tf.quantization.fake_quant_with_min_max_vars(tf.constant(kernel), -1.0, 1.0, num_bits=2)
        return _fake_quant(_fake_quant(x, -1, 1) @ rounded, -3, 3)

    path = _lite(body, tmp_path, (1, 6))
    samples = np.random.default_rng(2).uniform(-1, 1, (64, 6)).astype("float32")
    lite, _ = _integer_model(path, samples, tmp_path)
    difference = np.abs(predict(lite.path, samples).real_values - predict(path, samples).real_values)
    assert difference.max() <= 6 / 255 * 1.001


def test_fake_quant_in_int8_agrees_too(tmp_path: Path) -> None:
    """Other converters store fake-quant in int8; TensorFlow's in uint8."""
    kernel = np.random.default_rng(1).normal(0, 1, (6, 4)).astype("float32")

    def body(x: Any) -> Any:
        return _fake_quant(_fake_quant(x, -4, 4) @ kernel, -9, 9)

    path = _lite(body, tmp_path, (1, 6))
    model = unpack_model(path.read_bytes())
    for tensor in model.subgraphs[0].tensors:
        if tensor.type == TensorType.UINT8:
            tensor.type, tensor.quantization.zeroPoint = TensorType.INT8, tensor.quantization.zeroPoint - 128
    path.write_bytes(pack_model(model))
    samples = np.random.default_rng(2).normal(0, 1, (16, 6)).astype("float32")
    agreement = quantize_tflite(read_float_tflite(path), QuantizationRequest(), [samples], [samples]).agreement
    assert agreement is not None
    assert [tensor.missing_reason for tensor in agreement.tensors] == ["", ""]
    assert max(tensor.max_lsb for tensor in agreement.tensors) <= 1


def test_nothing_to_compare_is_said() -> None:
    tensor = TensorAgreement("conv", 0.1, missing_reason="it was fused away")
    _, (worst, missing, labels) = describe_agreement(Agreement((tensor,), None, 8))
    assert (worst.value, missing.value, labels.value) == (None, 1, None)
    assert worst.how.startswith("0 of 1 fake-quantized tensors")
