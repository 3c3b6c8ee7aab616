"""Full-integer int8 by TensorFlow's own quantizer, from a float .tflite and with given ranges.

`TFLiteConverter` does the same internally: it writes the extremes of each activation into the float model, then runs
its quantizer on it. Both steps are called separately here, so that the ranges can be replaced and the source can be a
float .tflite.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator, FlatbufferTensor
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.core.arrays import Array


def quantize_int8(
    content: bytes,
    feeds: list[Array],
    ranges: Mapping[str, ActivationRange] | None,
    io_types: tuple[str, str],
) -> bytes:
    """The float .tflite `content` in int8.

    Args:
        content: a float .tflite.
        feeds: representative samples of each input, in order, (samples, ...).
        ranges: of activations, by tensor name; None takes the extremes on `feeds`.
        io_types: of inputs and of outputs: int8, uint8 or float32.
    """
    import tensorflow as tf

    # Neither function is public; pyproject.toml pins the supported TensorFlow versions.
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

    calibrated_content = Calibrator(add_intermediate_tensors(flatbuffer_edits.normalize_opcodes(content))).calibrate(
        lambda: iterate_samples(feeds)
    )
    if ranges is not None:
        calibrated_content = override_ranges(calibrated_content, widen_shared_ranges(content, ranges))
    quantized_content: bytes = mlir_quantize(
        calibrated_content,
        input_data_type=tf.as_dtype(io_types[0]),
        output_data_type=tf.as_dtype(io_types[1]),
    )
    return _restore_output_names(quantized_content, content)


MULTI_OUTPUT_OPS = ("SPLIT", "SPLIT_V", "UNPACK", "TOPK_V2")  # operators of several outputs


def _restore_output_names(content: bytes, float_content: bytes) -> bytes:
    """The quantized model `content` with the outputs of `MULTI_OUTPUT_OPS` named as in the float model.

    TensorFlow's quantizer numbers them in the order it visits them, which differs from one call to the next.
    """
    graph, float_graph = (
        MutableGraph(flatbuffer_edits.unpack_model(content)),
        MutableGraph(flatbuffer_edits.unpack_model(float_content)),
    )
    if not any(graph.kind(operator) in MULTI_OUTPUT_OPS for operator in graph.operators):
        return content
    for kind in MULTI_OUTPUT_OPS:
        quantized_operators, float_operators = (
            [op for op in each_graph.operators if each_graph.kind(op) == kind] for each_graph in (graph, float_graph)
        )
        if len(quantized_operators) != len(float_operators):
            return content
        for operator, float_operator in zip(quantized_operators, float_operators, strict=True):
            for index, source_index in zip(operator.outputs, float_operator.outputs, strict=True):
                graph.tensor(int(index)).name = float_graph.tensor(int(source_index)).name
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))


# all inputs and outputs have one scale
SHARED_SCALE_OPS = frozenset({"MINIMUM", "MAXIMUM", "SELECT", "SELECT_V2", "ADD_N"})
DATA_MOVEMENT_OPS = frozenset(
    {"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "GATHER", "TILE",
     "PAD", "PADV2", "CONCATENATION", "PACK", "UNPACK", "REVERSE_V2", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN",
     "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "RESIZE_NEAREST_NEIGHBOR"}
)  # fmt: skip


def widen_shared_ranges(content: bytes, ranges: Mapping[str, ActivationRange]) -> dict[str, ActivationRange]:
    """Ranges that are wide enough for all readers of a tensor.

    TensorFlow's quantizer gives the inputs of an operator of `SHARED_SCALE_OPS` the range of its output. That may be
    narrower: harmless if nothing else reads the tensor, but other readers would get clipped values. In that case all of
    them get the widest range.
    """
    graph, widened_ranges = MutableGraph(flatbuffer_edits.unpack_model(content)), dict(ranges)
    name_groups = [
        _shared_range_names(graph, operator, widened_ranges)
        for operator in graph.operators
        if graph.kind(operator) in SHARED_SCALE_OPS
    ]
    for _ in name_groups:  # a tensor that one group widens may be in another
        for tensor_names in filter(None, name_groups):
            low, high = (
                min(widened_ranges[name][0] for name in tensor_names),
                max(widened_ranges[name][1] for name in tensor_names),
            )
            widened_ranges |= dict.fromkeys(tensor_names, (low, high))
    return widened_ranges


def _shared_range_names(
    graph: MutableGraph, operator: FlatbufferOperator, ranges: Mapping[str, ActivationRange]
) -> set[str]:
    """The tensors that must share one range: outputs, and inputs with other readers; empty without such inputs."""
    input_names = {
        graph.name(int(index)) for index in operator.inputs if index >= 0 and _has_other_readers(graph, int(index))
    }
    output_names = {graph.name(int(index)) for index in operator.outputs}
    return (input_names | output_names) & ranges.keys() if input_names & ranges.keys() else set()


def _has_other_readers(graph: MutableGraph, index: int) -> bool:
    """Whether a tensor, or one that it is moved or copied from, is read more than once or is a model output."""
    if len(graph.readers(index)) > 1 or index in graph.subgraph.outputs:
        return True
    producer = graph.producer(index)
    if producer is None or graph.kind(producer) not in DATA_MOVEMENT_OPS | SHARED_SCALE_OPS:
        return False
    return any(_has_other_readers(graph, int(source_index)) for source_index in producer.inputs if source_index >= 0)


def iterate_samples(feeds: list[Array]) -> Iterator[list[Array]]:
    """The samples one at a time, each input with a batch of one."""
    yield from ([feed[index : index + 1] for feed in feeds] for index in range(len(feeds[0])))


def override_ranges(content: bytes, ranges: Mapping[str, ActivationRange]) -> bytes:
    """The calibrated model `content` with the ranges of its activations replaced, by tensor name."""
    model = flatbuffer_edits.unpack_model(content)
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        activation_range = ranges.get(tensor.name.decode())
        if activation_range is not None and _is_calibrated(tensor):
            tensor.quantization.min, tensor.quantization.max = ([np.float32(bound)] for bound in activation_range)
    return flatbuffer_edits.pack_model(model)


def _is_calibrated(tensor: FlatbufferTensor) -> bool:
    return tensor.quantization is not None and tensor.quantization.min is not None
