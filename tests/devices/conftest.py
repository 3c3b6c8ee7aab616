"""One small int8 and one float .tflite, converted from a zoo model."""

import os
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with int8, float, atan2 (an operator that few devices run) and custom, each .tflite."""
    import numpy as np
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from edgepipe import zoo

    folder = tmp_path_factory.mktemp("models")
    model = zoo.small_cnn(input_shape=(8, 8, 1), classes=10, filters=(4, 8))
    concrete_function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, 8, 8, 1))
    )
    frozen = convert_variables_to_constants_v2(concrete_function)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    (folder / "float.tflite").write_bytes(converter.convert())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([np.random.rand(1, 8, 8, 1).astype("f4")] for _ in range(4))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
        (folder / "int8.tflite").write_bytes(converter.convert())
    concrete_function = tf.function(lambda x: tf.math.atan2(x, x + 1)).get_concrete_function(tf.TensorSpec((1, 8)))
    (folder / "atan2.tflite").write_bytes(
        tf.lite.TFLiteConverter.from_concrete_functions([concrete_function]).convert()
    )
    concrete_function = tf.function(lambda x: tf.raw_ops.Erfc(x=x)).get_concrete_function(tf.TensorSpec((1, 8)))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete_function])
    converter.allow_custom_ops = True
    (folder / "custom.tflite").write_bytes(converter.convert())
    return folder
