"""TFLite's fused LSTM, UNIDIRECTIONAL_SEQUENCE_LSTM, in float graphs: made from marked operators, and read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError

FUSED_LSTM = "UNIDIRECTIONAL_SEQUENCE_LSTM"
INPUT_POSITION, OUTPUT_STATE_POSITION, CELL_STATE_POSITION = 0, 18, 19
GATE_COUNT, INPUT_COUNT = 4, 24
INPUT_WEIGHTS, RECURRENT_WEIGHTS, BIASES = (range(first, first + GATE_COUNT) for first in (1, 5, 12))
TANH = 4  # of the schema's ActivationFunctionType
GATES = ("input", "forget", "cell", "output")  # the order of Keras, of the marker operation and of TFLite
# what the integer kernels have not: a gate that is missing, weights from cell to gate, a projection, a normalization
OMITTED_POSITIONS = (*range(9, 12), *range(16, 18), *range(20, 24))


def fuse_lstms(content: bytes, marker: str) -> bytes:
    """The float .tflite `content` with fused LSTMs for its custom operators `marker`, TensorFlow's BlockLSTMV2.

    Raises:
        InputError: an LSTM whose first state is not zero, or whose last cell is read.
    """
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    read_indices = {int(index) for operator in graph.operators for index in operator.inputs}
    read_indices |= {int(index) for index in graph.subgraph.outputs}
    marked_operators = [operator for operator in graph.operators if _custom_code(graph, operator) == marker]
    for operator in marked_operators:
        _check_states(graph, operator, read_indices)
        graph.operators[graph.operator_index(operator)] = _build_fused(graph, operator)
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))


def _custom_code(graph: MutableGraph, operator: Any) -> str:
    code = graph.model.operatorCodes[operator.opcodeIndex].customCode
    return code.decode() if code else ""


def _check_states(graph: MutableGraph, operator: Any, read_indices: set[int]) -> None:
    first_states = [graph.constant(int(index)) for index in operator.inputs[2:4]]
    has_state = any(state is None or state.any() for state in first_states)
    if has_state or int(operator.outputs[1]) in read_indices:
        reason = "starts from a state that is not zero" if has_state else "gives its last cell to other layers"
        raise InputError(
            f"the LSTM '{graph.name(int(operator.outputs[6]))}' {reason}, which TFLite's fused LSTM cannot; convert "
            "with `recurrent: unrolled` (--recurrent unrolled)"
        )


def _build_fused(graph: MutableGraph, marker: Any) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    inputs, output = [int(index) for index in marker.inputs], int(marker.outputs[6])
    weights, bias = graph.constant(inputs[4]), graph.constant(inputs[8])
    assert weights is not None, "weights are frozen"
    assert bias is not None, "biases are frozen"
    name, units, input_width = graph.name(output), len(bias) // GATE_COUNT, len(weights) - len(bias) // GATE_COUNT
    positions = [-1] * INPUT_COUNT
    positions[INPUT_POSITION] = inputs[1]
    for number, gate in enumerate(GATES):
        columns = slice(number * units, (number + 1) * units)
        constants = (weights[:input_width, columns].T, weights[input_width:, columns].T, bias[columns])
        for part, array in zip((INPUT_WEIGHTS, RECURRENT_WEIGHTS, BIASES), constants, strict=True):
            kind = "bias" if part is BIASES else "weights" if part is INPUT_WEIGHTS else "recurrent_weights"
            positions[part[number]] = graph.add_float_tensor(f"{name}/{gate}_{kind}", array.shape, array)
    for position, state in ((OUTPUT_STATE_POSITION, "output_state"), (CELL_STATE_POSITION, "cell_state")):
        positions[position] = graph.add_float_tensor(f"{name}/{state}", [1, units])
        graph.tensor(positions[position]).isVariable = True
    operator = graph.new_operator(FUSED_LSTM, positions, [output])
    options: Any = schema.UnidirectionalSequenceLSTMOptionsT()
    options.fusedActivationFunction, options.timeMajor = TANH, True
    operator.builtinOptionsType = schema.BuiltinOptions.UnidirectionalSequenceLSTMOptions
    operator.builtinOptions = options
    return operator


@final
@dataclass(frozen=True)
class FusedLstm:
    """One fused LSTM of a float graph: its number among the operators, its tensors, and its weights by gate."""

    number: int
    inputs: list[int]
    output: int
    is_time_major: bool
    cell_clip: float  # largest magnitude of the cell; 0: any
    weights: Array  # (gates, units, features)
    recurrent_weights: Array  # (gates, units, units)
    biases: Array  # (gates, units)

    def cells(self, x: Array) -> Iterator[Array]:
        """The cell after each step, (samples, units), of inputs (samples, steps, features)."""
        cell = np.zeros((len(x), self.biases.shape[1]))
        output = np.zeros_like(cell)
        for step in range(x.shape[1]):
            gates = np.einsum("sf,guf->gsu", x[:, step], self.weights) + self.biases[:, None]
            gates += np.einsum("su,gvu->gsv", output, self.recurrent_weights)
            input_gate, forget_gate, _, output_gate = 1 / (1 + np.exp(-gates))
            cell = forget_gate * cell + input_gate * np.tanh(gates[2])
            cell = np.clip(cell, -self.cell_clip, self.cell_clip) if self.cell_clip else cell
            output = output_gate * np.tanh(cell)
            yield cell


def find_fused_lstms(index: GraphIndex) -> list[FusedLstm]:
    """The fused LSTMs of a graph that integer kernels can compute; the others stay in float."""
    return [_read_lstm(index, number) for number, kind in enumerate(index.kinds) if _has_integer_form(index, number)]


def _has_integer_form(index: GraphIndex, number: int) -> bool:
    if index.kinds[number] != FUSED_LSTM or len(inputs := index.inputs[number]) != INPUT_COUNT:
        return False
    options = index.operators[number].builtinOptions
    constant_tensors = [inputs[position] for part in (INPUT_WEIGHTS, RECURRENT_WEIGHTS, BIASES) for position in part]
    return (
        all(inputs[position] < 0 for position in OMITTED_POSITIONS)
        and all(tensor in index.float_tensors and index.constant(tensor) is not None for tensor in constant_tensors)
        and options.fusedActivationFunction == TANH
    )


def _read_lstm(index: GraphIndex, number: int) -> FusedLstm:
    options = index.operators[number].builtinOptions
    weights, recurrent_weights, biases = (
        _stack_constants(index, number, part) for part in (INPUT_WEIGHTS, RECURRENT_WEIGHTS, BIASES)
    )
    return FusedLstm(
        number=number, inputs=index.inputs[number], output=index.outputs[number][0],
        is_time_major=bool(options.timeMajor), cell_clip=float(options.cellClip),
        weights=weights, recurrent_weights=recurrent_weights, biases=biases,
    )  # fmt: skip


def _stack_constants(index: GraphIndex, number: int, positions: range) -> Array:
    constants = [index.constant(index.inputs[number][position]) for position in positions]
    return np.stack([constant for constant in constants if constant is not None])
