"""Writes the integer model of a float .tflite: the given ranges, the bits of each operator, one pass.

This is edgepipe's quantizer. Which scales are used is decided by `encoding_plan`, what kernels demand is in
`kernel_requirements`; here tensors and operators are rewritten, and QUANTIZE and DEQUANTIZE are put where an operator
reads a tensor in another form than it is stored in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.encoding_plan import EncodingPlan
from edgepipe.compress.quantizer.fused_lstm import FUSED_LSTM
from edgepipe.compress.quantizer.fused_lstm_writer import write_fused_lstm
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.graph_rewriter import GraphRewriter
from edgepipe.compress.quantizer.integer_support import float_reason
from edgepipe.compress.quantizer.kernel_requirements import (
    TABULATED_OPERATORS,
    WEIGHTS_POSITION,
    BitWidth,
)
from edgepipe.compress.quantizer.lookup_tables import TableWriter
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.operator_precision import PrecisionPolicy
from edgepipe.compress.quantizer.shared_states import find_state_pairs
from edgepipe.compress.quantizer.weight_writer import WeightWriter

INTERFACE_BITS: dict[str, BitWidth] = {"int8": 8, "uint8": 8, "int16": 16}
UINT8_SHIFT = 128  # zero point of uint8 over that of int8
UINT8_AS_INT8 = Encoding(8, 1.0, -UINT8_SHIFT)  # whole numbers from 0 to 255
POWER_OF_TWO_OPTION = "potScaleInt16"  # of ADD and SUB: 16-bit scales that are powers of two


@final
@dataclass(frozen=True)
class IntegerModel:
    """The bytes of a .tflite, and the name that each tensor of the float graph has in it, if it is still there."""

    content: bytes
    name_by_float_tensor: Mapping[str, str]


def write_integer_model(
    graph: MutableGraph,
    ranges: Mapping[str, ActivationRange],
    policy: PrecisionPolicy,
    input_types: Sequence[str],
    output_types: Sequence[str],
) -> IntegerModel:
    """A float graph in integers; the graph is rewritten in place.

    Args:
        graph: a float graph, decomposed.
        ranges: of activations, by tensor name.
        policy: the precision of each operator.
        input_types: of each float input: int8, uint8, int16 or float32; others keep theirs.
        output_types: the same of each output.
    """
    index = GraphIndex(graph)
    precisions = [policy(kind, index.output_names(number)) for number, kind in enumerate(index.kinds)]
    bits_by_operator = [
        _operator_bits(index, number, precision.activation_bits, ranges) for number, precision in enumerate(precisions)
    ]
    input_types, output_types = _keep_states_integer(index, bits_by_operator, input_types, output_types)
    plan = EncodingPlan(index, bits_by_operator, ranges, _input_bits(index, bits_by_operator, ranges, input_types))
    rewriter = GraphRewriter(graph, index, plan)
    _ModelWriter(rewriter, WeightWriter(rewriter, precisions)).write(input_types, output_types)
    name_by_float_tensor = {name: graph.name(tensor) for tensor, name in enumerate(index.names)}
    return IntegerModel(flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model)), name_by_float_tensor)


def _keep_states_integer(
    index: GraphIndex,
    bits_by_operator: Sequence[BitWidth | None],
    input_types: Sequence[str],
    output_types: Sequence[str],
) -> tuple[list[str], list[str]]:
    """The types of inputs and outputs; states have the type that they are computed in, whatever the others have."""
    types_by_input = dict(zip(index.graph_inputs, input_types, strict=True))
    output_types = list(output_types)
    for state_input, state_output in find_state_pairs(index.graph):
        numbers = [index.producer_by_tensor.get(state_output), *index.readers_by_tensor.get(state_input, [])]
        bits = next((bits_by_operator[number] for number in numbers if number is not None), None)
        if bits is not None:
            types_by_input[state_input] = f"int{bits}"
            output_types[_state_position(index, state_output)] = f"int{bits}"
    return [types_by_input[tensor] for tensor in index.graph_inputs], output_types


def _state_position(index: GraphIndex, state_output: int) -> int:
    """The position of a state among the outputs: if its tensor is another output too, states come last."""
    return max(position for position, tensor in enumerate(index.graph_outputs) if tensor == state_output)


def _operator_bits(
    index: GraphIndex, number: int, bits: BitWidth | None, ranges: Mapping[str, ActivationRange]
) -> BitWidth | None:
    """The bits of an operator's activations if it can have the ones asked for; None for float."""
    activations = [
        *(t for t in index.inputs[number] if t in index.float_tensors and index.constant(t) is None),
        *index.float_outputs(number),
    ]
    has_ranges = bool(activations) and all(index.names[tensor] in ranges for tensor in activations)
    if bits is None or not has_ranges or float_reason(index, number, bits, ranges):
        return None
    return bits


