"""Full-integer int8 by TensorFlow's own quantizer, on a float .tflite and with ranges of one's own.

`TFLiteConverter` does the same inside: it writes the extremes of each activation into the float model, then hands that
to its quantizer. Both steps are called here one by one, so that the ranges can be others and a float .tflite can be the
start.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.compress.quantizer.mutable_graph import Graph
from edgepipe.core.arrays import Array


def quantized(
    content: bytes,
    feeds: list[Array],
    ranges: Mapping[str, Range] | None,
    types: tuple[str, str],
) -> bytes:
    """The float .tflite `content` in int8.

    Args:
        content: of a float .tflite.
        feeds: representative samples of each input, in its order, (samples, ...).
        ranges: of activations, by tensor name; None takes the extremes on `feeds`.
        types: of inputs and of outputs: int8, uint8 or float32.
    """
    import tensorflow as tf

    # Neither function is public; the versions of TensorFlow that edgepipe takes are pinned in pyproject.toml.
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

    known = Calibrator(add_intermediate_tensors(flatbuffer_edits.plain(content))).calibrate(lambda: _fed(feeds))
    if ranges is not None:
        known = _with_ranges(known, shared(content, ranges))
    result: bytes = mlir_quantize(
        known,
        input_data_type=tf.as_dtype(types[0]),
        output_data_type=tf.as_dtype(types[1]),
    )
    return _named(result, content)


SEVERAL = ("SPLIT", "SPLIT_V", "UNPACK", "TOPK_V2")  # operators of several outputs


def _named(content: bytes, before: bytes) -> bytes:
    """The quantized model `content` with outputs of `SEVERAL` called as in the float model.

    TensorFlow's quantizer numbers them as it comes upon them, which differs from one call to the next.
    """
    graph, floats = Graph(flatbuffer_edits.opened(content)), Graph(flatbuffer_edits.opened(before))
    if not any(graph.kind(operator) in SEVERAL for operator in graph.operators):
        return content
    for kind in SEVERAL:
        operators, sources = ([op for op in of.operators if of.kind(op) == kind] for of in (graph, floats))
        if len(operators) != len(sources):
            return content
        for operator, source in zip(operators, sources, strict=True):
            for index, named in zip(operator.outputs, source.outputs, strict=True):
                graph.tensor(int(index)).name = floats.tensor(int(named)).name
    return flatbuffer_edits.closed(flatbuffer_edits.tidy(graph.model))


SHARING = frozenset({"MINIMUM", "MAXIMUM", "SELECT", "SELECT_V2", "ADD_N"})  # one scale for all that they read and make
MOVING = frozenset(
    {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "GATHER", "TILE",
     "PAD", "PADV2", "CONCATENATION", "PACK", "UNPACK", "REVERSE_V2", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN",
     "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "RESIZE_NEAREST_NEIGHBOR"}
)  # fmt: skip


def shared(content: bytes, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges that hold for all readers of a tensor.

    TensorFlow's quantizer gives what an operator of `SHARING` reads the range of what it makes. That may be narrower:
    nothing is lost by it where nobody else reads the tensor, but others would get values that are cut off. There all
    get the widest.
    """
    graph, found = Graph(flatbuffer_edits.opened(content)), dict(ranges)
    groups = [_group(graph, operator, found) for operator in graph.operators if graph.kind(operator) in SHARING]
    for _ in groups:  # what one widens another may share
        for names in filter(None, groups):
            low, high = min(found[name][0] for name in names), max(found[name][1] for name in names)
            found |= dict.fromkeys(names, (low, high))
    return found


def _group(graph: Graph, operator: Any, ranges: Mapping[str, Range]) -> set[str]:
    """What is to have one range: outputs, and those inputs that others read too; empty if there are none."""
    inputs = {graph.name(int(index)) for index in operator.inputs if index >= 0 and _has_others(graph, int(index))}
    outputs = {graph.name(int(index)) for index in operator.outputs}
    return (inputs | outputs) & ranges.keys() if inputs & ranges.keys() else set()


def _has_others(graph: Graph, index: int) -> bool:
    """Whether a tensor, or what it is moved from, is read more than once or is an output."""
    if len(graph.readers(index)) > 1 or index in graph.main.outputs:
        return True
    maker = graph.maker(index)
    if maker is None or graph.kind(maker) not in MOVING | SHARING:
        return False
    return any(_has_others(graph, int(given)) for given in maker.inputs if given >= 0)


def _fed(feeds: list[Array]) -> Iterator[list[Array]]:
    """One sample at a time, each input with a batch of one."""
    yield from ([feed[index : index + 1] for feed in feeds] for index in range(len(feeds[0])))


def _with_ranges(content: bytes, ranges: Mapping[str, Range]) -> bytes:
    """A calibrated model whose activations have these ranges instead."""
    model = flatbuffer_edits.opened(content)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        found = ranges.get(tensor.name.decode())
        if found is not None and _calibrated(tensor):
            tensor.quantization.min, tensor.quantization.max = ([np.float32(end)] for end in found)
    return flatbuffer_edits.closed(model)


def _calibrated(tensor: Any) -> bool:
    return tensor.quantization is not None and tensor.quantization.min is not None
