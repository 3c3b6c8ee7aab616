"""Writes the weights and biases of operators: in integers, or in fewer bits for operators that compute in float."""

from collections.abc import Sequence
from typing import final

import numpy as np

from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.graph_rewriter import GraphRewriter
from edgepipe.compress.quantizer.kernel_requirements import (
    FLOAT_OPERATORS_WITH_WEIGHTS,
    INT4_KERNELS,
    WEIGHTS_POSITION,
)
from edgepipe.compress.quantizer.operator_precision import OperatorPrecision
from edgepipe.compress.quantizer.weight_encoding import WeightEncoding, choose_weight_encoding
from edgepipe.core.arrays import Array
from edgepipe.tflite.operator_facts import FilterLayout, traits_of


@final
class WeightWriter:
    """The constants that operators multiply with and add, of one graph."""

    def __init__(self, rewriter: GraphRewriter, precisions: Sequence[OperatorPrecision]) -> None:
        self.rewriter, self.precisions = rewriter, precisions
        self.graph, self.index, self.plan = rewriter.graph, rewriter.index, rewriter.plan

    def has_int4_weights(self, number: int) -> bool:
        """Whether the kernel of an operator gets 4-bit weights."""
        return self.precisions[number].weight_type == "int4" and self.index.kinds[number] in INT4_KERNELS

    def write_integer_constant(self, number: int, position: int, constant: Array, encoding: Encoding) -> int:
        """The constant at a position of an integer operator: filters, a bias, or a tensor in `encoding`."""
        tensor, layout = self.index.inputs[number][position], traits_of(self.index.kinds[number]).filter_layout
        if layout is not None and position == WEIGHTS_POSITION:
            return self._write_filters(number, tensor, constant, layout)
        if layout is not None and position == layout.bias_position:
            return self._write_bias(number, tensor, constant, layout)
        return self.rewriter.shared(
            (tensor, encoding),
            lambda: self.graph.add_encoded_tensor(
                self.rewriter.constant_name(tensor, encoding.bits), constant.shape, encoding, constant
            ),
        )

    def _write_filters(self, number: int, tensor: int, weights: Array, layout: FilterLayout) -> int:
        filter_encoding = self._filter_encoding(number, layout)
        return self.rewriter.shared(
            (tensor, filter_encoding.bits, filter_encoding.scales.tobytes()),
            lambda: self.graph.add_integer_tensor(
                self.rewriter.constant_name(tensor, filter_encoding.bits),
                weights.shape,
                filter_encoding.encode(weights),
                filter_encoding.scales,
                layout.filter_axis,
                is_int4=filter_encoding.bits == 4,
            ),
        )

    def _write_bias(self, number: int, tensor: int, bias: Array, layout: FilterLayout) -> int:
        filter_encoding, input_scale = self._filter_encoding(number, layout), self._input_scale(number, layout)
        scales = filter_encoding.bias_scales(input_scale)
        dtype = np.int64 if self.plan.bits_by_operator[number] == 16 else np.int32
        return self.rewriter.shared(
            (tensor, "bias", scales.tobytes(), dtype),
            lambda: self.graph.add_integer_tensor(
                self.rewriter.constant_name(tensor, 8 * np.dtype(dtype).itemsize),
                bias.shape,
                filter_encoding.encode_bias(bias, input_scale, dtype),
                scales,
                axis=0,
            ),
        )

    def _filter_encoding(self, number: int, layout: FilterLayout) -> WeightEncoding:
        """The encoding of constant filters; that of a computed weight matrix is the tensor's own."""
        inputs = self.index.inputs[number]
        weights = self.index.constant(inputs[WEIGHTS_POSITION])
        if weights is None:
            scale = self._demanded_scale(number, WEIGHTS_POSITION)
            return WeightEncoding(8, np.array([scale]), layout.filter_axis)
        has_bias = len(inputs) > layout.bias_position and inputs[layout.bias_position] >= 0
        bias = self.index.constant(inputs[layout.bias_position]) if has_bias else None
        axis = layout.filter_axis if self.precisions[number].is_per_channel else None
        weight_bits = 4 if self.has_int4_weights(number) else 8
        return choose_weight_encoding(weights, axis, bias, self._input_scale(number, layout), weight_bits)

    def _input_scale(self, number: int, layout: FilterLayout) -> float:
        """The scale of what the filters are multiplied with."""
        is_transposed = layout.bias_position == 3  # a transposed convolution takes its output's shape first
        return self._demanded_scale(number, 2 if is_transposed else 0)

    def _demanded_scale(self, number: int, position: int) -> float:
        encoding = self.plan.demanded(number, position)
        assert encoding is not None, "an integer operator demands encodings"
        return encoding.scale

    def write_float_weights(self, number: int, tensor: int, weights: Array) -> int:
        """The weights of an operator that computes in float: as they are, in fewer bits, or those dequantized."""
        kind, precision = self.index.kinds[number], self.precisions[number]
        is_small = weights.size < precision.min_weight_elements
        if precision.weight_type == "float32" or kind not in FLOAT_OPERATORS_WITH_WEIGHTS or is_small:
            return tensor
        axis = FLOAT_OPERATORS_WITH_WEIGHTS[kind]
        stored_weights = self.rewriter.shared(
            (tensor, precision.weight_type), lambda: self._store_weights(tensor, weights, precision, axis)
        )
        if precision.is_hybrid:
            return stored_weights
        return self.rewriter.shared((stored_weights, "dequantized"), lambda: self._dequantize_weights(stored_weights))

    def _store_weights(self, tensor: int, weights: Array, precision: OperatorPrecision, axis: int | None) -> int:
        name = self.rewriter.unique_name(f"{self.index.names[tensor]}_{precision.weight_type}")
        if precision.weight_type == "float16":
            return self.graph.add_float16_constant(name, weights.shape, weights)
        is_int4 = precision.weight_type == "int4"
        filter_encoding = choose_weight_encoding(
            weights, axis if precision.is_per_channel else None, bits=4 if is_int4 else 8
        )
        return self.graph.add_integer_tensor(
            name, weights.shape, filter_encoding.encode(weights), filter_encoding.scales, axis or 0, is_int4=is_int4
        )

    def _dequantize_weights(self, stored_weights: int) -> int:
        name = self.rewriter.unique_name(f"{self.graph.name(stored_weights)}_dequantized")
        float_weights = self.graph.add_float_tensor(name, self.graph.tensor(stored_weights).shape)
        self.rewriter.append("DEQUANTIZE", stored_weights, float_weights)
        return float_weights
