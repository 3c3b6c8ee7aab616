"""Splits an output that joins parts of very different range into one output for each part, with a scale of its own.

The join is the last thing that the model computes: a CONCATENATION, reshapes of one, or one over levels. Whoever runs
the model joins the real numbers instead of the codes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.coarse_parts import count_codes, has_few_codes, range_text
from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.level_joins import inner_joins, swap_joins
from edgepipe.compress.quantizer.mutable_graph import BitWidthPolicy, MutableGraph
from edgepipe.tflite.split_outputs import SplitOutput

MOVING_OPERATORS = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")  # keep the order of the numbers


@final
@dataclass(frozen=True)
class OutputSplit:
    """One output to split, by the names of tensors: the same in every form of the float graph."""

    output: SplitOutput
    output_tensor: str
    join_tensor: str  # what the concatenation computes
    part_tensors: tuple[str, ...]
    part_ranges: tuple[ActivationRange, ...]

    def note(self) -> str:
        """What became of the output."""
        parts_text = ", ".join(
            f"'{part}' ({tensor.split(';')[0]}, {range_text(part_range)})"
            for part, tensor, part_range in zip(self.output.parts, self.part_tensors, self.part_ranges, strict=True)
        )
        return (
            f"split_outputs: '{self.output.name}' is now {parts_text}; joined along axis {self.output.axis} they are "
            f"'{self.output.name}' of the shape {list(self.output.shape)}"
        )


def find_output_splits(
    graph: MutableGraph, ranges: Mapping[str, ActivationRange], policy: BitWidthPolicy
) -> list[OutputSplit]:
    """The outputs of a float graph with a part that would get few codes, if they can be split.

    Args:
        graph: the float graph, decomposed.
        ranges: of its activations, by tensor name.
        policy: the bits of each operator.
    """
    taken_names = [name for _, name in _iter_outputs(graph)]
    splits = []
    for tensor, name in _iter_outputs(graph):
        join = _find_join(graph, tensor)
        if join is not None and _is_coarse(graph, join, ranges, policy):
            part_names = _part_names(graph, name, join, taken_names)
            taken_names += part_names
            splits.append(_plan_split(graph, tensor, name, join, part_names, ranges))
    return splits


def swap_output_levels(
    graph: MutableGraph, ranges: Mapping[str, ActivationRange], policy: BitWidthPolicy
) -> dict[str, ActivationRange]:
    """Join parts before levels, in place, where an output joins joins with a part of few codes; ranges of new tensors.

    Args: as of `find_output_splits`.
    """
    new_ranges: dict[str, ActivationRange] = {}
    for tensor, _ in _iter_outputs(graph):
        join = _find_join(graph, tensor)
        levels = [] if join is None else inner_joins(graph, join)
        if join is not None and any(_is_coarse(graph, level, ranges, policy) for level in levels):
            for name, members in swap_joins(graph, join).items():
                member_ranges = [ranges[member] for member in members]
                new_ranges[name] = min(low for low, _ in member_ranges), max(high for _, high in member_ranges)
    return new_ranges


def _plan_split(
    graph: MutableGraph,
    tensor: int,
    name: str,
    join: FlatbufferOperator,
    part_names: list[str],
    ranges: Mapping[str, ActivationRange],
) -> OutputSplit:
    part_tensors = tuple(graph.name(int(index)) for index in join.inputs)
    rank = len(graph.tensor(int(join.outputs[0])).shape)
    shape = tuple(int(size) for size in graph.tensor(tensor).shape)
    return OutputSplit(
        SplitOutput(name=name, parts=tuple(part_names), axis=int(join.builtinOptions.axis) % rank, shape=shape),
        graph.name(tensor),
        graph.name(int(join.outputs[0])),
        part_tensors,
        tuple(ranges[part] for part in part_tensors),
    )


def _iter_outputs(graph: MutableGraph) -> Iterator[tuple[int, str]]:
    """(tensor, name) of each output; the name is that of the signature, if there is one."""
    tensor_maps = graph.model.signatureDefs[0].outputs if graph.model.signatureDefs else []
    name_by_tensor = {int(tensor_map.tensorIndex): tensor_map.name.decode() for tensor_map in tensor_maps}
    for index in graph.subgraph.outputs:
        yield int(index), name_by_tensor.get(int(index), graph.name(int(index)))


def _find_join(graph: MutableGraph, tensor: int) -> FlatbufferOperator | None:
    """The concatenation that an output is, or that reshapes make it of; None if there is none that can be undone."""
    producer_by_tensor = {int(index): operator for operator in graph.operators for index in operator.outputs}
    operator = producer_by_tensor.get(tensor)
    while operator is not None and graph.kind(operator) in MOVING_OPERATORS:
        operator = producer_by_tensor.get(int(operator.inputs[0]))
    if operator is None or graph.kind(operator) != "CONCATENATION" or operator.builtinOptions.fusedActivationFunction:
        return None
    parts = [int(index) for index in operator.inputs]
    shape = [int(size) for size in graph.tensor(int(operator.outputs[0])).shape]
    is_computed = len(set(parts)) == len(parts) > 1 and all(part in producer_by_tensor for part in parts)
    is_once_an_output = [int(index) for index in graph.subgraph.outputs].count(tensor) == 1
    is_within_sample = shape[:1] == [1] and int(operator.builtinOptions.axis) % len(shape) > 0
    return operator if is_computed and is_once_an_output and is_within_sample else None


def _is_coarse(
    graph: MutableGraph, join: FlatbufferOperator, ranges: Mapping[str, ActivationRange], policy: BitWidthPolicy
) -> bool:
    """Whether a part of a concatenation in 8 bits would get few codes."""
    names = [graph.name(int(index)) for index in (*join.inputs, *join.outputs)]
    if policy("CONCATENATION", names[-1:]) != 8 or not all(name in ranges for name in names):
        return False
    return any(has_few_codes(ranges[name], count_codes(ranges[name], ranges[names[-1]])) for name in names[:-1])


def _part_names(graph: MutableGraph, name: str, join: FlatbufferOperator, taken_names: Sequence[str]) -> list[str]:
    """`head_0`, `head_1` ..; the names of the tensors where no signature names outputs."""
    if not graph.model.signatureDefs:
        return [graph.name(int(index)) for index in join.inputs]
    names: list[str] = []
    for number in range(len(join.inputs)):
        candidate = f"{name}_{number}"
        while candidate in (*taken_names, *names):
            candidate += "_part"
        names.append(candidate)
    return names


def split_graph(graph: MutableGraph, splits: Sequence[OutputSplit]) -> None:
    """Replace each output by its parts, in its place; a join that nothing else reads is dropped."""
    for split in splits:
        _swap_levels(graph, split)
        index_by_name = {graph.name(index): index for index in range(len(graph.subgraph.tensors))}
        tensor = index_by_name[split.output_tensor]
        parts = [index_by_name[name] for name in split.part_tensors]
        graph.subgraph.outputs = [
            index for output in graph.subgraph.outputs for index in (parts if int(output) == tensor else [int(output)])
        ]
        for signature in graph.model.signatureDefs or []:
            signature.outputs = [
                tensor_map
                for each in signature.outputs
                for tensor_map in (_part_maps(split.output.parts, parts) if each.tensorIndex == tensor else [each])
            ]
    graph.drop_unread((*MOVING_OPERATORS, "CONCATENATION"))


def _swap_levels(graph: MutableGraph, split: OutputSplit) -> None:
    """As `swap_output_levels`, in a form of the graph that it has not seen."""
    names = {graph.name(int(index)) for operator in graph.operators for index in operator.outputs}
    if names.issuperset(split.part_tensors):
        return
    swap_joins(graph, next(each for each in graph.operators if graph.name(int(each.outputs[0])) == split.join_tensor))


def _part_maps(names: Sequence[str], tensors: Sequence[int]) -> list[Any]:
    from ai_edge_litert.schema_py_generated import TensorMapT

    tensor_maps = []
    for name, index in zip(names, tensors, strict=True):
        tensor_map = TensorMapT()
        tensor_map.name, tensor_map.tensorIndex = name.encode(), index
        tensor_maps.append(tensor_map)
    return tensor_maps
