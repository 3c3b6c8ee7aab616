"""Operators without an integer kernel in TFLite, decomposed into operators that have one.

SQUARE, NEG and POW by a small integer become MUL, which keeps a LayerNormalization, for example, in integers; ADD_N
becomes ADD, CUMSUM a BATCH_MATMUL with a triangle of ones, SUM one with ones, CONV_3D a CONV_2D over pictures. GREATER
and LESS_EQUAL, which have no 16-bit kernel, become LESS and GREATER_EQUAL with swapped inputs. A bool that is cast to
float becomes a choice between 1 and 0. SELECT, REDUCE_ANY and REDUCE_ALL, which TFLite Micro does not have, become
SELECT_V2 and the maximum or minimum of ones and zeros. For 16-bit activations, operators with only 8-bit kernels are
decomposed too: SQUARED_DIFFERENCE, PRELU, ELU, HARD_SWISH, L2_NORMALIZATION, LOG_SOFTMAX, RELU_N1_TO_1, DEPTH_TO_SPACE
and SPACE_TO_DEPTH. All give the same float values, up to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange, ActivationRanges
from edgepipe.compress.quantizer.bounded_exponentials import bound_exponentials
from edgepipe.compress.quantizer.channel_affine import fuse_channel_affines
from edgepipe.compress.quantizer.division import replace_divisions
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.kernel_requirements import BitWidth
from edgepipe.compress.quantizer.log_domain import expand_logarithms, split_logarithms
from edgepipe.compress.quantizer.mask_sentinels import replace_sentinels
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.compress.quantizer.operator_replacement import OperatorReplacement
from edgepipe.compress.quantizer.sum_products import multiply_by_ones
from edgepipe.compress.quantizer.volume_convolution import convolve_volume
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

SUPPORTED_POWERS = (2, 3, 4)
BOOL_REDUCTIONS = {"REDUCE_ANY": "REDUCE_MAX", "REDUCE_ALL": "REDUCE_MIN"}
ALWAYS_DECOMPOSED = (
    *("SQUARE", "NEG", "POW", "ADD_N", "CONV_3D", "CUMSUM", "GREATER", "LESS_EQUAL", "CAST", "SELECT", "SUM"),
    *BOOL_REDUCTIONS,
)
INTERMEDIATE_SUFFIX = r"/\d+_[A-Z0-9_]+"  # suffix of an intermediate tensor's name, after the name of the output
SWAPPED_COMPARISONS = {"GREATER": "LESS", "LESS_EQUAL": "GREATER_EQUAL"}


def uniform_bit_width(bits: BitWidth) -> BitWidthPolicy:
    """The policy that gives all operators integer activations of `bits`."""
    return lambda kind, output_names: bits


@contextmanager
def decomposed_model(
    lite: Model, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange] | None = None
) -> Iterator[Model]:
    """The float model `lite` with its operators decomposed; the file exists inside the block only.

    `policy` gives the bits of each operator's activations; `ranges`: see `decompose_graph`.
    """
    content = decompose_operators(lite.content, policy, ranges)
    if content is lite.content:
        yield lite
        return
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield read(path)


def calibrate_decomposed(lite: Model, find_ranges: Callable[[Model], ActivationRanges]) -> ActivationRanges:
    """Ranges of `lite`, and of the intermediate tensors of operators that are decomposed for 16 bits."""
    activation_ranges = find_ranges(lite)
    with decomposed_model(lite, uniform_bit_width(16), activation_ranges.by_tensor) as int16_model:
        return (
            activation_ranges
            if int16_model is lite
            else replace(
                activation_ranges, by_tensor={**find_ranges(int16_model).by_tensor, **activation_ranges.by_tensor}
            )
        )


def decompose_operators(
    content: bytes, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange] | None = None
) -> bytes:
    """The float .tflite `content`, decomposed into operators with integer kernels where possible.

    `policy` gives the bits of each operator's activations; operators that stay in float are not changed. `ranges`: see
    `decompose_graph`.
    """
    graph = MutableGraph(flatbuffer_edits.unpack_model(content))
    is_changed = decompose_graph(graph, policy, ranges)
    return flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model)) if is_changed else content


def decompose_graph(
    graph: MutableGraph, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange] | None = None
) -> bool:
    """Rewrite a float graph in place for integers; True if it changed.

    Masks, divisions, exponentials, logarithms and channel factors come first, then single operators. `ranges` are those
    of activations by tensor name, on which the form of 16-bit logarithms depends; None: not known yet.
    """
    is_rewritten = [
        replace_sentinels(graph),
        replace_divisions(graph, policy),
        bound_exponentials(graph, policy),
        expand_logarithms(graph, policy),
        split_logarithms(graph, policy, ranges or {}),
        fuse_channel_affines(graph, policy),
    ]
    change_flags = [_decompose_operator(graph, operator, policy) for operator in list(graph.operators)]
    return any(is_rewritten) or any(change_flags)


def _decompose_operator(graph: MutableGraph, operator: FlatbufferOperator, policy: BitWidthPolicy) -> bool:
    kind = graph.kind(operator)
    if kind not in (*ALWAYS_DECOMPOSED, *INT16_DECOMPOSITIONS):
        return False
    bits = policy(kind, [graph.name(int(index)) for index in operator.outputs])
    return bits is not None and _Decomposition(graph, operator, bits).apply()


@final
class _Decomposition(OperatorReplacement):
    """One operator, and those that it is decomposed into."""

    def __init__(self, graph: MutableGraph, operator: FlatbufferOperator, bits: BitWidth) -> None:
        super().__init__(graph, operator)
        self.bits = bits

    def apply(self) -> bool:
        """Replace the operator; False if it stays."""
        kind = self.graph.kind(self.operator)
        if kind in SWAPPED_COMPARISONS:
            self.new_operators = [
                self.graph.new_operator(SWAPPED_COMPARISONS[kind], self.input_indices[::-1], [self.output_index])
            ]
        elif kind == "CAST":
            self._append_choice()
        elif kind == "SELECT" and self._has_equal_shapes():
            self.append_output_operator("SELECT_V2", self.input_indices)
        elif kind in BOOL_REDUCTIONS:
            self._append_bool_reduction(BOOL_REDUCTIONS[kind])
        elif self.input_indices and self.graph.is_float(self.input_indices[0]):
            self._append_decomposition(kind)
        index = self.graph.operator_index(self.operator)
        self.graph.operators[index : index + 1] = self.new_operators or [self.operator]
        return bool(self.new_operators)

    def _append_decomposition(self, kind: str) -> None:
        x = self.input_indices[0]
        if kind in DECOMPOSITIONS:
            DECOMPOSITIONS[kind](self)
        elif kind in INT16_DECOMPOSITIONS and self.bits == 16:
            INT16_DECOMPOSITIONS[kind](self)
        elif kind == "SQUARE":
            self._multiply([x, x])
        elif kind == "NEG":
            self._multiply([x, self.add_scalar(-1)])
        elif kind == "POW" and self._integer_exponent() in SUPPORTED_POWERS:
            self._multiply([x] * self._integer_exponent())

    def _append_choice(self) -> None:
        """A bool as a float: where it holds 1, else 0."""
        condition = self.input_indices[0]
        if self.graph.dtype(condition) == "bool" and self.graph.is_float(self.output_index):
            self.append_output_operator("SELECT_V2", [condition, self.add_scalar(1), self.add_scalar(0)])

    def _has_equal_shapes(self) -> bool:
        """Whether a choice is made element by element: SELECT takes one condition per row too."""
        shapes = [list(self.graph.tensor(index).shape) for index in (*self.input_indices, self.output_index)]
        return all(shape == shapes[0] for shape in shapes)

    def _append_bool_reduction(self, kind: str) -> None:
        """Any or all of some bools: whether the largest or the smallest of ones and zeros is one."""
        condition, axes = self.input_indices
        ones = self.append_operator("SELECT_V2", [condition, self.add_scalar(1), self.add_scalar(0)],
                                     self.graph.tensor(condition).shape)  # fmt: skip
        extreme = self.append_operator(kind, [ones, axes], self.graph.tensor(self.output_index).shape)
        reduction = self.new_operators[-1]
        reduction.builtinOptionsType = self.operator.builtinOptionsType
        reduction.builtinOptions = self.operator.builtinOptions
        self.append_output_operator("NOT_EQUAL", [extreme, self.add_scalar(0)])

    def _add_n(self) -> None:
        """a + b + c .. as a chain of two each."""
        total_index = self.input_indices[0]
        for index in self.input_indices[1:-1]:
            total_index = self.append_operator("ADD", [total_index, index])
        self.append_output_operator("ADD", [total_index, self.input_indices[-1]])

    def _sum(self) -> None:
        """A product with ones; the last operator gives the output."""
        x, axes = self.input_indices[0], self.graph.numbers(self.input_indices[1])
        shape, output_shape = (
            [int(size) for size in self.graph.tensor(index).shape] for index in (x, self.output_index)
        )
        if axes is None or not axes.size:
            return
        summed_axes = [int(axis) % len(shape) for axis in axes.ravel()]
        if multiply_by_ones(self, x, summed_axes, output_shape) is not None:
            self.new_operators[-1].outputs = [self.output_index]

    def _cumulative_sum(self) -> None:
        """A product with a triangle of ones, over one of the last two axes: it rounds once."""
        x, options = self.input_indices[0], self.operator.builtinOptions
        shape = [int(size) for size in self.graph.tensor(x).shape]
        axes = self.graph.numbers(self.input_indices[1])
        axis = len(shape) if axes is None else int(axes.item()) % len(shape)
        if len(shape) < 2 or axis not in (len(shape) - 2, len(shape) - 1):
            return
        is_last = axis == len(shape) - 1
        triangle = np.tri(shape[axis], k=-1 if options.exclusive else 0)  # the sum of row i reads what comes before it
        matrix = triangle.T if options.reverse != is_last else triangle
        matrix_shape = [1] * (len(shape) - 2) + list(matrix.shape)
        matrix_index = self.graph.add_float_tensor(self.intermediate_name("TRIANGLE"), matrix_shape, matrix)
        self.append_output_operator("BATCH_MATMUL", [x, matrix_index] if is_last else [matrix_index, x])

    def _l2_normalization(self) -> None:
        """x rsqrt(max(sum(x^2), 1e-12)) over the last axis."""
        x = self.input_indices[0]
        square_sum = self._sum_last_axis(self.append_operator("MUL", [x, x]))
        least_sum = self.append_operator("MAXIMUM", [square_sum, self.add_scalar(1e-12)])
        self.append_output_operator("MUL", [x, self.append_operator("RSQRT", [least_sum])])

    def _log_softmax(self) -> None:
        """y - log(sum(exp(y))) with y = x - max(x), over the last axis."""
        x = self.input_indices[0]
        y = self.append_operator("SUB", [x, self._reduce("REDUCE_MAX", x)])
        logarithm = self.append_operator("LOG", [self._sum_last_axis(self.append_operator("EXP", [y]))])
        self.append_output_operator("SUB", [y, logarithm])

    def _sum_last_axis(self, x: int) -> int:
        shape = [int(size) for size in self.graph.tensor(x).shape]
        total = multiply_by_ones(self, x, [len(shape) - 1], [*shape[:-1], 1])
        assert total is not None, "one axis has no others between its ends"
        return total

    def _reduce(self, kind: str, x: int) -> int:
        """Append a reduction of the last axis, which stays with size one."""
        shape = [int(size) for size in self.graph.tensor(x).shape]
        axis = self.add_int_list([len(shape) - 1])
        reduced = self.append_operator(kind, [x, axis], [*shape[:-1], 1])
        self.new_operators[-1].builtinOptions.keepDims = True
        return reduced

    def _squared_difference(self) -> None:
        """(a - b)^2."""
        shape = list(self.graph.tensor(self.output_index).shape)  # one may be broadcast to the other
        self._multiply([self.append_operator("SUB", self.input_indices, shape)] * 2)

    def _prelu(self) -> None:
        """max(x, 0) + slope min(x, 0)."""
        x, slopes = self.input_indices
        negative_part = self.append_operator("MUL", [self.append_operator("MINIMUM", [x, self.add_scalar(0)]), slopes])
        self.append_output_operator("ADD", [self.append_operator("RELU", [x]), negative_part])

    def _elu(self) -> None:
        """max(x, 0) + (exp(min(x, 0)) - 1)."""
        x = self.input_indices[0]
        exponential = self.append_operator("EXP", [self.append_operator("MINIMUM", [x, self.add_scalar(0)])])
        self.append_output_operator(
            "ADD",
            [self.append_operator("RELU", [x]), self.append_operator("SUB", [exponential, self.add_scalar(1)])],
        )

    def _relu_n1_to_1(self) -> None:
        """min(max(x, -1), 1)."""
        self.append_output_operator(
            "MINIMUM",
            [self.append_operator("MAXIMUM", [self.input_indices[0], self.add_scalar(-1)]), self.add_scalar(1)],
        )

    def _hard_swish(self) -> None:
        """x (min(max(x + 3, 0), 6) / 6); with MINIMUM, because RELU6 of TFLite Micro does not rescale."""
        x = self.input_indices[0]
        shifted_relu = self.append_operator("RELU", [self.append_operator("ADD", [x, self.add_scalar(3)])])
        gate = self.append_operator("MINIMUM", [shifted_relu, self.add_scalar(6)])
        self.append_output_operator("MUL", [x, self.append_operator("MUL", [gate, self.add_scalar(1 / 6)])])

    def _depth_to_space(self) -> None:
        """(.., h, w, b b c) as (.., h, w, b, b, c), transposed to (.., h, b, w, b, c), as (.., h b, w b, c)."""
        block_size = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.input_indices[0]).shape[1:])
        self._permute_blocks([height, width, block_size, block_size, depth // block_size**2], [0, 1, 3, 2, 4, 5])

    def _space_to_depth(self) -> None:
        """The inverse of `_depth_to_space`."""
        block_size = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.input_indices[0]).shape[1:])
        self._permute_blocks(
            [height // block_size, block_size, width // block_size, block_size, depth], [0, 1, 3, 2, 4, 5]
        )

    def _permute_blocks(self, shape: list[int], axis_order: list[int]) -> None:
        """RESHAPE of each sample, TRANSPOSE, RESHAPE to the output's shape."""
        batch_size = int(self.graph.tensor(self.input_indices[0]).shape[0])
        blocks = self.append_operator(
            "RESHAPE", [self.input_indices[0], self.add_int_list([-1, *shape])], [batch_size, *shape]
        )
        permuted_shape = [[batch_size, *shape][axis] for axis in axis_order]
        permuted_blocks = self.append_operator("TRANSPOSE", [blocks, self.add_int_list(axis_order)], permuted_shape)
        output_shape = [int(size) for size in self.graph.tensor(self.output_index).shape[1:]]
        self.append_output_operator("RESHAPE", [permuted_blocks, self.add_int_list([-1, *output_shape])])

    def _integer_exponent(self) -> int:
        """The scalar integer exponent of POW; 0 if it is not one of `POWERS`, or broadcasts its input."""
        exponent = self.graph.constant(self.input_indices[1])
        shapes = [list(self.graph.tensor(index).shape) for index in (self.input_indices[0], self.output_index)]
        is_supported = (
            exponent is not None
            and exponent.size == 1
            and exponent.item() in SUPPORTED_POWERS
            and shapes[0] == shapes[1]
        )
        return int(exponent.item()) if is_supported and exponent is not None else 0

    def _multiply(self, factor_indices: list[int]) -> None:
        product_index = factor_indices[0]
        for factor_index in factor_indices[1:-1]:
            product_index = self.append_operator("MUL", [product_index, factor_index])
        self.append_output_operator("MUL", [product_index, factor_indices[-1]])


DECOMPOSITIONS: dict[str, Callable[[_Decomposition], None]] = {
    "ADD_N": _Decomposition._add_n,
    "CONV_3D": convolve_volume,
    "CUMSUM": _Decomposition._cumulative_sum,
    "SUM": _Decomposition._sum,
}
INT16_DECOMPOSITIONS = {  # decomposed for 16-bit activations
    "SQUARED_DIFFERENCE": _Decomposition._squared_difference,
    "PRELU": _Decomposition._prelu,
    "ELU": _Decomposition._elu,
    "HARD_SWISH": _Decomposition._hard_swish,
    "L2_NORMALIZATION": _Decomposition._l2_normalization,
    "LOG_SOFTMAX": _Decomposition._log_softmax,
    "RELU_N1_TO_1": _Decomposition._relu_n1_to_1,
    "DEPTH_TO_SPACE": _Decomposition._depth_to_space,
    "SPACE_TO_DEPTH": _Decomposition._space_to_depth,
}
