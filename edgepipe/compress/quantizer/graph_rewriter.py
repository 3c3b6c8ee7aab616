"""The graph while it is rewritten: the operators so far, and the copies of tensors that several operators share."""

from collections.abc import Callable
from typing import final

import numpy as np

from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.encoding_plan import EncodingPlan
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.mutable_graph import MutableGraph

ONE = Encoding(8, 1 / 127, 0)  # of the constant 1
MAX_SINGLE_ROUNDING = 2.0  # growth of a scale up to which QUANTIZE rounds once


@final
class GraphRewriter:
    """Collects the new operators of a graph in order."""

    def __init__(self, graph: MutableGraph, index: GraphIndex, plan: EncodingPlan) -> None:
        self.graph, self.index, self.plan = graph, index, plan
        self.operators: list[FlatbufferOperator] = []
        self._tensor_by_key: dict[object, int] = {}
        self._renamed_constants: set[int] = set()
        self._names = {tensor.name for tensor in graph.subgraph.tensors}

    def shared(self, key: object, add_tensor: Callable[[], int]) -> int:
        """The tensor that was added under `key`; it is added the first time."""
        if key not in self._tensor_by_key:
            self._tensor_by_key[key] = add_tensor()
        return self._tensor_by_key[key]

    def append(self, kind: str, source: int, target: int) -> None:
        """Append an operator of one input and one output."""
        self.operators.append(self.graph.new_operator(kind, [source], [target]))

    def read_activation(self, tensor: int, encoding: Encoding | None) -> int:
        """A computed tensor as it is demanded: as stored, or a copy, which is made in front of its first reader."""
        if self.plan.stored(tensor) == encoding:
            return tensor
        return self.shared((tensor, encoding), lambda: self._copy_activation(tensor, encoding))

    def _copy_activation(self, tensor: int, encoding: Encoding | None) -> int:
        source = self.graph.tensor(tensor)
        if encoding is None:
            copy = self.graph.add_float_tensor(self.unique_name(f"{self.index.names[tensor]}_float"), source.shape)
            self.append("DEQUANTIZE", tensor, copy)
        else:
            copy = self.graph.add_encoded_tensor(self._copy_name(tensor, encoding.bits), source.shape, encoding)
            self._append_rescaling(tensor, copy, encoding)
        self.graph.tensor(copy).shapeSignature = source.shapeSignature
        return copy

    def _append_rescaling(self, source: int, target: int, encoding: Encoding) -> None:
        """Append what copies a tensor into another encoding.

        QUANTIZE rounds twice where the scale more than doubles: first to half, quarter .. steps, then ties away from
        zero, a bias of up to a quarter step that no later average removes. A MUL by one has the bits to round once.
        """
        stored_encoding = self.plan.stored(source)
        if (
            stored_encoding is None
            or (stored_encoding.bits, encoding.bits) != (8, 8)
            or encoding.scale <= MAX_SINGLE_ROUNDING * stored_encoding.scale
        ):
            self.append("QUANTIZE", source, target)
            return
        one = self.shared("one", lambda: self.graph.add_encoded_tensor(self.unique_name("one"), [], ONE, np.array(1.0)))
        self.operators.append(self.graph.new_operator("MUL", [source, one], [target]))

    def constant_name(self, tensor: int, bits: int) -> str:
        """The constant's own name for its first integer form, if no operator reads the float one."""
        readers = self.index.readers_by_tensor[tensor]
        is_free = tensor not in self._renamed_constants and all(
            self.plan.bits_by_operator[number] is not None for number in readers
        )
        self._renamed_constants.add(tensor)
        return self.index.names[tensor] if is_free else self._copy_name(tensor, bits)

    def _copy_name(self, tensor: int, bits: int) -> str:
        return self.unique_name(f"{self.index.names[tensor]}_int{bits}")

    def unique_name(self, name: str) -> str:
        """The name, numbered if it is taken."""
        number, unique_name = 1, name
        while unique_name.encode() in self._names:
            number += 1
            unique_name = f"{name}_{number}"
        self._names.add(unique_name.encode())
        return unique_name
