"""The graph of a Keras 3 model: lists of calls, nested for nested models and traced custom layers; and its walk."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from edgepipe.models.keras_operators import is_tensor
from edgepipe.models.keras_types import (
    AnyKerasVariable,
    KerasFunction,
    KerasLayer,
    KerasModel,
    KerasNode,
    KerasOperation,
    KerasTensor,
    Tensor,
    TensorTree,
)

OperationFn = Callable[[KerasOperation, tuple[Any, ...], dict[str, Any]], TensorTree]
TracedLayerFn = Callable[["GraphCall", tuple[Any, ...], dict[str, Any], list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class GraphCall:
    """One call of a layer or operator, or of a nested model or traced layer: then `inner_graph` is its content."""

    operation: KerasOperation
    args: tuple[Any, ...]  # with the symbolic tensors of the original
    kwargs: dict[str, Any]
    outputs: tuple[KerasTensor, ...]
    inner_graph: "Keras3Graph | None" = None
    inner_inputs: tuple[KerasTensor, ...] = ()  # the tensors that feed the inputs of `inner_graph`
    is_traced: bool = False  # `inner_graph` comes from tracing the layer's `call`; a nested model is a graph already


@dataclass(frozen=True)
class Keras3Graph:
    """Calls in the order of computation, from symbolic inputs to symbolic outputs."""

    name: str
    inputs: tuple[KerasTensor, ...]
    outputs: tuple[KerasTensor, ...]
    calls: tuple[GraphCall, ...]


def build_graph(model: KerasModel) -> Keras3Graph:
    """The graph of a built Sequential or functional `model`, including nested models and traceable custom layers."""
    return _build_graph(model.name, _functional_model(model))


def _build_graph(name: str, functional_graph: KerasModel | KerasFunction) -> Keras3Graph:
    calls = tuple(_build_call(node) for node in _iter_nodes(functional_graph))
    return Keras3Graph(name, tuple(functional_graph.inputs), tuple(functional_graph.outputs), calls)


def _iter_nodes(functional_graph: KerasModel | KerasFunction) -> Iterator[KerasNode]:
    for depth in sorted(functional_graph._nodes_by_depth, reverse=True):
        yield from (node for node in functional_graph._nodes_by_depth[depth] if not node.is_input)


def _build_call(node: KerasNode) -> GraphCall:
    keras_operation, args, kwargs = node.operation, node.arguments.args, _drop_unset_kwargs(node.arguments.kwargs)
    outputs = tuple(node.output_tensors)
    if is_model(keras_operation):
        inner_graph = _build_graph(keras_operation.name, _functional_model(keras_operation))
        return GraphCall(keras_operation, args, kwargs, outputs, inner_graph, _symbolic_tensors(args))
    traced_function = trace_layer(keras_operation, args, kwargs) if needs_tracing(keras_operation) else None
    if traced_function is None:
        return GraphCall(keras_operation, args, kwargs, outputs)
    inner_graph = _build_graph(keras_operation.name, traced_function)
    return GraphCall(
        keras_operation, args, kwargs, outputs, inner_graph, _symbolic_tensors((args, kwargs)), is_traced=True
    )


def _drop_unset_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Keras 3 records `training` in the graph, but a call of the model overrides it in any case
    return {key: argument for key, argument in kwargs.items() if argument is not None and key != "training"}


def _symbolic_tensors(structure: TensorTree) -> tuple[KerasTensor, ...]:
    return tuple(leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, keras.KerasTensor))


def is_model(keras_operation: KerasOperation) -> bool:
    """Whether the operation of a node is a model with its own graph."""
    return isinstance(keras_operation, keras.Sequential) or hasattr(keras_operation, "_nodes_by_depth")


def _functional_model(model: KerasModel) -> KerasModel:
    return model._functional if isinstance(model, keras.Sequential) else model


def is_builtin(layer: KerasLayer) -> bool:
    """Whether the class of `layer` is part of Keras 3."""
    return type(layer).__module__.split(".")[0] == "keras"


def twin_class(layer: KerasLayer) -> type | None:
    """The tf_keras class that a custom layer names as its twin (`tf_keras_twin = ...` in the class), or None."""
    twin: type | None = inspect.getattr_static(layer, "tf_keras_twin", None)
    return twin


def needs_tracing(keras_operation: KerasOperation) -> bool:
    """Whether only tracing its Python code can show what it computes."""
    if not isinstance(keras_operation, keras.Layer) or twin_class(keras_operation) is not None:
        return False
    if type(keras_operation) in (keras.layers.Lambda, keras.layers.Pipeline, keras.layers.GroupQueryAttention):
        return True
    # keras.applications has private layer classes that are not in keras.layers: InceptionResNetV2's CustomScaleLayer
    is_custom = getattr(keras.layers, type(keras_operation).__name__, None) is not type(keras_operation)
    return is_custom and type(keras_operation).__name__ not in ("LayerScale", "StochasticDepth")


def trace_layer(layer: KerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KerasFunction | None:
    """Trace `layer.call` with symbolic tensors into a keras.Function of the tensors among the arguments.

    None if it cannot be traced: the code needs values (TensorFlow functions, `if` on a tensor); it computes something
    else in training; or the graph does not show how a weight of the layer is used, so that its value would be frozen.
    """
    traced_function = _trace_call(layer, args, kwargs, training=False)
    if traced_function is None or not _reaches_all_weights(layer, traced_function):
        return None
    if "training" not in inspect.signature(layer.call).parameters:
        return traced_function
    training_function = _trace_call(layer, args, kwargs, training=True)
    return (
        traced_function
        if training_function is not None and _operation_keys(training_function) == _operation_keys(traced_function)
        else None
    )


def _trace_call(
    layer: KerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
) -> KerasFunction | None:
    fresh_tensor_by_id = {
        id(tensor): keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in _symbolic_tensors((args, kwargs))
    }
    args, kwargs = keras.tree.map_structure(
        lambda leaf: fresh_tensor_by_id.get(id(leaf), leaf), (tuple(args), dict(kwargs))
    )
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    try:
        return keras.Function(list(fresh_tensor_by_id.values()), layer.call(*args, **kwargs))
    except Exception:  # noqa: BLE001 - whatever the user's code raises for symbolic tensors; the layer stays opaque
        return None


def _operation_keys(function: KerasFunction) -> list[int | type]:
    """The layers (by id) and operator classes of a traced function, in order."""
    operations = [node.operation for node in _iter_nodes(function)]
    return [id(operation) if isinstance(operation, keras.Layer) else type(operation) for operation in operations]


def _reaches_all_weights(layer: KerasLayer, function: KerasFunction) -> bool:
    """Whether every weight of `layer` belongs to a layer of the graph or is an argument of one of its operators."""
    reached_weight_ids = {id(weight) for node in _iter_nodes(function) for weight in _node_weights(node)}
    return all(id(weight) in reached_weight_ids for weight in layer.weights)


def _node_weights(node: KerasNode) -> list[AnyKerasVariable]:
    layer_weights = node.operation.weights if isinstance(node.operation, keras.Layer) else []
    return [
        *layer_weights,
        *(
            argument
            for argument in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            if is_tensor(argument)
        ),
    ]


def uses_own_weights(function: KerasFunction) -> bool:
    """Whether operators of a traced function use weights that belong to none of its layers."""
    return any(
        isinstance(argument, keras.Variable)
        for node in _iter_nodes(function)
        for argument in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    )


def evaluate_graph(
    graph: Keras3Graph, inputs: list[Tensor], on_operation: OperationFn, on_traced_layer: TracedLayerFn
) -> list[Tensor]:
    """Evaluate `graph` with callbacks, in order; returns its outputs.

    Args:
        graph: The graph; those of nested models and traced layers are walked too.
        inputs: Tensors, symbolic or not, for the inputs of the graph.
        on_operation: Called as `(operation, args, kwargs)` for each layer and operator; returns its outputs.
        on_traced_layer: Called as `(call, args, kwargs, outputs)` after the content of a traced layer; returns the
            outputs to continue with.
    """
    tensor_by_id = dict(zip(map(id, graph.inputs), inputs, strict=True))

    def resolve(leaf: Any) -> Any:
        return tensor_by_id.get(id(leaf), leaf)

    for call in graph.calls:
        args, kwargs = keras.tree.map_structure(resolve, (call.args, call.kwargs))
        if call.inner_graph is None:
            outputs = keras.tree.flatten(on_operation(call.operation, args, kwargs))
        else:
            entry_masks = [(leaf, getattr(leaf, "_keras_mask", None)) for leaf in keras.tree.flatten((args, kwargs))]
            outputs = evaluate_graph(
                call.inner_graph, [resolve(tensor) for tensor in call.inner_inputs], on_operation, on_traced_layer
            )
            if call.is_traced:
                _restore_masks(entry_masks)
                outputs = on_traced_layer(call, args, kwargs, outputs)
        tensor_by_id.update(zip(map(id, call.outputs), outputs, strict=True))
    return [tensor_by_id[id(tensor)] for tensor in graph.outputs]


def _restore_masks(entry_masks: list[tuple[Any, Any]]) -> None:
    """Give tensors the masks that they had: attention layers take them away from what they read."""
    for tensor, mask in entry_masks:
        if mask is not None:
            tensor._keras_mask = mask


def iter_calls(graph: Keras3Graph, prefix: str = "") -> Iterator[tuple[str, GraphCall]]:
    """Every call of a layer or operator, those in inner graphs included, with the prefix of the enclosing names."""
    for call in graph.calls:
        if call.inner_graph is None:
            yield prefix, call
        else:
            yield from iter_calls(call.inner_graph, f"{prefix}{call.operation.name}_")
