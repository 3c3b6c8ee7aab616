"""Integer kernels for operators that a quantizer left in float.

litert-quantizer 0.11 supports fewer operators than TFLite has integer kernels for (no LEAKY_RELU, PRELU, EXP, MINIMUM,
REDUCE_MAX, TILE ..), and TensorFlow's quantizer leaves some in float as well (ELU). Such an operator sits in float
between a DEQUANTIZE and a QUANTIZE. Here it gets its integer form: inputs as they are stored, outputs in the calibrated
range or the one that its kernel requires.

Kernel requirements: LiteRT's 8-bit quantization specification; for 16 bits, and for versions, TensorFlow's
`lite/kernels` and `lite/tools/versioning/op_version.cc`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.mutable_graph import (
    BitWidth,
    BitWidthPolicy,
    MutableGraph,
    QuantParams,
    choose_quant_params,
)
from edgepipe.core.arrays import Array


@final
@dataclass(frozen=True)
class IntegerKernel:
    """The integer kernels of an operator.

    Scales may be tied: outputs take that of the `input`, inputs that of the `output`; or 16-bit values are compared as
    `stored`, so that all inputs need the same scale.
    """

    version_by_bits: Mapping[BitWidth, int]  # of the operator, by the bits of its activations
    tied_scales: Literal["", "input", "output", "stored"] = ""
    fixed_output_params: QuantParams | None = None  # fixed scale and zero point of the output, whatever its range


INTEGER_KERNELS: dict[str, IntegerKernel] = {
    "ABS": IntegerKernel({8: 2, 16: 3}),
    "ARG_MAX": IntegerKernel({8: 2}),
    "ARG_MIN": IntegerKernel({8: 2}),
    "BATCH_TO_SPACE_ND": IntegerKernel({8: 2, 16: 4}, "input"),
    "DEPTH_TO_SPACE": IntegerKernel({8: 2}, "input"),
    "ELU": IntegerKernel({8: 1}),
    "EXP": IntegerKernel({8: 2, 16: 2}),
    "EXPAND_DIMS": IntegerKernel({8: 1, 16: 1}, "input"),
    "GREATER_EQUAL": IntegerKernel({8: 2, 16: 3}, "stored"),
    "L2_NORMALIZATION": IntegerKernel({8: 2}, fixed_output_params=(1 / 128, 0)),
    "LEAKY_RELU": IntegerKernel({8: 1, 16: 2}),
    "LESS": IntegerKernel({8: 2, 16: 3}, "stored"),
    "LOG": IntegerKernel({8: 2, 16: 2}),
    "LOG_SOFTMAX": IntegerKernel({8: 2}, fixed_output_params=(16 / 256, 127)),
    "MAXIMUM": IntegerKernel({8: 2, 16: 4}, "output"),
    "MINIMUM": IntegerKernel({8: 2, 16: 4}, "output"),
    "PRELU": IntegerKernel({8: 1}),
    "REDUCE_MAX": IntegerKernel({8: 2, 16: 3}, "input"),
    "REDUCE_MIN": IntegerKernel({8: 2, 16: 3}, "input"),
    "REDUCE_PROD": IntegerKernel({8: 2, 16: 2}),
    "RELU6": IntegerKernel({8: 2, 16: 3}, "input"),  # TFLite Micro's kernel clips without rescaling
    "RELU_N1_TO_1": IntegerKernel({8: 1}),
    "REVERSE_V2": IntegerKernel({8: 3, 16: 1}, "input"),
    "SHAPE": IntegerKernel({8: 1, 16: 1}),
    "SPACE_TO_BATCH_ND": IntegerKernel({8: 2, 16: 4}, "input"),
    "SPACE_TO_DEPTH": IntegerKernel({8: 2}, "input"),
    "SPLIT": IntegerKernel({8: 2, 16: 4}, "input"),
    "SPLIT_V": IntegerKernel({8: 2, 16: 1}, "input"),
    "SQUARED_DIFFERENCE": IntegerKernel({8: 2}),
    "SQUEEZE": IntegerKernel({8: 1, 16: 1}, "input"),
    "TILE": IntegerKernel({8: 3, 16: 1}, "input"),
    "TOPK_V2": IntegerKernel({8: 2, 16: 3}, "input"),
}


def integerize_operators(
    content: bytes, float_content: bytes, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange]
) -> bytes:
    """The quantized model `content` with the operators of `INTEGER_KERNELS` that are still in float made integer.

    Args:
        content: the quantized .tflite.
        float_content: the float .tflite that it was quantized from; operators are matched by output name.
        policy: bit width of each operator's activations; None for one that stays in float.
        ranges: of activations, by tensor name in the float model.
    """
    graph, float_graph = (
        MutableGraph(flatbuffer_edits.unpack_model(content)),
        MutableGraph(flatbuffer_edits.unpack_model(float_content)),
    )
    is_changed = False
    for operator, float_operator in _match_operators(graph, float_graph):
        kind = graph.kind(operator)
        output_names = [float_graph.name(index) for index in float_operator.outputs]
        bits = policy(kind, output_names)
        if bits is not None and bits in INTEGER_KERNELS[kind].version_by_bits:
            input_ranges = [ranges.get(float_graph.name(index)) for index in float_operator.inputs]
            output_ranges = [ranges.get(name) for name in output_names]
            is_changed |= _FloatOperator(
                graph, operator, INTEGER_KERNELS[kind], bits, input_ranges, output_ranges, output_names
            ).integerize()
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model)) if is_changed else content


def count_float_operators(content: bytes) -> int:
    """How many operators of a model output floats, QUANTIZE and DEQUANTIZE excluded."""
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    compute_operators = (
        operator for operator in graph.operators if graph.kind(operator) not in ("QUANTIZE", "DEQUANTIZE")
    )
    return sum(any(graph.is_float(int(index)) for index in operator.outputs) for operator in compute_operators)


def _match_operators(
    graph: MutableGraph, float_graph: MutableGraph
) -> list[tuple[FlatbufferOperator, FlatbufferOperator]]:
    """The operators of `INTEGER_KERNELS` in the quantized model, in order, each with its float origin."""
    operator_pairs = []
    for kind in INTEGER_KERNELS:
        quantized_operators, float_operators = (
            [operator for operator in each_graph.operators if each_graph.kind(operator) == kind]
            for each_graph in (graph, float_graph)
        )
        float_operator_by_name = {
            float_graph.name(index): source for source in float_operators for index in source.outputs
        }
        # neither quantizer changes the order, so the position identifies an operator that was renamed
        positional_operators = (
            float_operators if len(float_operators) == len(quantized_operators) else [None] * len(quantized_operators)
        )
        for operator, positional_operator in zip(quantized_operators, positional_operators, strict=True):
            matched_operator = next(
                (
                    float_operator_by_name[name]
                    for name in _candidate_names(graph, operator)
                    if name in float_operator_by_name
                ),
                positional_operator,
            )
            operator_pairs += [] if matched_operator is None else [(operator, matched_operator)]
    return sorted(operator_pairs, key=lambda pair: graph.operator_index(pair[0]))


def _candidate_names(graph: MutableGraph, operator: FlatbufferOperator) -> Iterator[str]:
    """Possible names of an operator's outputs in the float model.

    TensorFlow's quantizer gives the name of a float tensor to the one that is quantized from it.
    """
    for index in operator.outputs:
        yield from (graph.name(int(r.outputs[0])) for r in graph.readers(index) if graph.kind(r) == "QUANTIZE")
        yield graph.name(index)


@final
@dataclass
class _FloatOperator:
    """One operator that may still be in float."""

    graph: MutableGraph
    operator: FlatbufferOperator
    integer_kernel: IntegerKernel
    bits: BitWidth
    input_ranges: list[ActivationRange | None]  # ranges of its inputs in the float model
    output_ranges: list[ActivationRange | None]  # ranges of its outputs there
    output_names: list[str]  # names of its outputs there

    def integerize(self) -> bool:
        """Make the operator integer; False if it is already, or if a range is not known."""
        input_positions, output_positions = (
            self._float_positions(self.operator.inputs),
            self._float_positions(self.operator.outputs),
        )
        input_params = [
            self._input_params(position) for position in input_positions if self._constant_input(position) is None
        ]
        if not input_params or None in input_params:
            return False
        output_params = [self._output_params(position, input_params[0]) for position in output_positions]
        known_params = [params for params in output_params if params is not None]
        if len(known_params) < len(output_params):
            return False
        tied_params = (
            known_params[0] if self.integer_kernel.tied_scales == "output" else self._comparison_params(input_positions)
        )
        for position in input_positions:
            self.operator.inputs[position] = self._quantize_input(position, tied_params)
        for position, params in zip(output_positions, known_params, strict=True):
            self._quantize_output(position, params)
        self.operator.opcodeIndex = self.graph.ensure_opcode(
            self.graph.kind(self.operator), self.integer_kernel.version_by_bits[self.bits]
        )
        return True

    def _float_positions(self, indices: Sequence[int]) -> list[int]:
        """The positions of float32 tensors in `indices`."""
        return [position for position, index in enumerate(indices) if self.graph.is_float(index)]

    def _constant_input(self, position: int) -> Array | None:
        return self.graph.constant(self.operator.inputs[position])

    def _source_index(self, position: int) -> int:
        """The integer tensor that an input is dequantized from, or the input itself."""
        producer = self.graph.producer(self.operator.inputs[position])
        if producer is not None and self.graph.kind(producer) == "DEQUANTIZE":
            return int(producer.inputs[0])
        return int(self.operator.inputs[position])

    def _input_params(self, position: int) -> QuantParams | None:
        """Scale and zero point of an input; None if its range is not known."""
        source_index = self._source_index(position)
        if self.graph.bit_width(source_index) == self.bits:
            return self.graph.quant_params(source_index)
        input_range = self.input_ranges[position]
        return None if input_range is None else choose_quant_params(input_range, self.bits)

    def _output_params(self, position: int, input_params: QuantParams | None) -> QuantParams | None:
        """Scale and zero point of an output; None if its range is not known.

        Readers may quantize to a narrower range; one that has the output's own up to rounding is reused exactly.
        """
        if self.integer_kernel.fixed_output_params is not None:
            return self.integer_kernel.fixed_output_params
        if self.integer_kernel.tied_scales == "input":
            return input_params
        quantized_indices = [int(reader.outputs[0]) for reader in self._quantize_readers(position)]
        reader_params = [
            self.graph.quant_params(index) for index in quantized_indices if self.graph.bit_width(index) == self.bits
        ]
        output_range = self.output_ranges[position]
        if output_range is None:
            return max(reader_params, default=None)
        own_params = choose_quant_params(output_range, self.bits)
        return next(
            (
                params
                for params in reader_params
                if params[1] == own_params[1] and np.isclose(params[0], own_params[0], rtol=1e-5)
            ),
            own_params,
        )

    def _quantize_readers(self, position: int) -> list[FlatbufferOperator]:
        """The QUANTIZE operators that read an output."""
        readers = self.graph.readers(self.operator.outputs[position])
        return [reader for reader in readers if self.graph.kind(reader) == "QUANTIZE"]

    def _comparison_params(self, positions: list[int]) -> QuantParams | None:
        """The common scale of inputs that are compared as stored; None if they keep their own."""
        if self.integer_kernel.tied_scales != "stored" or self.bits == 8:
            return None
        compared_ranges = [self._input_range(position) for position in positions]
        return choose_quant_params(
            (min(low for low, _ in compared_ranges), max(high for _, high in compared_ranges)), self.bits
        )

    def _input_range(self, position: int) -> ActivationRange:
        """The range of an input."""
        constant = self._constant_input(position)
        if constant is not None:
            return float(constant.min()), float(constant.max())
        input_range = self.input_ranges[position]
        assert input_range is not None, "`integerize` has checked that inputs have ranges"
        return input_range

    def _quantize_input(self, position: int, tied_params: QuantParams | None) -> int:
        """The integer tensor that the kernel reads instead of the float one."""
        float_index = self.operator.inputs[position]
        shape, name = (
            self.graph.tensor(float_index).shape,
            f"{self.graph.name(float_index)}_{self.graph.kind(self.operator)}",
        )
        constant = self._constant_input(position)
        if constant is not None:
            return self.graph.add_quantized_tensor(
                name,
                shape,
                self.bits,
                tied_params or choose_quant_params(self._input_range(position), self.bits),
                constant,
            )
        source_index, input_params = self._source_index(position), tied_params or self._input_params(position)
        assert input_params is not None, "`integerize` has checked that inputs have ranges"
        if self._has_params(source_index, input_params):
            return source_index
        integer_index = self.graph.add_quantized_tensor(name, shape, self.bits, input_params)
        self._insert(self.graph.new_operator("QUANTIZE", {8: 1, 16: 2}[self.bits], [source_index], [integer_index]), 0)
        return integer_index

    def _quantize_output(self, position: int, params: QuantParams) -> None:
        """Make an output integer; remaining readers of the float tensor get it dequantized."""
        float_index, quantize_readers = int(self.operator.outputs[position]), self._quantize_readers(position)
        matching_readers = [reader for reader in quantize_readers if self._has_params(int(reader.outputs[0]), params)]
        if matching_readers:
            integer_index = int(matching_readers[0].outputs[0])
            self.graph.remove_operator(matching_readers[0])
        else:
            integer_index = self.graph.add_quantized_tensor("", self.graph.tensor(float_index).shape, self.bits, params)
        self.operator.outputs[position] = integer_index
        self.graph.tensor(float_index).name = f"{self.output_names[position]}_dequantized".encode()
        self.graph.tensor(integer_index).name = self.output_names[position].encode()
        for reader in quantize_readers:
            reader.inputs = [integer_index]
        if self.graph.readers(float_index) or float_index in self.graph.subgraph.outputs:
            self._insert(
                self.graph.new_operator("DEQUANTIZE", {8: 2, 16: 3}[self.bits], [integer_index], [float_index]), 1
            )

    def _has_params(self, index: int, params: QuantParams) -> bool:
        return self.graph.bit_width(index) == self.bits and self.graph.quant_params(index) == params

    def _insert(self, operator: FlatbufferOperator, offset: int) -> None:
        self.graph.operators.insert(self.graph.operator_index(self.operator) + offset, operator)
