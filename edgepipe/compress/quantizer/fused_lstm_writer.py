"""Writes fused LSTMs in integers.

The kernel (tensorflow/lite/kernels/lstm_eval.cc, 8x8_16) reads and gives 8 bits, keeps its cell in 16 bits at a scale
that is a power of two, and computes its gates in 16 bits with 12 of them behind the point.
"""

import math

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.fused_lstm import (
    BIASES,
    CELL_STATE_POSITION,
    GATES,
    INPUT_POSITION,
    INPUT_WEIGHTS,
    OUTPUT_STATE_POSITION,
    RECURRENT_WEIGHTS,
    FusedLstm,
    find_fused_lstms,
)
from edgepipe.compress.quantizer.graph_rewriter import GraphRewriter
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.weight_encoding import WeightEncoding, choose_weight_encoding
from edgepipe.core.arrays import Array

GATE_ENCODING = Encoding(16, 2.0**-12, 0)
# the kernel's tanh takes a cell of up to six bits before the point
MIN_CELL_EXPONENT, MAX_CELL_EXPONENT = -15, -9


def write_fused_lstm(rewriter: GraphRewriter, number: int) -> None:
    """Give a fused LSTM of a graph its integer form; its output has been stored."""
    graph, index, plan = rewriter.graph, rewriter.index, rewriter.plan
    lstm = next(each for each in find_fused_lstms(index) if each.number == number)
    input_encoding, output_encoding = plan.demanded(number, INPUT_POSITION), plan.stored(lstm.output)
    assert input_encoding is not None, "an integer operator demands encodings"
    assert output_encoding is not None, "the output of an integer operator is stored in integers"
    cell_state, output_state = lstm.inputs[CELL_STATE_POSITION], lstm.inputs[OUTPUT_STATE_POSITION]
    graph.set_encoding(cell_state, cell_encoding(plan.ranges[index.names[cell_state]]))
    graph.set_encoding(output_state, output_encoding)
    inputs = list(lstm.inputs)
    inputs[INPUT_POSITION] = rewriter.read_activation(inputs[INPUT_POSITION], input_encoding)
    for gate in range(len(GATES)):
        _write_gate(rewriter, lstm, gate, input_encoding.scale, inputs)
    index.operators[number].inputs = inputs
    index.operators[number].intermediates = _add_intermediates(graph, index.names[lstm.output], output_encoding)


def _write_gate(rewriter: GraphRewriter, lstm: FusedLstm, gate: int, input_scale: float, inputs: list[int]) -> None:
    """Store the weights and the bias of one gate, each with one scale, and put their tensors into `inputs`."""
    bias, graph, names = lstm.biases[gate], rewriter.graph, rewriter.index.names
    encoding = choose_weight_encoding(lstm.weights[gate], None, bias, input_scale)
    recurrent_encoding = choose_weight_encoding(lstm.recurrent_weights[gate], None)
    weights, recurrent_weights, bias_position = INPUT_WEIGHTS[gate], RECURRENT_WEIGHTS[gate], BIASES[gate]
    bias_codes, bias_scales = encoding.encode_bias(bias, input_scale, np.int32), encoding.bias_scales(input_scale)
    inputs[bias_position] = graph.add_integer_tensor(
        names[inputs[bias_position]], bias.shape, bias_codes, bias_scales, axis=0
    )
    inputs[weights] = _add_weights(graph, names[inputs[weights]], lstm.weights[gate], encoding)
    inputs[recurrent_weights] = _add_weights(
        graph, names[inputs[recurrent_weights]], lstm.recurrent_weights[gate], recurrent_encoding
    )


def _add_weights(graph: MutableGraph, name: str, array: Array, encoding: WeightEncoding) -> int:
    return graph.add_integer_tensor(name, array.shape, encoding.encode(array), encoding.scales, axis=0)


def _add_intermediates(graph: MutableGraph, name: str, output_encoding: Encoding) -> list[int]:
    """Tensors without elements, which tell the kernel the scales of gates and of the output before a projection."""
    gates = [graph.add_encoded_tensor(f"{name}/{gate}_gate", [0], GATE_ENCODING) for gate in GATES]
    return [*gates, graph.add_encoded_tensor(f"{name}/hidden", [0], output_encoding)]


def cell_encoding(cell_range: ActivationRange) -> Encoding:
    """16 bits at a power of two that holds the range; beyond 64, where tanh is 1, the cell saturates."""
    largest = max(abs(bound) for bound in cell_range)
    exponent = math.ceil(math.log2(largest / (2**15 - 1))) if largest > 0 else MIN_CELL_EXPONENT
    return Encoding(16, 2.0 ** min(max(exponent, MIN_CELL_EXPONENT), MAX_CELL_EXPONENT), 0)
