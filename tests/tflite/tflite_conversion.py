"""Converts Keras 3 models to .tflite with TensorFlow, for the tests of a floor that must not import it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(5)
SAMPLES = RNG.normal(size=(70, 8, 8, 2)).astype(np.float32)


def convert(keras_model: Any, path: Path, prepare: Callable[[Any], None]) -> Path:
    """Freeze one concrete function, let `prepare` set the converter, and write the file."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = [tf.TensorSpec((1, *x.shape[1:]), x.dtype, name=x.name.split(":")[0]) for x in keras_model.inputs]
    traced = tf.function(lambda *x: keras_model(list(x) if len(x) > 1 else x[0])).get_concrete_function(*specs)
    frozen = convert_variables_to_constants_v2(traced)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], None)
    prepare(converter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        path.write_bytes(converter.convert())
    return path


def integer(samples: np.ndarray, interface: str = "int8") -> Callable[[Any], None]:
    """Full-integer conversion with `samples` as the representative set."""
    import tensorflow as tf

    def prepare(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x[None]] for x in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(interface)

    return prepare


def float16(converter: Any) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def nothing(converter: Any) -> None:
    return
