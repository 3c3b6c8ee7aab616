"""A factor and an offset for each channel, MUL and ADD by constants, as one DEPTHWISE_CONV_2D of size 1x1.

A batch normalization that no convolution precedes, a normalized image and a layer scale arrive in this form. MUL takes
its constant in one 8-bit scale for all channels, and both operators round; a depthwise convolution has a scale for each
channel, a 32-bit bias, and rounds once.
"""

from typing import Any

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.core.arrays import Array

IMAGE_RANK = 4


def fuse_channel_affines(graph: MutableGraph, policy: BitWidthPolicy) -> bool:
    """Fuse the factors and offsets of channels in a float graph; True if there were any."""
    index = GraphIndex(graph)
    replacement_by_number: dict[int, FlatbufferOperator | None] = {}
    for number, kind in enumerate(index.kinds):
        if kind in ("ADD", "SUB") and policy(kind, index.output_names(number)) is not None:
            factor = _find_factor(graph, index, number)
            if factor is not None:
                replacement_by_number[factor] = None
                replacement_by_number[number] = _depthwise_operator(graph, index, factor, number)
    if replacement_by_number:
        operators = [replacement_by_number.get(number, each) for number, each in enumerate(index.operators)]
        graph.subgraph.operators = [operator for operator in operators if operator is not None]
    return bool(replacement_by_number)


def _find_factor(graph: MutableGraph, index: GraphIndex, number: int) -> int | None:
    """The MUL by a constant for each channel that an addition of such a constant reads alone."""
    product, offset = _split_operands(index, number)
    factor = index.producer_by_tensor.get(product)
    if offset is None or factor is None or index.kinds[factor] != "MUL" or product in index.graph_outputs:
        return None
    source, scale = _split_operands(index, factor)
    is_first = index.kinds[number] == "ADD" or index.inputs[number][0] == product
    is_alone = len(index.readers_by_tensor[product]) == 1 and not _fused_activation(index.operators[factor])
    channel_count = _channel_count(graph, source)
    if scale is None or not is_first or not is_alone or max(scale.size, offset.size) == 1:
        return None
    return factor if _is_per_channel(scale, channel_count) and _is_per_channel(offset, channel_count) else None


def _split_operands(index: GraphIndex, number: int) -> tuple[int, Array | None]:
    """The computed operand of an operator and the values of the constant one; None if none is constant."""
    first, second = index.inputs[number]
    for tensor, other in ((first, second), (second, first)):
        constant = index.constant(tensor) if tensor in index.float_tensors else None
        if constant is not None:
            return other, constant
    return first, None


def _channel_count(graph: MutableGraph, tensor: int) -> int:
    """The channels of an image tensor; 0 for any other."""
    shape = graph.tensor(tensor).shape
    return int(shape[-1]) if shape is not None and len(shape) == IMAGE_RANK else 0


def _is_per_channel(constant: Array, channel_count: int) -> bool:
    """Whether a constant has one number for each channel, or one for all, and spans nothing else."""
    return channel_count > 0 and (constant.size == 1 or constant.shape[-1:] == (channel_count,) == (constant.size,))


def _fused_activation(operator: FlatbufferOperator) -> int:
    return int(operator.builtinOptions.fusedActivationFunction)


def _depthwise_operator(graph: MutableGraph, index: GraphIndex, factor: int, number: int) -> FlatbufferOperator:
    from ai_edge_litert import schema_py_generated as schema

    source, scale = _split_operands(index, factor)
    offset, output = _split_operands(index, number)[1], index.outputs[number][0]
    channel_count, sign = _channel_count(graph, source), -1.0 if index.kinds[number] == "SUB" else 1.0
    name = index.names[output]
    weights = _add_channels(graph, f"{name}/factor", scale, (1, 1, 1, channel_count))
    bias = _add_channels(graph, f"{name}/offset", None if offset is None else sign * offset, (channel_count,))
    operator = graph.new_operator("DEPTHWISE_CONV_2D", [source, weights, bias], [output])
    options: Any = schema.DepthwiseConv2DOptionsT()
    options.padding, options.strideW, options.strideH, options.depthMultiplier = schema.Padding.VALID, 1, 1, 1
    options.dilationWFactor = options.dilationHFactor = 1
    options.fusedActivationFunction = _fused_activation(index.operators[number])
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.DepthwiseConv2DOptions, options
    return operator


def _add_channels(graph: MutableGraph, name: str, constant: Array | None, shape: tuple[int, ...]) -> int:
    assert constant is not None, "the caller has found both constants"
    channels = np.broadcast_to(constant.reshape(-1), (shape[-1],)).reshape(shape)
    return graph.add_float_tensor(name, list(shape), np.ascontiguousarray(channels))
