"""Logarithms of squares, computed without the squares.

A square has twice the decades of what is squared, and a logarithm shows all of them: of a power spectrogram, 8 bits
hold 2.4 decades and 16 bits 4.5. log(x^2) is 2 log|x|, and what stands between squares and logarithm has a form in
logarithms too: log(p + q) = max(log p, log q) - log(sigmoid(|log p - log q|)), log(sqrt(p)) = log(p) / 2,
log(max(p, c)) = max(log p, log c), log(c p) = log p + log c.

For 16 bits, a LOG over more than `TABLE_SPAN` is split in two as well: its kernel is a table of 513 numbers at equal
distances, of which the lowest stands for all decades below.
"""

import math
from collections.abc import Mapping
from typing import final

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.core.arrays import Array

MOVING_OPERATORS = ("RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS")
BYPASSED_KINDS = ("ADD", "MAXIMUM", "MUL", "SQRT", "SQUARE", *MOVING_OPERATORS)
HARMLESS_ACTIVATIONS = (0, 1)  # none, and RELU: what is not negative passes
NEGLIGIBLE_MAGNITUDE = 0.05  # a magnitude whose square is added to 1 without effect
TABLE_SPAN = 64.0  # between the ends of what one 16-bit LOG reads: its table has 256 steps up to the largest number


def expand_logarithms(graph: MutableGraph, policy: BitWidthPolicy) -> bool:
    """Rewrite the logarithms of squares in a float graph; True if there were any."""
    rewriter = _LogRewriter(graph)
    for number in rewriter.logarithms(policy, bits=(8, 16)):
        rewriter.expand(number)
    return rewriter.apply()


def split_logarithms(graph: MutableGraph, policy: BitWidthPolicy, ranges: Mapping[str, ActivationRange]) -> bool:
    """Split the 16-bit logarithms of wide ranges in a float graph; True if there were any."""
    rewriter = _LogRewriter(graph)
    for number in rewriter.logarithms(policy, bits=(16,)):
        rewriter.split(number, ranges)
    return rewriter.apply()


