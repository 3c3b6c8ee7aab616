"""Divisions, spelled in multiplications.

LiteRT's integer DIV stops where a denominator has the code of zero, and gives the lowest number where a quotient is far
below one step; TFLite Micro has none for 16 bits. Which form takes its place depends on the denominator:

- a constant: a MUL by the reciprocals;
- exp(x) / sum(exp(x)) over the last axis: SOFTMAX;
- sqrt(y): a MUL by RSQRT(y);
- any other y that cannot be negative: two MUL by RSQRT(y). RSQRT spans the square root of what the reciprocal spans,
  so that it keeps twice as many digits of a large denominator beside a small one;
- a y of either sign: the quotient by its magnitude, negated where y is negative.
"""

from typing import final

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.compress.quantizer.sign_analysis import nonnegative_tensors
from edgepipe.core.arrays import Array

BYPASSED_KINDS = ("EXP", "SUM", "SQRT")  # that a replacement may leave without a reader
ACTIVATION_KINDS = {1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}  # by the schema's ActivationFunctionType


def replace_divisions(graph: MutableGraph, policy: BitWidthPolicy) -> bool:
    """Rewrite the divisions of a float graph; True if there were any."""
    index = GraphIndex(graph)
    if "DIV" not in index.kinds:
        return False
    rewriter = _DivisionRewriter(graph, index)
    for number, kind in enumerate(index.kinds):
        if kind == "DIV" and index.float_outputs(number) and policy(kind, index.output_names(number)) is not None:
            rewriter.rewrite(number)
    return rewriter.apply()


