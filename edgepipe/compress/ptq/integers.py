"""Full-integer int8 by TensorFlow's own quantizer, on a float .tflite and with ranges of one's own.

`TFLiteConverter` does the same inside: it writes the extremes of each activation into the float model, then hands that
to its quantizer. Both steps are called here one by one, so that the ranges can be others, layers can be left alone, and
a float .tflite can be the start.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from edgepipe.arrays import Array
from edgepipe.compress.ptq import buffers
from edgepipe.compress.ptq.calibration import Range


def quantized(
    content: bytes,
    feeds: list[Array],
    ranges: Mapping[str, Range] | None,
    types: tuple[str, str],
    left: Collection[str] = (),
) -> bytes:
    """The float .tflite `content` in int8.

    Args:
        content: of a float .tflite.
        feeds: representative samples of each input, in its order, (samples, ...).
        ranges: of activations, by tensor name; None takes the extremes on `feeds`.
        types: of inputs and of outputs: int8, uint8 or float32.
        left: names of the output tensors of operators that stay float.
    """
    import tensorflow as tf

    # Neither function is public; the versions of TensorFlow that edgepipe takes are pinned in pyproject.toml.
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

    known = Calibrator(add_intermediate_tensors(buffers.plain(content))).calibrate(lambda: _fed(feeds))
    if ranges is not None:
        known = _with_ranges(known, ranges)
    result: bytes = mlir_quantize(
        known,
        input_data_type=tf.as_dtype(types[0]),
        output_data_type=tf.as_dtype(types[1]),
        denylisted_nodes=list(left) or None,
    )
    return result


def _fed(feeds: list[Array]) -> Iterator[list[Array]]:
    """One sample at a time, each input with a batch of one."""
    yield from ([feed[index : index + 1] for feed in feeds] for index in range(len(feeds[0])))


def _with_ranges(content: bytes, ranges: Mapping[str, Range]) -> bytes:
    """A calibrated model whose activations have these ranges instead."""
    model = buffers.opened(content)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        found = ranges.get(tensor.name.decode())
        if found is not None and _calibrated(tensor):
            tensor.quantization.min, tensor.quantization.max = ([np.float32(end)] for end in found)
    return buffers.closed(model)


def _calibrated(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.min is not None
