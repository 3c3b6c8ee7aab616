"""Operators that TFLite computes in float only, spelled with ones that it has integer kernels for.

SQUARE, NEG and POW by a small whole number become MUL, which keeps a LayerNormalization, for one, in integers. GREATER
and LESS_EQUAL, which have no kernel of 16 bits, become LESS and GREATER_EQUAL with their inputs the other way round.
Where activations are to have 16 bits, so do operators whose kernels have 8 bits alone: SQUARED_DIFFERENCE, PRELU, ELU,
HARD_SWISH, RELU_N1_TO_1, DEPTH_TO_SPACE and SPACE_TO_DEPTH. All give the same float values, up to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRanges
from edgepipe.compress.quantizer.mutable_graph import BitWidth, BitWidthPolicy, MutableGraph
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

POWERS = (2, 3, 4)
OP_VERSIONS = {"TRANSPOSE": 6}  # of six dimensions
ALWAYS_DECOMPOSED = ("SQUARE", "NEG", "POW", "GREATER", "LESS_EQUAL")
INTERMEDIATE_SUFFIX = r"/\d+_[A-Z0-9_]+"  # how the name of a tensor on the way goes on after that of the result
SWAPPED_COMPARISONS = {"GREATER": "LESS", "LESS_EQUAL": "GREATER_EQUAL"}


def uniform_bit_width(bits: BitWidth) -> BitWidthPolicy:
    """All operators in integers of so many bits."""
    return lambda kind, outputs: bits


@contextmanager
def decomposed_model(lite: Model, policy: BitWidthPolicy) -> Iterator[Model]:
    """The float model `lite` by `spelling`, inside the block only."""
    content = decompose_operators(lite.content, policy)
    if content is lite.content:
        yield lite
        return
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield read(path)


def calibrate_decomposed(lite: Model, find_ranges: Callable[[Model], ActivationRanges]) -> ActivationRanges:
    """Ranges of `lite`, and of the tensors between operators that some are `spelled` in where they get 16 bits."""
    ranges = find_ranges(lite)
    with decomposed_model(lite, uniform_bit_width(16)) as int16_model:
        return (
            ranges
            if int16_model is lite
            else replace(ranges, by_tensor={**find_ranges(int16_model).by_tensor, **ranges.by_tensor})
        )


def decompose_operators(content: bytes, policy: BitWidthPolicy) -> bytes:
    """The float .tflite `content` in operators that have integer kernels, where they are known.

    `wanted` are the bits of an operator's activations; what stays in float is not touched.
    """
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    changes = [_decompose_operator(graph, operator, policy) for operator in list(graph.operators)]
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model)) if any(changes) else content


def _decompose_operator(graph: MutableGraph, operator: Any, policy: BitWidthPolicy) -> bool:
    kind = graph.kind(operator)
    if kind not in (*ALWAYS_DECOMPOSED, *INT16_DECOMPOSITIONS):
        return False
    bits = policy(kind, [graph.name(int(index)) for index in operator.outputs])
    return bits is not None and _Decomposition(graph, operator, bits).apply()


@final
class _Decomposition:
    """One operator, and those that take its place; the tensor that it makes keeps its name."""

    def __init__(self, graph: MutableGraph, operator: Any, bits: BitWidth) -> None:
        self.graph, self.operator, self.bits = graph, operator, bits
        self.input_indices = [int(index) for index in operator.inputs]
        self.output_index = int(operator.outputs[0])
        self.new_operators: list[Any] = []
        self.name_count = 0  # tensors on the way

    def apply(self) -> bool:
        """Put others in its place; False if it stays."""
        kind = self.graph.kind(self.operator)
        if kind in SWAPPED_COMPARISONS:
            self.new_operators = [
                self.graph.new_operator(SWAPPED_COMPARISONS[kind], 1, self.input_indices[::-1], [self.output_index])
            ]
        elif self.input_indices and self.graph.is_float(self.input_indices[0]):
            self._expand(kind)
        index = self.graph.operator_index(self.operator)
        self.graph.operators[index : index + 1] = self.new_operators or [self.operator]
        return bool(self.new_operators)

    def _expand(self, kind: str) -> None:
        x = self.input_indices[0]
        match kind:
            case "SQUARE":
                self._multiply([x, x])
            case "NEG":
                self._multiply([x, self._scalar(-1)])
            case "POW" if self._integer_exponent() in POWERS:
                self._multiply([x] * self._integer_exponent())
            case _ if self.bits == 16 and kind in INT16_DECOMPOSITIONS:
                INT16_DECOMPOSITIONS[kind](self)

    def _squared_difference(self) -> None:
        """(a - b)^2."""
        shape = list(self.graph.tensor(self.output_index).shape)  # one of both may be spread over the other
        self._multiply([self._emit("SUB", self.input_indices, shape)] * 2)

    def _prelu(self) -> None:
        """max(x, 0) + slope min(x, 0)."""
        x, slopes = self.input_indices
        negative_part = self._emit("MUL", [self._emit("MINIMUM", [x, self._scalar(0)]), slopes])
        self._emit_output("ADD", [self._emit("RELU", [x]), negative_part])

    def _elu(self) -> None:
        """max(x, 0) + (exp(min(x, 0)) - 1)."""
        x = self.input_indices[0]
        exponential = self._emit("EXP", [self._emit("MINIMUM", [x, self._scalar(0)])])
        self._emit_output("ADD", [self._emit("RELU", [x]), self._emit("SUB", [exponential, self._scalar(1)])])

    def _relu_n1_to_1(self) -> None:
        """min(max(x, -1), 1)."""
        self._emit_output(
            "MINIMUM", [self._emit("MAXIMUM", [self.input_indices[0], self._scalar(-1)]), self._scalar(1)]
        )

    def _hard_swish(self) -> None:
        """x (min(max(x + 3, 0), 6) / 6); by MINIMUM, because RELU6 of TFLite Micro does not change the scale."""
        x = self.input_indices[0]
        shifted_relu = self._emit("RELU", [self._emit("ADD", [x, self._scalar(3)])])
        gate = self._emit("MINIMUM", [shifted_relu, self._scalar(6)])
        self._emit_output("MUL", [x, self._emit("MUL", [gate, self._scalar(1 / 6)])])

    def _depth_to_space(self) -> None:
        """(.., h, w, b b c) as (.., h, w, b, b, c), turned to (.., h, b, w, b, c), as (.., h b, w b, c)."""
        block = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.input_indices[0]).shape[1:])
        self._permute_blocks([height, width, block, block, depth // block**2], [0, 1, 3, 2, 4, 5])

    def _space_to_depth(self) -> None:
        """The way back."""
        block = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.input_indices[0]).shape[1:])
        self._permute_blocks([height // block, block, width // block, block, depth], [0, 1, 3, 2, 4, 5])

    def _permute_blocks(self, shape: list[int], order: list[int]) -> None:
        """RESHAPE of each sample, TRANSPOSE, RESHAPE to what is made."""
        batch = int(self.graph.tensor(self.input_indices[0]).shape[0])
        blocks = self._emit("RESHAPE", [self.input_indices[0], self._int_list([-1, *shape])], [batch, *shape])
        permuted_shape = [[batch, *shape][axis] for axis in order]
        permuted_blocks = self._emit("TRANSPOSE", [blocks, self._int_list(order)], permuted_shape)
        output_shape = [int(size) for size in self.graph.tensor(self.output_index).shape[1:]]
        self._emit_output("RESHAPE", [permuted_blocks, self._int_list([-1, *output_shape])])

    def _integer_exponent(self) -> int:
        """The whole number that POW has for all elements; 0 if it is another, or spreads its input."""
        exponent = self.graph.constant(self.input_indices[1])
        shapes = [list(self.graph.tensor(index).shape) for index in (self.input_indices[0], self.output_index)]
        is_supported = (
            exponent is not None and exponent.size == 1 and exponent.item() in POWERS and shapes[0] == shapes[1]
        )
        return int(exponent.item()) if is_supported and exponent is not None else 0

    def _multiply(self, factors: list[int]) -> None:
        product = factors[0]
        for factor in factors[1:-1]:
            product = self._emit("MUL", [product, factor])
        self._emit_output("MUL", [product, factors[-1]])

    def _scalar(self, number: float) -> int:
        """A constant of one element."""
        return self.graph.add_float_tensor(self._intermediate_name(f"{number:g}"), [], np.array(number))

    def _int_list(self, numbers: list[int]) -> int:
        """A constant list of whole numbers."""
        return self.graph.add_int32_constant(self._intermediate_name("_".join(map(str, numbers))), numbers)

    def _emit(self, kind: str, inputs: list[int], shape: list[int] | None = None) -> int:
        """A tensor on the way, by default of the shape of the first input."""
        output_shape = self.graph.tensor(inputs[0]).shape if shape is None else shape
        index = self.graph.add_float_tensor(self._intermediate_name(kind), output_shape)
        self.new_operators.append(self.graph.new_operator(kind, OP_VERSIONS.get(kind, 1), inputs, [index]))
        return index

    def _emit_output(self, kind: str, inputs: list[int]) -> None:
        self.new_operators.append(self.graph.new_operator(kind, 1, inputs, [self.output_index]))

    def _intermediate_name(self, suffix: str) -> str:
        """A name below that of the result, the same whatever else is spelled in the model."""
        self.name_count += 1
        return f"{self.graph.name(self.output_index)}/{self.name_count}_{suffix}"


INT16_DECOMPOSITIONS = {  # spelled where activations are to have 16 bits
    "SQUARED_DIFFERENCE": _Decomposition._squared_difference,
    "PRELU": _Decomposition._prelu,
    "ELU": _Decomposition._elu,
    "HARD_SWISH": _Decomposition._hard_swish,
    "RELU_N1_TO_1": _Decomposition._relu_n1_to_1,
    "DEPTH_TO_SPACE": _Decomposition._depth_to_space,
    "SPACE_TO_DEPTH": _Decomposition._space_to_depth,
}
