"""Small graphs of TensorFlow functions: their float .tflite, quantized, and how far that is from float."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.quantizer.quantization import QuantizationRequest, quantize_tflite
from edgepipe.core.arrays import Array
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

Body = Callable[..., Any]


def float_graph(body: Body, folder: Path, *arrays: Array) -> Model:
    """The float .tflite of a function of tensors like `arrays`, each (samples, ...)."""
    specs = [tf.TensorSpec((1, *array.shape[1:]), name=f"x{number}") for number, array in enumerate(arrays)]
    function = tf.function(body, input_signature=specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], function)
    path = folder / "float.tflite"
    path.write_bytes(converter.convert())
    return read(path)


def quantize_graph(lite: Model, scheme: Any, arrays: tuple[Array, ...]) -> Model:
    """The integer model, calibrated on `arrays`."""
    path = lite.path.with_name(f"{scheme}.tflite")
    path.write_bytes(quantize_tflite(lite, QuantizationRequest(scheme), list(arrays)).content)
    return read(path)


def signal_to_noise(model: Model, lite: Model, arrays: tuple[Array, ...], runtime: Runtime = Runtime.BUILTIN) -> float:
    """Of the one output of a model against the float one, in dB."""
    truth = np.asarray(predict(lite.path, dict(zip(lite.inputs_by_name, arrays, strict=True))).real_values)
    samples = dict(zip(model.inputs_by_name, arrays, strict=True))
    output = np.asarray(predict(model.path, samples, runtime).real_values)
    return float(10 * np.log10(np.square(truth).sum() / np.square(output - truth).sum()))
