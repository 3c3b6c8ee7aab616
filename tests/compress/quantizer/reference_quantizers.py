"""TensorFlow's quantizer and litert-quantizer, called raw: independent references for edgepipe's own."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.core.arrays import Array

Range = tuple[float, float]


def iterate_samples(feeds: list[Array]) -> Iterator[list[Array]]:
    """The samples one at a time, each input with a batch of one."""
    yield from ([feed[index : index + 1] for feed in feeds] for index in range(len(feeds[0])))


def calibrate_with_tensorflow(content: bytes, feeds: list[Array]) -> bytes:
    """The float .tflite `content` with the extremes of its activations on `feeds`."""
    from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

    normalized_content = flatbuffer_edits.normalize_opcodes(content)
    return bytes(Calibrator(add_intermediate_tensors(normalized_content)).calibrate(lambda: iterate_samples(feeds)))


def override_ranges(content: bytes, ranges: Mapping[str, Range]) -> bytes:
    """The calibrated model `content` with the ranges of its activations replaced, by tensor name."""
    model = flatbuffer_edits.unpack_model(content)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        span = ranges.get(tensor.name.decode())
        if span is not None and tensor.quantization is not None and tensor.quantization.min is not None:
            tensor.quantization.min, tensor.quantization.max = ([np.float32(bound)] for bound in span)
    return flatbuffer_edits.pack_model(model)


def quantize_with_tensorflow(content: bytes, feeds: list[Array], io_types: tuple[str, str], **options: Any) -> bytes:
    """The float .tflite `content` in int8 by TensorFlow's quantizer; `options` are those of `mlir_quantize`."""
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize

    calibrated_content = calibrate_with_tensorflow(content, feeds)
    return bytes(
        mlir_quantize(
            calibrated_content,
            input_data_type=tf.as_dtype(io_types[0]),
            output_data_type=tf.as_dtype(io_types[1]),
            **options,
        )
    )


def quantize_with_litert(content: bytes, ranges: Mapping[str, Range] | None, recipe: list[dict[str, Any]]) -> bytes:
    """The float .tflite `content` by litert-quantizer and a recipe."""
    from litert_quantizer import quantizer

    arrays = {name: np.asarray(span, np.float32) for name, span in (ranges or {}).items()}
    statistics = {name: {"min": span[:1], "max": span[1:]} for name, span in arrays.items()}
    prepared_content = flatbuffer_edits.normalize_opcodes(content)
    result = quantizer.Quantizer(bytearray(prepared_content), recipe).quantize(
        statistics or None, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)
