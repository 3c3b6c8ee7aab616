"""Integers that are carried in floats or in 64 bits: token ids and categories, on their way to a cast or a look-up.

A region is the tensors that hold the same integers: from a model input, or from a cast of an integer, through operators
that move or compare values, to casts to integers and index positions. If nothing else reads them, the region can be
stored in int32, and its casts are not needed. In 64 bits a region may add and choose too: that is how Keras counts
negative ids from the end of a table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np

from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.core.arrays import Array

ALL_INPUTS = None
# the inputs that an operator moves to its outputs
MOVED_POSITIONS: Mapping[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("BROADCAST_TO", "EXPAND_DIMS", "RESHAPE", "REVERSE_V2", "SLICE", "SPLIT_V"), (0,)),
    **dict.fromkeys(("SQUEEZE", "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK"), (0,)),
    "SPLIT": (1,),
    **dict.fromkeys(("CONCATENATION", "PACK"), ALL_INPUTS),
}
ROUNDING_OPERATORS = frozenset({"FLOOR", "CEIL", "ROUND"})  # change no whole number
COMPARISONS = frozenset({"EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"})
# the inputs that an operator combines to an integer; in 64 bits only: a float sum need not be whole, or may round
COMBINED_POSITIONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("ADD", "SUB", "MAXIMUM", "MINIMUM"), (0, 1)),
    **dict.fromkeys(("SELECT", "SELECT_V2"), (1, 2)),
}
INDEX_POSITIONS = {"GATHER": 1, "GATHER_ND": 1, "ONE_HOT": 0, "EMBEDDING_LOOKUP": 0}
INT32_LIMIT = 2**31


@final
@dataclass
class IntegerRegion:
    """Tensors of one type, float32 or int64, that hold integers; the model inputs and constants among them."""

    dtype: str
    tensors: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    constants: dict[int, Array] = field(default_factory=dict)
    has_integer_reader: bool = False  # a cast to another type, or an operator that takes an index


def find_integer_regions(index: GraphIndex) -> list[IntegerRegion]:
    """The regions of a graph that int32 can hold, in the order of their first tensors."""
    regions: list[IntegerRegion] = []
    visited_tensors: set[int] = set()
    for tensor in _possible_sources(index):
        if tensor in visited_tensors:
            continue
        growth = _RegionGrowth(index, tensor)
        if growth.grow() and growth.region.has_integer_reader:
            regions.append(growth.region)
        visited_tensors |= growth.region.tensors
    return regions


def _possible_sources(index: GraphIndex) -> Iterator[int]:
    """Model inputs and casts of integers, in float32 or int64."""
    for tensor in index.graph_inputs:
        if _dtype(index, tensor) in ("float32", "int64"):
            yield tensor
    for number, kind in enumerate(index.kinds):
        if kind == "CAST" and _casts_integer(index, number):
            yield index.outputs[number][0]


def _dtype(index: GraphIndex, tensor: int) -> str:
    return index.graph.dtype(tensor)


def _casts_integer(index: GraphIndex, number: int) -> bool:
    """Whether a cast gives integers in float32 or int64."""
    source, target = (_dtype(index, tensors[number][0]) for tensors in (index.inputs, index.outputs))
    return source in ("int8", "uint8", "int16", "int32", "bool") and target in ("float32", "int64")


@final
class _RegionGrowth:
    """Collects a region, tensor by tensor, until it is whole or something does not fit."""

    def __init__(self, index: GraphIndex, source: int) -> None:
        self.index, self.region = index, IntegerRegion(_dtype(index, source))
        self.pending_tensors = [source]

    def grow(self) -> bool:
        """Collect the region; False if a tensor has another origin or another reader."""
        while self.pending_tensors:
            tensor = self.pending_tensors.pop()
            if tensor in self.region.tensors:
                continue
            self.region.tensors.add(tensor)
            if not self._add_origin(tensor) or not self._add_readers(tensor):
                return False
        return True

    def _add_origin(self, tensor: int) -> bool:
        """Follow a tensor to where it comes from."""
        producer = self.index.producer_by_tensor.get(tensor)
        if tensor in self.index.graph_inputs:
            self.region.inputs.add(tensor)
            return True
        if producer is None:
            return self._add_constant(tensor)
        if self.index.kinds[producer] == "CAST":
            return _casts_integer(self.index, producer)
        return self._add_operands(producer)

    def _add_constant(self, tensor: int) -> bool:
        values = self.index.graph.numbers(tensor)
        is_whole = values is not None and bool((np.abs(values) < INT32_LIMIT).all() and (values % 1 == 0).all())
        if values is not None and is_whole:
            self.region.constants[tensor] = values
        return is_whole

    def _add_readers(self, tensor: int) -> bool:
        if tensor in self.region.constants:
            return True
        readers = self.index.readers_by_tensor.get(tensor, [])
        is_inner = tensor not in self.index.graph_outputs and bool(readers)
        return is_inner and all(self._add_reader(number, tensor) for number in readers)

    def _add_reader(self, number: int, tensor: int) -> bool:
        """Follow a tensor to an operator that reads it."""
        kind, position = self.index.kinds[number], self.index.inputs[number].index(tensor)
        if kind == "CAST":
            targets = ("int32", "int64") if self.region.dtype == "float32" else ("int32", "float32")
            self.region.has_integer_reader = True
            return _dtype(self.index, self.index.outputs[number][0]) in targets
        if self.region.dtype == "int64" and INDEX_POSITIONS.get(kind) == position:
            self.region.has_integer_reader = True
            return True
        return self._add_operands(number)

    def _add_operands(self, number: int) -> bool:
        """Take in what an operator moves, compares or combines; False if it does anything else."""
        kind, inputs = self.index.kinds[number], self.index.inputs[number]
        positions = self._operand_positions(kind)
        if positions == ():
            return False
        operands = inputs if positions is ALL_INPUTS else [inputs[position] for position in positions]
        results = [] if kind in COMPARISONS else self.index.outputs[number]
        self.pending_tensors += [*operands, *results]
        return all(_dtype(self.index, each) == self.region.dtype for each in (*operands, *results))

    def _operand_positions(self, kind: str) -> tuple[int, ...] | None:
        if kind in ROUNDING_OPERATORS:
            return (0,)
        if kind in COMPARISONS:
            return (0, 1)
        combined_positions = COMBINED_POSITIONS if self.region.dtype == "int64" else {}
        return MOVED_POSITIONS[kind] if kind in MOVED_POSITIONS else combined_positions.get(kind, ())