def _input_bits(
    index: GraphIndex,
    bits_by_operator: list[BitWidth | None],
    ranges: Mapping[str, ActivationRange],
    input_types: Sequence[str],
) -> dict[int, BitWidth]:
    """How float inputs of the graph are stored; those that no integer operator reads and no type asks for are not."""
    bits_by_input: dict[int, BitWidth] = {}
    for tensor, input_type in zip(index.graph_inputs, input_types, strict=True):
        reader_bits = [bits_by_operator[number] for number in index.readers_by_tensor.get(tensor, [])]
        known_bits = [bits for bits in reader_bits if bits is not None]
        bits = INTERFACE_BITS.get(input_type) or (known_bits[0] if known_bits else None)
        if bits is not None and tensor in index.float_tensors and index.names[tensor] in ranges:
            bits_by_input[tensor] = bits
    return bits_by_input


@final
class _ModelWriter:
    """Rewrites the graph in place, operator by operator."""

    def __init__(self, rewriter: GraphRewriter, weight_writer: WeightWriter) -> None:
        self.rewriter, self.weight_writer, self.table_writer = rewriter, weight_writer, TableWriter(rewriter)
        self.graph, self.index, self.plan = rewriter.graph, rewriter.index, rewriter.plan

    def write(self, input_types: Sequence[str], output_types: Sequence[str]) -> None:
        """Rewrite inputs, operators and outputs."""
        for tensor in dict.fromkeys([*self.index.graph_inputs, *self.index.producer_by_tensor]):
            if (encoding := self.plan.stored(tensor)) is not None:
                self.graph.set_encoding(tensor, encoding)
        for position, (tensor, input_type) in enumerate(zip(self.index.graph_inputs, input_types, strict=True)):
            self._write_input(position, tensor, input_type)
        for number in range(len(self.index.operators)):
            self._write_operator(number)
        for position, (tensor, output_type) in enumerate(zip(self.index.graph_outputs, output_types, strict=True)):
            if tensor in self.index.float_tensors:
                self._write_output(position, tensor, output_type)
        self.graph.subgraph.operators = self.rewriter.operators

    def _write_input(self, position: int, tensor: int, input_type: str) -> None:
        """Put an interface tensor in front of a graph input that is stored in another type."""
        encoding = self.plan.stored(tensor)
        if encoding is None or input_type not in ("float32", "uint8"):
            return
        interface = self._add_interface(tensor, input_type, encoding)
        self.rewriter.append("QUANTIZE", interface, tensor)
        self.graph.replace_input(position, interface)

    def _write_output(self, position: int, tensor: int, output_type: str) -> None:
        """Put an interface tensor behind a graph output that is stored in another type."""
        encoding = self.plan.stored(tensor)
        stored_type = "float32" if encoding is None else f"int{encoding.bits}"
        if output_type != stored_type or self._is_stored_otherwise(tensor, encoding):
            interface = self.rewriter.shared((tensor, output_type), lambda: self._convert_output(tensor, output_type))
            self.graph.replace_output(position, interface)

    def _is_stored_otherwise(self, tensor: int, encoding: Encoding | None) -> bool:
        """Whether a state is not stored as its input takes it: two kernels prescribe different scales for it."""
        states = self.plan.shared_states
        return encoding is not None and tensor in states and states.encoding_of(tensor, encoding.bits) != encoding

    def _convert_output(self, tensor: int, output_type: str) -> int:
        bits = INTERFACE_BITS.get(output_type)
        encoding = self.plan.stored(tensor) if bits is None else self.plan.readable_encoding(tensor, bits)
        if bits is not None and self._is_stored_otherwise(tensor, encoding):
            encoding = self.plan.own_encoding(tensor, bits)
        interface = self._add_interface(tensor, output_type, encoding)
        self.rewriter.append("DEQUANTIZE" if bits is None else "QUANTIZE", tensor, interface)
        return interface

    def _add_interface(self, tensor: int, interface_type: str, encoding: Encoding | None) -> int:
        """A tensor of the model's interface; it takes over the name, so that callers find it."""
        name, source = self.index.names[tensor], self.graph.tensor(tensor)
        if interface_type == "float32" or encoding is None:
            interface = self.graph.add_float_tensor(name, source.shape)
        elif interface_type == "uint8":
            zero_point = encoding.zero_point + UINT8_SHIFT
            interface = self.graph.add_uint8_tensor(name, source.shape, encoding.scale, zero_point)
        else:
            interface = self.graph.add_encoded_tensor(name, source.shape, encoding)
        self.graph.tensor(interface).shapeSignature = source.shapeSignature
        source.name = self.rewriter.unique_name(f"{name}{flatbuffer_edits.INSIDE_SUFFIX}").encode()
        return interface

    def _write_operator(self, number: int) -> None:
        operator, bits = self.index.operators[number], self.plan.bits_by_operator[number]
        if bits is not None and self.index.kinds[number] == "CAST":
            self._write_cast(self.index.inputs[number][0], self.index.outputs[number][0], bits)
            return
        if bits is not None and self.index.kinds[number] == FUSED_LSTM:
            write_fused_lstm(self.rewriter, number)
            self.rewriter.operators.append(operator)
            return
        if bits is not None and self.index.kinds[number] in TABULATED_OPERATORS:
            self.table_writer.write(number)
            return
        operator.inputs = [self._read(number, position) for position in range(len(self.index.inputs[number]))]
        if bits is not None and hasattr(operator.builtinOptions, POWER_OF_TWO_OPTION):
            setattr(operator.builtinOptions, POWER_OF_TWO_OPTION, False)
        self.rewriter.operators.append(operator)

    def _write_cast(self, source: int, target: int, bits: BitWidth) -> None:
        """Quantize integers, which count in ones."""
        self.graph.set_scale(source, 1.0)
        if bits == 16 and self.graph.dtype(source) == "uint8":  # there is no kernel from uint8 to int16
            name, shape = self.rewriter.unique_name(f"{self.index.names[source]}_int8"), self.graph.tensor(source).shape
            narrow = self.graph.add_encoded_tensor(name, shape, UINT8_AS_INT8)
            self.rewriter.append("QUANTIZE", source, narrow)
            source = narrow
        self.rewriter.append("QUANTIZE", source, target)

    def _read(self, number: int, position: int) -> int:
        """The tensor that an operator reads at a position."""
        tensor = self.index.inputs[number][position]
        if tensor not in self.index.float_tensors:
            return tensor
        encoding, constant = self.plan.demanded(number, position), self.index.constant(tensor)
        if constant is None:
            return self.rewriter.read_activation(tensor, encoding)
        if encoding is not None:
            return self.weight_writer.write_integer_constant(number, position, constant, encoding)
        is_weight = position == WEIGHTS_POSITION
        return self.weight_writer.write_float_weights(number, tensor, constant) if is_weight else tensor
