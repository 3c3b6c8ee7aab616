"""Who computes and who reads each tensor of a graph, looked up once: a snapshot, valid until the graph is edited."""

from collections.abc import Mapping, Sequence
from typing import final

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.core.arrays import Array


@final
class GraphIndex:
    """The operators of a graph with their kinds, and the producer, readers and constant values of each tensor."""

    def __init__(self, graph: MutableGraph) -> None:
        self.graph = graph
        self.operators: list[FlatbufferOperator] = list(graph.operators)
        self.kinds = [graph.kind(operator) for operator in self.operators]
        self.inputs = [[int(index) for index in operator.inputs] for operator in self.operators]
        self.outputs = [[int(index) for index in operator.outputs] for operator in self.operators]
        self.graph_inputs = [int(index) for index in graph.subgraph.inputs]
        self.graph_outputs = [int(index) for index in graph.subgraph.outputs]
        self.names = [str(tensor.name.decode()) for tensor in graph.subgraph.tensors]
        self.float_tensors = {index for index in range(len(self.names)) if graph.is_float(index)}
        self.producer_by_tensor = {index: number for number, indices in enumerate(self.outputs) for index in indices}
        self.readers_by_tensor: dict[int, list[int]] = {}
        for number, indices in enumerate(self.inputs):
            for index in dict.fromkeys(indices):
                self.readers_by_tensor.setdefault(index, []).append(number)
        self._constant_by_tensor: dict[int, Array | None] = {}

    def constant(self, index: int) -> Array | None:
        """The values of a float32 constant; None if the tensor is computed."""
        if index not in self._constant_by_tensor:
            self._constant_by_tensor[index] = self.graph.constant(index)
        return self._constant_by_tensor[index]

    def replace_operators(self, replacements: Mapping[int, Sequence[FlatbufferOperator]]) -> bool:
        """Put other operators in the places of some, by number, in the graph; True if there were any.

        The index does not know the new operators.
        """
        if replacements:
            self.graph.subgraph.operators = [
                new_operator
                for number, operator in enumerate(self.operators)
                for new_operator in replacements.get(number, [operator])
            ]
        return bool(replacements)

    def float_inputs(self, number: int) -> list[int]:
        """The positions of the float inputs of an operator."""
        return [position for position, index in enumerate(self.inputs[number]) if index in self.float_tensors]

    def float_outputs(self, number: int) -> list[int]:
        """The float tensors that an operator computes."""
        return [index for index in self.outputs[number] if index in self.float_tensors]

    def output_names(self, number: int) -> list[str]:
        """The names of an operator's outputs."""
        return [self.names[index] for index in self.outputs[number]]