@final
class _DivisionRewriter:
    """Collects the replacements of divisions; the rest of the graph stays."""

    def __init__(self, graph: MutableGraph, index: GraphIndex) -> None:
        self.graph, self.index = graph, index
        self.nonnegative = nonnegative_tensors(index)
        self.replacements: dict[int, list[FlatbufferOperator]] = {}  # by operator number
        self.intermediate_counts: dict[int, int] = {}  # tensors added so far, by operator number

    def apply(self) -> bool:
        """Put the replacements in place."""
        is_changed = self.index.replace_operators(self.replacements)
        if is_changed:
            self.graph.drop_unread(BYPASSED_KINDS)
        return is_changed

    def rewrite(self, number: int) -> None:
        """Replace a division if there is a form for its denominator."""
        numerator, denominator = self.index.inputs[number]
        constant = self.index.constant(denominator)
        if constant is not None:
            if (constant != 0).all():
                self._multiply_by_reciprocals(number, numerator, np.asarray(1 / constant.astype(np.float64)))
        elif (logits := self._find_logits(number)) is not None:  # no activation changes what lies between 0 and 1
            self.replacements[number] = [self.graph.new_operator("SOFTMAX", [logits], self.index.outputs[number])]
        elif (radicand := self._input_of(denominator, "SQRT")) is not None:
            self._multiply_by_root(number, numerator, radicand)
        elif denominator in self.nonnegative:
            self._replace(number, self._quotient(number, numerator, denominator, self.index.outputs[number][0]))
        else:
            self._divide_by_magnitude(number, numerator, denominator)

    def _input_of(self, tensor: int, kind: str) -> int | None:
        """What the operator of a kind that computes a tensor reads; None if another kind computes it."""
        number = self.index.producer_by_tensor.get(tensor)
        return None if number is None or self.index.kinds[number] != kind else self.index.inputs[number][0]

    def _find_logits(self, number: int) -> int | None:
        """The x of exp(x) / sum(exp(x), axis=-1, keepdims=True)."""
        exponential, total = self.index.inputs[number]
        logits, producer = self._input_of(exponential, "EXP"), self.index.producer_by_tensor.get(total)
        if logits is None or producer is None or self._input_of(total, "SUM") != exponential:
            return None
        rank = len(self.graph.tensor(exponential).shape)
        axes = self.graph.numbers(self.index.inputs[producer][1])
        is_last = axes is not None and [int(axis) % rank for axis in axes.ravel()] == [rank - 1]
        return logits if is_last and self.index.operators[producer].builtinOptions.keepDims else None

    def _multiply_by_reciprocals(self, number: int, numerator: int, reciprocals: Array) -> None:
        name = self._intermediate_name(number, "RECIPROCAL")
        constant = self.graph.add_float_tensor(name, list(reciprocals.shape), reciprocals)
        self._replace(number, [self._product(numerator, constant, self.index.outputs[number][0])])

    def _multiply_by_root(self, number: int, numerator: int, radicand: int) -> None:
        """x / sqrt(y) as x rsqrt(y)."""
        root = self._add_tensor(number, "RSQRT", like=radicand)
        self._replace(
            number,
            [
                self.graph.new_operator("RSQRT", [radicand], [root]),
                self._product(numerator, root, self.index.outputs[number][0]),
            ],
        )

    def _divide_by_magnitude(self, number: int, numerator: int, denominator: int) -> None:
        """x / y as z = x / |y| where y >= 0, and -z elsewhere."""
        output = self.index.outputs[number][0]
        magnitude, is_positive = self._add_tensor(number, "ABS", like=denominator), self._add_bool(number, denominator)
        quotient, opposite = (self._add_tensor(number, kind, like=output) for kind in ("QUOTIENT", "OPPOSITE"))
        zero, minus_one = (self._add_scalar(number, value) for value in (0.0, -1.0))
        self._replace(
            number,
            [
                self.graph.new_operator("ABS", [denominator], [magnitude]),
                *self._quotient(number, numerator, magnitude, quotient),
                self._product(quotient, minus_one, opposite),
                self.graph.new_operator("GREATER_EQUAL", [denominator, zero], [is_positive]),
                self.graph.new_operator("SELECT_V2", [is_positive, quotient, opposite], [output]),
            ],
        )

    def _quotient(self, number: int, numerator: int, denominator: int, quotient: int) -> list[FlatbufferOperator]:
        """x / y as (x rsqrt(y)) rsqrt(y); 1 / y as rsqrt(y) rsqrt(y)."""
        root = self._add_tensor(number, "RSQRT", like=denominator)
        root_operator = self.graph.new_operator("RSQRT", [denominator], [root])
        constant = self.index.constant(numerator)
        if constant is not None and constant.size == 1 and constant.item() == 1.0:
            return [root_operator, self._product(root, root, quotient)]
        product = self._add_tensor(number, "MUL", like=quotient)
        return [root_operator, self._product(numerator, root, product), self._product(product, root, quotient)]

    def _product(self, factor: int, other_factor: int, product: int) -> FlatbufferOperator:
        return self.graph.new_operator("MUL", [factor, other_factor], [product])

    def _add_tensor(self, number: int, kind: str, like: int) -> int:
        """An intermediate tensor of the shape of another."""
        return self.graph.add_float_tensor(self._intermediate_name(number, kind), self.graph.tensor(like).shape)

    def _add_bool(self, number: int, like: int) -> int:
        name = self._intermediate_name(number, "GREATER_EQUAL")
        return self.graph.add_bool_tensor(name, self.graph.tensor(like).shape)

    def _add_scalar(self, number: int, value: float) -> int:
        return self.graph.add_float_tensor(self._intermediate_name(number, "CONSTANT"), [], np.array(value))

    def _intermediate_name(self, number: int, kind: str) -> str:
        """A name derived from that of the quotient, as `op_decomposition` numbers them."""
        self.intermediate_counts[number] = self.intermediate_counts.get(number, 0) + 1
        return f"{self.index.output_names(number)[0]}/{self.intermediate_counts[number]}_{kind}"

    def _replace(self, number: int, operators: list[FlatbufferOperator]) -> None:
        """Replace a division; the activation that is fused into it passes on."""
        activation = getattr(self.index.operators[number].builtinOptions, "fusedActivationFunction", 0)
        last_operator = operators[-1]
        if activation and hasattr(last_operator.builtinOptions, "fusedActivationFunction"):
            last_operator.builtinOptions.fusedActivationFunction = activation
        elif activation:
            output = self.index.outputs[number][0]
            quotient = self._add_tensor(number, "SIGNED_QUOTIENT", like=output)
            last_operator.outputs = [quotient]
            operators.append(self.graph.new_operator(ACTIVATION_KINDS[activation], [quotient], [output]))
        self.replacements[number] = operators
