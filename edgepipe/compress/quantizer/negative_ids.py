"""Negative ids, which Keras 3 counts from the end of an Embedding's table: ids < 0 ? ids + rows : ids.

That takes three operators for each table, and TFLite Micro has no choice between integers. Where ids are never
negative, they are looked up as they are.
"""

from collections.abc import Collection

import numpy as np

from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.integer_regions import MOVED_POSITIONS, ROUNDING_OPERATORS
from edgepipe.compress.quantizer.mutable_graph import MutableGraph

COUNTING_OPERATORS = frozenset({"ARG_MAX", "ARG_MIN", "BUCKETIZE", "SHAPE"})  # their results are never negative


def drop_negative_ids(graph: MutableGraph, positive_inputs: Collection[int]) -> bool:
    """Drop the choice between ids and ids from the end in place, where ids are never negative; True if any was dropped.

    Args:
        graph: a float graph.
        positive_inputs: positions of the inputs that are never negative.
    """
    index = GraphIndex(graph)
    positive_tensors = {index.graph_inputs[position] for position in positive_inputs}
    ids_by_choice = {
        number: index.inputs[number][2]
        for number, kind in enumerate(index.kinds)
        if kind in ("SELECT", "SELECT_V2") and _is_choice(index, number, positive_tensors)
    }
    replacements = {index.outputs[number][0]: ids for number, ids in ids_by_choice.items()}
    for operator in index.operators:
        operator.inputs = [replacements.get(int(each), int(each)) for each in operator.inputs]
    dropped_operators = set(ids_by_choice) | _unread_producers(index, ids_by_choice)
    graph.subgraph.operators = [each for n, each in enumerate(index.operators) if n not in dropped_operators]
    return bool(ids_by_choice)


def _is_choice(index: GraphIndex, number: int, positive_tensors: Collection[int]) -> bool:
    condition, _, ids = index.inputs[number]
    comparison = index.producer_by_tensor.get(condition)
    if comparison is None or index.kinds[comparison] != "LESS" or index.inputs[comparison][0] != ids:
        return False
    limit = index.graph.numbers(index.inputs[comparison][1])
    is_integer = index.graph.dtype(ids) in ("int32", "int64") and index.outputs[number][0] not in index.graph_outputs
    return is_integer and limit is not None and bool((limit == 0).all()) and _is_positive(index, ids, positive_tensors)


def _is_positive(index: GraphIndex, tensor: int, positive_tensors: Collection[int]) -> bool:
    """Whether a tensor is a never negative one, moved or with a positive offset."""
    producer = index.producer_by_tensor.get(tensor)
    if producer is None:
        constant = index.graph.numbers(tensor)
        return tensor in positive_tensors or (constant is not None and bool(np.all(constant >= 0)))
    kind, inputs = index.kinds[producer], index.inputs[producer]
    if kind in COUNTING_OPERATORS:
        return True
    positions = (0, 1) if kind == "ADD" else MOVED_POSITIONS.get(kind, ())
    if kind == "CAST" or kind in ROUNDING_OPERATORS:
        positions = (0,)
    operands = inputs if positions is None else [inputs[position] for position in positions]
    return bool(operands) and all(_is_positive(index, each, positive_tensors) for each in operands)


def _unread_producers(index: GraphIndex, choices: Collection[int]) -> set[int]:
    """The comparisons and sums that only choices read."""
    operand_tensors = [tensor for number in choices for tensor in index.inputs[number][:2]]
    return {
        index.producer_by_tensor[tensor]
        for tensor in operand_tensors
        if tensor in index.producer_by_tensor
        and set(index.readers_by_tensor[tensor]) <= set(choices)
        and tensor not in index.graph_outputs
    }
