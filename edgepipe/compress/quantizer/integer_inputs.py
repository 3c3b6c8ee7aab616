"""Model inputs that hold integers in floats or in 64 bits become int32: token ids, categories, indices.

Eight bits cannot hold a vocabulary, and devices have no casts from float and no look-ups by int64. What the regions of
`integer_regions` hold is stored in int32, the casts between them are dropped, and so is what `negative_ids` tells of.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.integer_regions import ROUNDING_OPERATORS, IntegerRegion, find_integer_regions
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.compress.quantizer.negative_ids import drop_negative_ids
from edgepipe.core.arrays import Array
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

NEGATIVE_IDS_NOTE = (
    "ids are looked up as they are: the samples hold no negative ones, which Keras counts from the end of a table"
)


@final
@dataclass(frozen=True)
class IntegerInputs:
    """A float model whose inputs that hold integers are int32, and notes on them."""

    model: Model
    notes: tuple[str, ...]
    fractional_names: tuple[str, ...]  # inputs that are cast to integers, but whose samples are no whole numbers


@contextmanager
def integer_inputs(lite: Model, feeds: list[Array] | None, kept_names: Collection[str]) -> Iterator[IntegerInputs]:
    """The integer inputs of a float model; the file exists inside the block only.

    Args:
        lite: the float .tflite.
        feeds: samples of each input, in order.
        kept_names: inputs that keep their type, and are cast in front of their readers.
    """
    graph = MutableGraph(flatbuffer_edits.unpack_model(lite.content))
    fractional_values = {name: _fractional_values(lite, feeds, name) for name in lite.inputs_by_name}
    rewriter = _IntegerRewriter(graph, list(lite.inputs_by_name), kept_names)
    notes: dict[str, None] = {}
    fractional_names: dict[str, None] = {}
    while regions := rewriter.find_regions(fractional_names):
        for names, region in regions:
            wrong_names = [name for name in names if fractional_values[name].size]
            fractional_names |= dict.fromkeys(names if wrong_names else ())
            notes |= dict.fromkeys(_fraction_note(name, fractional_values[name]) for name in wrong_names)
            if not wrong_names:
                rewriter.store_in_int32(region)
                notes |= dict.fromkeys(_conversion_note(name, region.dtype) for name in names if name not in kept_names)
        rewriter.drop_copies()
    are_dropped = drop_negative_ids(graph, _positive_inputs(feeds))
    notes |= dict.fromkeys([NEGATIVE_IDS_NOTE] if are_dropped else [])
    if not (rewriter.is_changed or are_dropped):
        yield IntegerInputs(lite, tuple(notes), tuple(fractional_names))
        return
    content = flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(graph.model))
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield IntegerInputs(read(path), tuple(notes), tuple(fractional_names))


def integer_input_names(lite: Model) -> set[str]:
    """The inputs of a float model that hold integers, in floats or in 64 bits."""
    index = GraphIndex(MutableGraph(flatbuffer_edits.unpack_model(lite.content)))
    tensors = {tensor for region in find_integer_regions(index) for tensor in region.inputs}
    return {name for name, tensor in zip(lite.inputs_by_name, index.graph_inputs, strict=True) if tensor in tensors}


def _fractional_values(lite: Model, feeds: list[Array] | None, name: str) -> Array:
    """The samples of an input that are no whole numbers which int32 holds."""
    if feeds is None:
        return np.empty(0)
    feed, int32_limits = feeds[list(lite.inputs_by_name).index(name)], np.iinfo(np.int32)
    return np.asarray(feed[(feed != np.rint(feed)) | (feed < int32_limits.min) | (feed > int32_limits.max)])


def _positive_inputs(feeds: list[Array] | None) -> list[int]:
    """The positions of the inputs whose samples are never negative."""
    return [position for position, feed in enumerate(feeds or []) if feed.size and feed.min() >= 0]


def _fraction_note(name: str, values: Array) -> str:
    return (
        f"input '{name}' is read as integers only, but its samples hold {values.flat[0]:g}: it stays float32, and is "
        "cast inside the model; give whole numbers for an int32 input"
    )


def _conversion_note(name: str, dtype: str) -> str:
    keeping_text = "; input type float32 keeps it" if dtype == "float32" else ""
    return f"input '{name}' is int32, not {dtype}: the model reads it as integers only (ids, categories){keeping_text}"


@final
class _IntegerRewriter:
    """Stores regions of a float graph in int32, in place."""

    def __init__(self, graph: MutableGraph, input_names: list[str], kept_names: Collection[str]) -> None:
        self.graph, self.input_names, self.kept_names = graph, input_names, kept_names
        self.index = GraphIndex(graph)
        self.is_changed = False

    def find_regions(self, excluded_names: Collection[str]) -> list[tuple[list[str], IntegerRegion]]:
        """The regions with something to change, each with its inputs by name, if none of those is excluded."""
        self.index = GraphIndex(self.graph)
        regions = [(self._region_inputs(region), region) for region in find_integer_regions(self.index)]
        return [
            (names, region)
            for names, region in regions
            if self._has_changes(region) and not set(names) & set(excluded_names)
        ]

    def _has_changes(self, region: IntegerRegion) -> bool:
        readers = {n for tensor in self._kept_inputs(region) for n in self.index.readers_by_tensor.get(tensor, [])}
        is_read_in_float = any(self.index.kinds[number] != "CAST" for number in readers)
        return is_read_in_float or bool(self._changed_tensors(region))

    def _region_inputs(self, region: IntegerRegion) -> list[str]:
        return [name for name, tensor in self._tensor_by_input() if tensor in region.inputs]

    def _tensor_by_input(self) -> list[tuple[str, int]]:
        return list(zip(self.input_names, self.index.graph_inputs, strict=True))

    def _changed_tensors(self, region: IntegerRegion) -> set[int]:
        return region.tensors - region.constants.keys() - self._kept_inputs(region)

    def _kept_inputs(self, region: IntegerRegion) -> set[int]:
        return {t for name, t in self._tensor_by_input() if t in region.inputs and name in self.kept_names}

    def store_in_int32(self, region: IntegerRegion) -> None:
        """Change the type of a region, constants included; inputs that keep theirs are cast."""
        self.is_changed = True
        changed_tensors, kept_inputs = self._changed_tensors(region), self._kept_inputs(region)
        replacements = {
            tensor: self.graph.add_int32_constant(f"{self.index.names[tensor]}_int32", values)
            for tensor, values in region.constants.items()
        } | {tensor: self._cast_input(tensor) for tensor in sorted(kept_inputs)}
        for number, operator in enumerate(self.index.operators):
            if (changed_tensors | kept_inputs) & {*self.index.inputs[number], *self.index.outputs[number]}:
                operator.inputs = [replacements.get(int(each), int(each)) for each in operator.inputs]
        for tensor in changed_tensors:
            self.graph.set_int32(tensor)

    def _cast_input(self, tensor: int) -> int:
        integers = self.graph.add_float_tensor(f"{self.index.names[tensor]}_int32", self.graph.tensor(tensor).shape)
        self.graph.set_int32(integers)
        self.graph.tensor(integers).shapeSignature = self.graph.tensor(tensor).shapeSignature
        self.graph.operators.insert(0, self.graph.new_operator("CAST", [tensor], [integers]))
        return integers

    def drop_copies(self) -> None:
        """Drop the operators that have become needless."""
        source_by_copy: dict[int, int] = {}
        operators = self.graph.operators
        self.graph.subgraph.operators = [each for each in operators if not self._bypass(each, source_by_copy)]

    def _bypass(self, operator: FlatbufferOperator, source_by_copy: dict[int, int]) -> bool:
        """Whether an operator, which reads what was bypassed so far from its source, only copies integers."""
        operator.inputs = [source_by_copy.get(int(each), int(each)) for each in operator.inputs]
        kind, output = self.graph.kind(operator), int(operator.outputs[0])
        is_int32 = all(self.graph.dtype(tensor) == "int32" for tensor in (operator.inputs[0], output))
        is_copy = kind in ROUNDING_OPERATORS or kind == "CAST"
        if not is_copy or not is_int32 or output in self.index.graph_outputs:
            return False
        source_by_copy[output] = operator.inputs[0]
        return True
