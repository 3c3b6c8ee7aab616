"""One operator of a float graph, and the operators that replace it."""

import numpy as np

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.mutable_graph import MutableGraph


class OperatorReplacement:
    """One operator, and those that replace it; its output tensor keeps its name."""

    def __init__(self, graph: MutableGraph, operator: FlatbufferOperator) -> None:
        self.graph, self.operator = graph, operator
        self.input_indices = [int(index) for index in operator.inputs]
        self.output_index = int(operator.outputs[0])
        self.new_operators: list[FlatbufferOperator] = []
        self.intermediate_count = 0  # intermediate tensors so far

    def add_scalar(self, number: float) -> int:
        """A constant of one element."""
        return self.graph.add_float_tensor(self.intermediate_name(f"{number:g}"), [], np.array(number))

    def add_int_list(self, numbers: list[int]) -> int:
        """A constant int32 vector."""
        return self.graph.add_int32_constant(self.intermediate_name("_".join(map(str, numbers))), numbers)

    def append_operator(self, kind: str, input_indices: list[int], shape: list[int] | None = None) -> int:
        """Append an operator with an intermediate output, by default of the first input's shape; its tensor index."""
        output_shape = self.graph.tensor(input_indices[0]).shape if shape is None else shape
        output_index = self.graph.add_float_tensor(self.intermediate_name(kind), output_shape)
        self.new_operators.append(self.graph.new_operator(kind, input_indices, [output_index]))
        return output_index

    def append_output_operator(self, kind: str, input_indices: list[int]) -> None:
        self.new_operators.append(self.graph.new_operator(kind, input_indices, [self.output_index]))

    def intermediate_name(self, suffix: str) -> str:
        """A name derived from the output's, independent of what else is decomposed in the model."""
        self.intermediate_count += 1
        return f"{self.graph.name(self.output_index)}/{self.intermediate_count}_{suffix}"
