"""Which inputs of a model hold ids, whatever their type, and from how large a table: read off what looks them up.

A comparison on random inputs must feed an Embedding of fifty rows with numbers below fifty, also if they arrive as
float32, as in every Keras 2 text model.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import keras
import tensorflow as tf

from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.keras3_graph import GraphCall, Keras3Graph
from edgepipe.models.keras_types import AnyKerasLayer, KerasOperation, KerasTensor, TfKerasModel

SMALLEST_TABLE = 2  # rows of the smallest table that is worth a look-up
# operations, by class, after which an id is still the same id
_MOVING_OPERATIONS = frozenset((
    "BroadcastTo", "Cast", "Ceil", "Concatenate", "Copy", "Cropping1D", "Dropout", "ExpandDims", "Flatten", "Flip",
    "Floor", "GetItem", "Identity", "Moveaxis", "Permute", "Ravel", "Repeat", "RepeatVector", "Reshape", "Roll",
    "Round", "Slice", "SlicingOpLambda", "Split", "Squeeze", "Stack", "StopGradient", "Swapaxes", "TFOpLambda",
    "Tile", "Transpose", "Trunc", "Unstack", "ZeroPadding1D",
))  # fmt: skip
# operations after which a small id is another small id, such as an offset into a joint table
_ARITHMETIC_OPERATIONS = frozenset((
    "Abs", "Absolute", "Add", "Clip", "Divide", "FloorDivide", "Maximum", "Minimum", "Mod", "Multiply", "Negative",
    "Rescaling", "Subtract", "TrueDivide", "Where",
))  # fmt: skip
_TABLE_SIZE_ATTRIBUTES = {"Embedding": "input_dim", "CategoryEncoding": "num_tokens", "OneHot": "num_classes"}


@final
@dataclass(frozen=True)
class _Call:
    """One call of a layer or operator of either Keras; `inner_limits` carries limits through a nested model."""

    operation: AnyKerasLayer | KerasOperation
    class_name: str
    inputs: tuple[KerasTensor, ...]
    outputs: tuple[KerasTensor, ...]
    table_size: int | None = None  # of what the call looks ids up in
    inner_limits: Callable[[list[int | None]], list[int | None]] | None = None


def find_id_limits(graph: Keras3Graph) -> list[int | None]:
    """For each input of a Keras 3 graph, the number that its ids must be below; None if nothing looks them up."""
    return _graph_limits(graph, [None] * len(graph.outputs))


def _graph_limits(graph: Keras3Graph, output_limits: list[int | None]) -> list[int | None]:
    return _follow_back([_keras3_call(call) for call in graph.calls], graph.inputs, graph.outputs, output_limits)


def find_tf_keras_id_limits(model: TfKerasModel) -> list[int | None]:
    """As `find_id_limits`, for the inputs of a tf_keras model with a graph of layers."""
    return _tf_keras_limits(model, [None] * len(model.outputs))


def _tf_keras_limits(model: TfKerasModel, output_limits: list[int | None]) -> list[int | None]:
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    calls = [_tf_keras_call(node) for node in nodes if not node.is_input]
    return _follow_back(calls, model.inputs, model.outputs, output_limits)


def _follow_back(
    calls: list[_Call],
    inputs: Iterable[KerasTensor],
    outputs: Iterable[KerasTensor],
    output_limits: list[int | None],
) -> list[int | None]:
    """The limits of the inputs of a graph, from those of its outputs and of what looks ids up in between."""
    limit_by_id: dict[int, int | None] = {}
    for tensor, limit in zip(outputs, output_limits, strict=True):
        _lower(limit_by_id, tensor, limit)
    for call in reversed(calls):
        for tensor, limit in zip(call.inputs, _input_limits(call, limit_by_id), strict=True):
            _lower(limit_by_id, tensor, limit)
    return [limit_by_id.get(id(tensor)) for tensor in inputs]


def _lower(limit_by_id: dict[int, int | None], tensor: KerasTensor, limit: int | None) -> None:
    limit_by_id[id(tensor)] = _smallest([limit_by_id.get(id(tensor)), limit])


def _smallest(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _input_limits(call: _Call, limit_by_id: Mapping[int, int | None]) -> list[int | None]:
    output_limits = [limit_by_id.get(id(tensor)) for tensor in call.outputs]
    if call.inner_limits is not None:
        return call.inner_limits(output_limits)
    if call.table_size is not None:
        return [call.table_size] * len(call.inputs)
    limit = _smallest(output_limits)
    if call.class_name in _ARITHMETIC_OPERATIONS and limit is not None:
        return [min(limit, SMALLEST_TABLE)] * len(call.inputs)
    return [limit if call.class_name in _MOVING_OPERATIONS else None] * len(call.inputs)


def _keras3_call(call: GraphCall) -> _Call:
    inner_graph = call.inner_graph
    if inner_graph is not None:
        return _Call(
            call.operation,
            type(call.operation).__name__,
            call.inner_inputs,
            call.outputs,
            # masks, which are bool, come after the inputs
            inner_limits=lambda output_limits: _graph_limits(inner_graph, output_limits)[: len(call.inner_inputs)],
        )
    operands = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if isinstance(leaf, keras.KerasTensor)]
    class_name, table_size = type(call.operation).__name__, _table_size(call.operation)
    if class_name == "Take":  # (table, indices): ids are the second
        table, *indices = call.args
        axis = getattr(call.operation, "axis", None) or 0
        operands = [leaf for leaf in indices if isinstance(leaf, keras.KerasTensor)]
        table_size = table.shape[axis] if isinstance(table, (keras.Variable, tf.Tensor)) else None
    return _Call(call.operation, class_name, tuple(operands), call.outputs, table_size)


def _tf_keras_call(node: Any) -> _Call:
    layer, outputs = node.layer, tuple(tf.nest.flatten(node.outputs))
    inner_limits = None
    if hasattr(layer, "_nodes_by_depth"):

        def inner_limits(output_limits: list[int | None]) -> list[int | None]:
            return _tf_keras_limits(layer, output_limits)

    # of the bridge's layer for an operator, that of the operator
    class_name = getattr(layer, "operator", type(layer).__name__)
    return _Call(layer, class_name, tuple(node.keras_inputs), outputs, _tf_keras_table_size(node), inner_limits)


def _tf_keras_table_size(node: Any) -> int | None:
    layer = node.layer
    if isinstance(layer, OperatorLayer):
        return json.loads(layer.arguments)["kwargs"].get("num_classes") if layer.operator == "OneHot" else None
    if type(layer).__name__ == "TFOpLambda":
        return node.call_kwargs.get("depth") if layer.symbol == "one_hot" else None
    return _table_size(layer)


def _table_size(operation: AnyKerasLayer | KerasOperation) -> int | None:
    """The rows of the table that an operation, or a layer inside it, looks ids up in; None if there is none."""
    return _smallest(_own_table_size(each) for each in (operation, *_inner_layers(operation)))


def _own_table_size(operation: AnyKerasLayer | KerasOperation) -> int | None:
    attribute = _TABLE_SIZE_ATTRIBUTES.get(type(operation).__name__)
    return None if attribute is None else getattr(operation, attribute)


def _inner_layers(operation: AnyKerasLayer | KerasOperation) -> list[AnyKerasLayer]:
    """The layers inside one that is not traced."""
    if isinstance(operation, tf.Module):
        return list(operation.submodules)
    return list(operation._flatten_layers(include_self=False)) if isinstance(operation, keras.Layer) else []
