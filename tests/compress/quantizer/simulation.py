"""What integers of 8 or 16 bits can reach: the float graph with every tensor rounded in its own range.

Independent of edgepipe's quantizer: weights are rounded in NumPy, activations by QUANTIZE and DEQUANTIZE behind every
operator. No kernel's demand on scales is considered, and arithmetic is float.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.mutable_graph import MutableGraph

# outputs with a prescribed range: https://ai.google.dev/edge/litert/models/quantization_spec
PRESCRIBED_RANGES = {
    8: {"SOFTMAX": (0.0, 255 / 256), "LOGISTIC": (0.0, 255 / 256), "TANH": (-1.0, 127 / 128),
        "LOG_SOFTMAX": (-255 / 16, 0.0), "L2_NORMALIZATION": (-1.0, 127 / 128)},
    16: dict.fromkeys(("SOFTMAX", "LOGISTIC", "TANH"), (-1.0, 32767 / 32768)),
}  # fmt: skip
WEIGHT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}


def simulate_integers(content: bytes, ranges: Mapping[str, tuple[float, float]], bits: int) -> bytes:
    """The float .tflite `content` with all its weights and activations rounded to `bits` and 8 bits."""
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    operators = list(graph.operators)
    _round_weights(graph)
    new_operators = []
    copies: dict[int, int] = {}
    for index in list(graph.subgraph.inputs):
        _append_rounding(graph, new_operators, copies, int(index), ranges, bits)
    for operator in operators:
        operator.inputs = [copies.get(int(index), int(index)) for index in operator.inputs]
        new_operators.append(operator)
        prescribed_range = PRESCRIBED_RANGES[bits].get(graph.kind(operator))
        for index in map(int, operator.outputs):
            own_ranges = {graph.name(index): prescribed_range} if prescribed_range else ranges
            _append_rounding(graph, new_operators, copies, index, own_ranges, bits)
    graph.subgraph.operators = new_operators
    for position, index in enumerate(list(graph.subgraph.outputs)):
        graph.replace_output(position, copies.get(int(index), int(index)))
    return flatbuffer_edits.pack_model(graph.model)


def _append_rounding(
    graph: MutableGraph,
    operators: list[Any],
    copies: dict[int, int],
    index: int,
    ranges: Mapping[str, tuple[float, float]],
    bits: int,
) -> None:
    """Append the rounding of a float tensor in its own range; `copies` holds the rounded tensor of each."""
    if not graph.is_float(index) or graph.name(index) not in ranges:
        return
    low, high = ranges[graph.name(index)]
    low, high = min(low, 0.0), max(high, 0.0)
    if bits == 16:
        encoding = Encoding(16, max(-low, high, 1e-30) / 32767, 0)
    else:
        scale = max(high - low, 1e-30) / 255
        encoding = Encoding(8, scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))
    shape = graph.tensor(index).shape
    integers = graph.add_encoded_tensor(f"{graph.name(index)}/rounded", shape, encoding)
    copies[index] = graph.add_float_tensor(f"{graph.name(index)}/copy", shape)
    operators.append(graph.new_operator("QUANTIZE", [index], [integers]))
    operators.append(graph.new_operator("DEQUANTIZE", [integers], [copies[index]]))


def _round_weights(graph: MutableGraph) -> None:
    for operator in graph.operators:
        kind = graph.kind(operator)
        weights = graph.constant(int(operator.inputs[1])) if kind in WEIGHT_AXIS else None
        if weights is not None:
            axes = tuple(axis for axis in range(weights.ndim) if axis != WEIGHT_AXIS[kind])
            scale = np.maximum(np.abs(weights).max(axis=axes, keepdims=True), 1e-30) / 127
            name = f"{graph.name(int(operator.inputs[1]))}/rounded"
            rounded = graph.add_float_tensor(name, weights.shape, np.rint(weights / scale) * scale)
            operator.inputs = [int(operator.inputs[0]), rounded, *map(int, operator.inputs[2:])]