@final
class _LogRewriter:
    """Collects the replacements of LOG operators; the rest of the graph stays."""

    def __init__(self, graph: MutableGraph) -> None:
        self.graph, self.index = graph, GraphIndex(graph)
        self.replacements: dict[int, list[FlatbufferOperator]] = {}  # by operator number
        self.operators: list[FlatbufferOperator] = []  # that replace the present LOG
        self.output_name, self.intermediate_count = "", 0

    def logarithms(self, policy: BitWidthPolicy, bits: tuple[int, ...]) -> list[int]:
        """The LOG operators that have one of these bits."""
        return [
            number
            for number, kind in enumerate(self.index.kinds)
            if kind == "LOG" and policy(kind, self.index.output_names(number)) in bits
        ]

    def apply(self) -> bool:
        """Put the replacements in place, without what they bypass."""
        is_changed = self.index.replace_operators(self.replacements)
        if is_changed:
            self.graph.drop_unread(BYPASSED_KINDS)
        return is_changed

    def expand(self, number: int) -> None:
        """Replace the logarithm of an expression of squares."""
        argument = self.index.inputs[number][0]
        if not (self._is_expressible(argument) and self._holds_square(argument)):
            return
        self._start(number)
        self._logarithm(argument, floor=0.0)
        self._finish(number)

    def split(self, number: int, ranges: Mapping[str, ActivationRange]) -> None:
        """log(x) as log(max(x, t)) + log(min(x, t)) - log(t), if x spans more than a table holds."""
        argument, output = self.index.inputs[number][0], self.index.outputs[number][0]
        argument_range, output_range = (ranges.get(self.index.names[tensor]) for tensor in (argument, output))
        if argument_range is None or output_range is None or argument_range[1] <= 0:
            return
        limit = argument_range[1] / TABLE_SPAN
        if output_range[0] >= math.log(limit):
            return
        self._start(number)
        threshold = self._add_constant(np.float32(limit))
        parts = [
            self._append("LOG", [self._append(kind, [argument, threshold], output)], output)
            for kind in ("MAXIMUM", "MINIMUM")
        ]
        self._append("SUB", [self._append("ADD", parts, output), self._add_constant(np.log(np.float32(limit)))], output)
        self._finish(number)

    def _start(self, number: int) -> None:
        self.operators, self.output_name, self.intermediate_count = [], self.index.output_names(number)[0], 0

    def _finish(self, number: int) -> None:
        """The last operator computes what the LOG did."""
        self.operators[-1].outputs = self.index.outputs[number]
        self.replacements[number] = self.operators

    def _kind_and_inputs(self, tensor: int) -> tuple[str, list[int]]:
        """The kind of operator that computes a tensor, and its inputs; nothing if an activation changes it."""
        number = self.index.producer_by_tensor.get(tensor)
        if number is None:
            return "", []
        activation = getattr(self.index.operators[number].builtinOptions, "fusedActivationFunction", 0)
        return (self.index.kinds[number], self.index.inputs[number]) if activation in HARMLESS_ACTIVATIONS else ("", [])

    def _is_square(self, tensor: int) -> bool:
        kind, inputs = self._kind_and_inputs(tensor)
        return kind == "SQUARE" or (kind == "MUL" and inputs[0] == inputs[1])

    def _is_positive_constant(self, tensor: int) -> bool:
        constant = self.index.constant(tensor) if tensor in self.index.float_tensors else None
        return constant is not None and bool((constant > 0).all())

    def _is_expressible(self, tensor: int) -> bool:
        """Whether the logarithm of a tensor can be computed from that of squares and constants."""
        kind, inputs = self._kind_and_inputs(tensor)
        if self._is_square(tensor) or self._is_positive_constant(tensor):
            return True
        if kind in ("SQRT", *MOVING_OPERATORS):
            return self._is_expressible(inputs[0])
        if kind in ("MUL", "MAXIMUM"):
            return any(map(self._is_positive_constant, inputs)) and all(map(self._is_expressible, inputs))
        return kind == "ADD" and all(map(self._is_expressible, inputs))

    def _holds_square(self, tensor: int) -> bool:
        return self._is_square(tensor) or any(map(self._holds_square, self._kind_and_inputs(tensor)[1]))

    def _logarithm(self, tensor: int, floor: float) -> int:
        """Append the logarithm of an expressible tensor, in which what lies far below `floor` has no effect."""
        kind, inputs = self._kind_and_inputs(tensor)
        constant = self.index.constant(tensor)
        if constant is not None:
            return self._add_constant(np.log(constant))
        if self._is_square(tensor):
            return self._log_square(tensor, inputs[0], floor)
        if kind == "SQRT":
            return self._append(
                "MUL", [self._logarithm(inputs[0], floor**2), self._add_constant(np.float32(0.5))], tensor
            )
        if kind in MOVING_OPERATORS:
            return self._move(tensor, self._logarithm(inputs[0], floor))
        constants = [values for each in inputs if (values := self.index.constant(each)) is not None]
        least_constant = float(constants[0].min()) if constants else 0.0
        if kind == "MUL":
            logarithms = [self._logarithm(each, floor / least_constant) for each in inputs]
            return self._append("ADD", logarithms, tensor)
        logarithms = [self._logarithm(each, max(floor, least_constant)) for each in inputs]
        return self._append("MAXIMUM", logarithms, tensor) if kind == "MAXIMUM" else self._add(tensor, logarithms)

    def _log_square(self, square: int, x: int, floor: float) -> int:
        """2 log(max(|x|, c)), where c is far below what is added to the square."""
        magnitude = self._append("ABS", [x], square)
        if floor > 0:
            least_magnitude = self._add_constant(np.float32(NEGLIGIBLE_MAGNITUDE * math.sqrt(floor)))
            magnitude = self._append("MAXIMUM", [magnitude, least_magnitude], square)
        return self._append(
            "MUL", [self._append("LOG", [magnitude], square), self._add_constant(np.float32(2))], square
        )

    def _add(self, total: int, logarithms: list[int]) -> int:
        """log(exp(a) + exp(b)) as max(a, b) - log(sigmoid(|a - b|))."""
        distance = self._append("ABS", [self._append("SUB", logarithms, total)], total)
        correction = self._append("LOG", [self._append("LOGISTIC", [distance], total)], total)
        return self._append("SUB", [self._append("MAXIMUM", logarithms, total), correction], total)

    def _move(self, tensor: int, logarithm: int) -> int:
        """The operator that computes a tensor, applied to a logarithm."""
        original = self.index.operators[self.index.producer_by_tensor[tensor]]
        moved = self._add_tensor("MOVE", like=tensor)
        operator = self.graph.copy_operator(original, [logarithm, *map(int, original.inputs[1:])], [moved])
        self.operators.append(operator)
        return moved

    def _append(self, kind: str, inputs: list[int], like: int) -> int:
        """Append an operator whose output has the shape of another tensor."""
        output = self._add_tensor(kind, like)
        self.operators.append(self.graph.new_operator(kind, inputs, [output]))
        return output

    def _add_tensor(self, kind: str, like: int) -> int:
        return self.graph.add_float_tensor(self._intermediate_name(kind), self.graph.tensor(like).shape)

    def _add_constant(self, values: Array | np.float32) -> int:
        array = np.asarray(values)
        return self.graph.add_float_tensor(self._intermediate_name("CONSTANT"), list(array.shape), array)

    def _intermediate_name(self, kind: str) -> str:
        """A name derived from that of the output, as `op_decomposition` numbers them."""
        self.intermediate_count += 1
        return f"{self.output_name}/{self.intermediate_count}_{kind}"
