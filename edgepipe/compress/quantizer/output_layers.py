"""The last dense and convolutional layers before the outputs, and a bias for those without: see `output_bias`."""

import numpy as np

from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph

LINEAR_OPERATORS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
# of one input and one output, behind which a mean error is still that of the layer
TRANSPARENT_OPERATORS = frozenset(
    {"DEQUANTIZE", "LOGISTIC", "LOG_SOFTMAX", "QUANTIZE", "RESHAPE", "SOFTMAX", "SQUEEZE", "TANH"}
)
BIAS_POSITION = 2


def add_missing_biases(graph: MutableGraph, policy: BitWidthPolicy) -> bool:
    """Give each last 8-bit layer without a bias one of zeros; True if there were any.

    TensorFlow's converter leaves out a bias of zeros.
    """
    index = GraphIndex(graph)
    numbers = {_last_layer(index, tensor) for tensor in index.graph_outputs}
    changes = [_add_bias(index, number, policy) for number in numbers if number is not None]
    return any(changes)


def _last_layer(index: GraphIndex, tensor: int) -> int | None:
    number = index.producer_by_tensor.get(tensor)
    while number is not None and index.kinds[number] in TRANSPARENT_OPERATORS:
        number = index.producer_by_tensor.get(index.inputs[number][0])
    return number if number is not None and index.kinds[number] in LINEAR_OPERATORS else None


def _add_bias(index: GraphIndex, number: int, policy: BitWidthPolicy) -> bool:
    tensors, kind, names = index.inputs[number], index.kinds[number], index.output_names(number)
    weights = index.constant(tensors[1])
    has_bias = len(tensors) > BIAS_POSITION and tensors[BIAS_POSITION] >= 0
    if has_bias or weights is None or kind != "FULLY_CONNECTED" or policy(kind, names) != 8:
        return False
    zeros = np.zeros(len(weights), np.float32)
    index.operators[number].inputs = [
        *tensors[:2],
        index.graph.add_float_tensor(f"{names[0]}/bias", zeros.shape, zeros),
    ]
    return True
