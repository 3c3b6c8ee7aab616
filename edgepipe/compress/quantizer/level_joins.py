"""A join of joins, as detectors with several levels give it, in the other order: parts first, levels inside.

concat(concat(boxes a, scores a), concat(boxes b, scores b)) over levels is concat(boxes of a and b, scores of a and b)
over parts: the same numbers in the same places, and each part can have a scale of its own.
"""

import copy

from edgepipe.compress.quantizer.flatbuffer_edits import FlatbufferOperator
from edgepipe.compress.quantizer.mutable_graph import MutableGraph

JOIN = "CONCATENATION"


def inner_joins(graph: MutableGraph, join: FlatbufferOperator) -> list[FlatbufferOperator]:
    """The joins that `join` joins if they can change places with it: alike, and read by nothing else; else none."""
    producer_by_tensor = {int(index): operator for operator in graph.operators for index in operator.outputs}
    read_tensors = [int(index) for operator in graph.operators for index in operator.inputs]
    read_tensors += [int(index) for index in graph.subgraph.outputs]
    levels = [int(index) for index in join.inputs]
    joins = [producer_by_tensor.get(level) for level in levels]
    known_joins = [each for each in joins if each is not None and graph.kind(each) == JOIN]
    is_plain = len(known_joins) == len(joins) and all(read_tensors.count(level) == 1 for level in levels)
    if not is_plain or any(each.builtinOptions.fusedActivationFunction for each in known_joins):
        return []
    rank = len(graph.tensor(levels[0]).shape)
    part_axes = {int(each.builtinOptions.axis) % rank for each in known_joins}
    part_sizes = {tuple(_sizes(graph, each, axis) for axis in part_axes) for each in known_joins}
    is_other_axis = int(join.builtinOptions.axis) % rank not in part_axes
    return known_joins if len(part_axes) == len(part_sizes) == 1 and is_other_axis else []


def _sizes(graph: MutableGraph, join: FlatbufferOperator, axis: int) -> tuple[int, ...]:
    return tuple(int(graph.tensor(int(index)).shape[axis]) for index in join.inputs)


def swap_joins(graph: MutableGraph, join: FlatbufferOperator) -> dict[str, list[str]]:
    """Put `join` inside its inner joins, in place; the tensors that each new tensor joins, by name."""
    joins = inner_joins(graph, join)
    level_axis, part_options = join.builtinOptions.axis, copy.copy(joins[0].builtinOptions)
    members_by_part: dict[str, list[str]] = {}
    part_joins = []
    for number, parts in enumerate(zip(*(each.inputs for each in joins), strict=True)):
        name = f"{graph.name(int(join.outputs[0]))}/part_{number}"
        shape = [int(size) for size in graph.tensor(int(parts[0])).shape]
        shape[level_axis] = sum(int(graph.tensor(int(part)).shape[level_axis]) for part in parts)
        tensor = graph.add_float_tensor(name, shape)
        part_joins.append(graph.copy_operator(join, [int(part) for part in parts], [tensor]))
        members_by_part[name] = [graph.name(int(part)) for part in parts]
    index = graph.operator_index(join)
    swapped_join = graph.copy_operator(join, [operator.outputs[0] for operator in part_joins], list(join.outputs))
    swapped_join.builtinOptions = part_options
    graph.operators[index : index + 1] = [*part_joins, swapped_join]
    graph.drop_unread((JOIN,))
    return members_by_part
