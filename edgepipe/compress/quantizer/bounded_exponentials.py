"""Activations that pass through an exponential of unbounded numbers, rewritten so that every intermediate is bounded.

An EXP over -5 .. 12 spans 0.007 .. 160,000: no integer scale holds both ends. Two forms are common, and both need the
exponential of negative numbers only:

- softplus, log(1 + exp(x)), also inside Mish and log-sigmoid: relu(x) - log(sigmoid(|x|));
- a choice between branches, x > c ? a : f(exp(x)), as in SELU: exp(min(x, c)), because where x > c the exponential is
  not used.
"""

from typing import final

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph

SELECT_OPERATORS = ("SELECT", "SELECT_V2")
UPPER_COMPARISONS = ("GREATER", "GREATER_EQUAL")  # the exponential is in the branch that is taken if they do not hold
ARITHMETIC_OPERATORS = ("ADD", "SUB", "MUL")


def bound_exponentials(graph: MutableGraph, policy: BitWidthPolicy) -> bool:
    """Rewrite the exponentials of a float graph that integers would not hold; True if there were any."""
    rewriter = _ExponentialRewriter(graph)
    for number, kind in enumerate(rewriter.index.kinds):
        if policy(kind, rewriter.index.output_names(number)) is not None:
            rewriter.rewrite(number)
    return rewriter.apply()


@final
class _ExponentialRewriter:
    """Collects the replacements of operators; the rest of the graph stays."""

    def __init__(self, graph: MutableGraph) -> None:
        self.graph, self.index = graph, GraphIndex(graph)
        self.replacements: dict[int, list[FlatbufferOperator]] = {}  # by operator number

    def rewrite(self, number: int) -> None:
        """Rewrite a softplus that ends, or an exponential that is chosen, in an operator."""
        if self.index.kinds[number] == "LOG":
            self._rewrite_softplus(number)
        elif self.index.kinds[number] in SELECT_OPERATORS:
            self._bound_branch(number)

    def apply(self) -> bool:
        """Put the replacements in place."""
        return self.index.replace_operators(self.replacements)

    def _rewrite_softplus(self, number: int) -> None:
        """LOG(ADD(EXP(x), 1)) as SUB(RELU(x), LOG(LOGISTIC(ABS(x))))."""
        addition = self._only_producer(self.index.inputs[number][0], "ADD")
        if addition is None or not self._adds_one(addition):
            return
        exponential = self._only_producer(self._computed_input(addition), "EXP")
        if exponential is None:
            return
        x, output = self.index.inputs[exponential][0], self.index.outputs[number][0]
        magnitude, positive = self._add_tensor(output, "ABS"), self._add_tensor(output, "RELU")
        probability, logarithm = self._add_tensor(output, "LOGISTIC"), self._add_tensor(output, "LOG")
        self.replacements |= {exponential: [], addition: []}
        self.replacements[number] = [
            self.graph.new_operator("ABS", [x], [magnitude]),
            self.graph.new_operator("LOGISTIC", [magnitude], [probability]),
            self.graph.new_operator("LOG", [probability], [logarithm]),
            self.graph.new_operator("RELU", [x], [positive]),
            self.graph.new_operator("SUB", [positive, logarithm], [output]),
        ]

    def _only_producer(self, tensor: int, kind: str) -> int | None:
        """The operator of a kind that computes a tensor for one reader only."""
        number = self.index.producer_by_tensor.get(tensor)
        is_shared = len(self.index.readers_by_tensor.get(tensor, [])) > 1 or tensor in self.index.graph_outputs
        return None if number is None or is_shared or self.index.kinds[number] != kind else number

    def _adds_one(self, number: int) -> bool:
        constants = [self.index.constant(tensor) for tensor in self.index.inputs[number]]
        return any(constant is not None and bool(np.all(constant == 1.0)) for constant in constants)

    def _computed_input(self, number: int) -> int:
        return next((t for t in self.index.inputs[number] if self.index.constant(t) is None), -1)

    def _add_tensor(self, output: int, suffix: str) -> int:
        return self.graph.add_float_tensor(f"{self.index.names[output]}/{suffix}", self.graph.tensor(output).shape)

    def _bound_branch(self, number: int) -> None:
        """SELECT(x > c, a, f(EXP(x))) with EXP(MINIMUM(x, c))."""
        condition, _, negative_branch = self.index.inputs[number]
        comparison = self.index.producer_by_tensor.get(condition)
        if comparison is None or self.index.kinds[comparison] not in UPPER_COMPARISONS:
            return
        x, limit = self.index.inputs[comparison]
        exponential = self._find_exponential(negative_branch)
        limit_value = self.index.constant(limit) if limit in self.index.float_tensors else None
        if exponential is None or limit_value is None or self.index.inputs[exponential][0] != x:
            return
        bounded = self._add_tensor(self.index.outputs[exponential][0], "MINIMUM")
        operator = self.index.operators[exponential]
        operator.inputs = [bounded]
        self.replacements[exponential] = [self.graph.new_operator("MINIMUM", [x, limit], [bounded]), operator]

    def _find_exponential(self, tensor: int) -> int | None:
        """The EXP that a tensor is computed from by arithmetic with constants, used for nothing else."""
        exponential = self._only_producer(tensor, "EXP")
        if exponential is not None:
            return exponential
        for kind in ARITHMETIC_OPERATORS:
            number = self._only_producer(tensor, kind)
            if number is not None and self._computed_input(number) >= 0:
                return self._find_exponential(self._computed_input(number))
        return None
