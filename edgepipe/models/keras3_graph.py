"""The graph of a Keras 3 model as one list of calls, nested models and custom layers opened up, and walking over it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from edgepipe.models.keras_operators import is_tensor

OperationFn = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
TracedLayerFn = Callable[["GraphCall", tuple[Any, ...], dict[str, Any], list[Any]], list[Any]]


@dataclass(frozen=True)
class GraphCall:
    """One call of a layer, an operator, or something that is opened: then `inner` is what it consists of."""

    operation: Any
    args: tuple[Any, ...]  # with the symbolic tensors of the original
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    inner_graph: "Keras3Graph | None" = None
    inner_inputs: tuple[Any, ...] = ()  # of an opened one: the tensors that are the inputs of `inner`
    is_traced: bool = False  # opened by tracing what its `call` does, not because it is a graph already


@dataclass(frozen=True)
class Keras3Graph:
    """Calls in the order of computation, from symbolic inputs to symbolic outputs."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    calls: tuple[GraphCall, ...]


def build_graph(model: Any) -> Keras3Graph:
    """The graph of a built Sequential or functional `model`; nested models, and custom layers that can be, opened."""
    return _build_graph(model.name, _functional_model(model))


def _build_graph(name: str, functional: Any) -> Keras3Graph:
    calls = tuple(_build_call(node) for node in _nodes(functional))
    return Keras3Graph(name, tuple(functional.inputs), tuple(functional.outputs), calls)


def _nodes(functional: Any) -> Iterator[Any]:
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        yield from (node for node in functional._nodes_by_depth[depth] if not node.is_input)


def _build_call(node: Any) -> GraphCall:
    operation, args, kwargs = node.operation, node.arguments.args, _drop_unset(node.arguments.kwargs)
    outputs = tuple(node.output_tensors)
    if is_model(operation):
        inner_graph = _build_graph(operation.name, _functional_model(operation))
        return GraphCall(operation, args, kwargs, outputs, inner_graph, _symbolic_tensors(args))
    traced_function = trace(operation, args, kwargs) if is_opaque(operation) else None
    if traced_function is None:
        return GraphCall(operation, args, kwargs, outputs)
    inner_graph = _build_graph(operation.name, traced_function)
    return GraphCall(operation, args, kwargs, outputs, inner_graph, _symbolic_tensors((args, kwargs)), is_traced=True)


def _drop_unset(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Keras 3 notes `training` in the graph but a call of the model overrides it, whatever it says.
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def _symbolic_tensors(structure: Any) -> tuple[Any, ...]:
    return tuple(leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, keras.KerasTensor))


def is_model(operation: Any) -> bool:
    """Whether a node of a graph is a model with a graph of its own."""
    return isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")


def _functional_model(model: Any) -> Any:
    return model._functional if isinstance(model, keras.Sequential) else model


def is_builtin(layer: Any) -> bool:
    """Whether the class of `layer` comes with Keras 3."""
    return type(layer).__module__.split(".")[0] == "keras"


def twin_class(layer: Any) -> Any:
    """The tf_keras class that a custom layer offers in its place (`tf_keras_twin = ...` in the class), or None."""
    return inspect.getattr_static(layer, "tf_keras_twin", None)


def is_opaque(operation: Any) -> bool:
    """Whether it can only be understood by looking at what its Python code does."""
    if not isinstance(operation, keras.Layer) or twin_class(operation) is not None:
        return False
    if type(operation) in (keras.layers.Lambda, keras.layers.Pipeline, keras.layers.GroupQueryAttention):
        return True
    # what keras.applications defines for itself is no part of keras.layers: InceptionResNetV2's CustomScaleLayer
    is_custom = getattr(keras.layers, type(operation).__name__, None) is not type(operation)
    return is_custom and type(operation).__name__ not in ("LayerScale", "StochasticDepth")


def trace(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `layer.call` does to symbolic tensors, as a keras.Function of the tensors among the arguments; or None.

    None where it cannot be traced: the code needs values (TensorFlow functions, `if` on a tensor); it does something
    else in training; or a weight of the layer takes part in a way that the graph does not show, so that its value would
    be frozen in.
    """
    function = _trace_call(layer, args, kwargs, training=False)
    if function is None or not _reaches_all_weights(layer, function):
        return None
    if "training" not in inspect.signature(layer.call).parameters:
        return function
    training_function = _trace_call(layer, args, kwargs, training=True)
    return (
        function
        if training_function is not None and _operation_sequence(training_function) == _operation_sequence(function)
        else None
    )


def _trace_call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
    fresh_by_id = {
        id(tensor): keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in _symbolic_tensors((args, kwargs))
    }
    args, kwargs = keras.tree.map_structure(lambda leaf: fresh_by_id.get(id(leaf), leaf), (tuple(args), dict(kwargs)))
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    try:
        return keras.Function(list(fresh_by_id.values()), layer.call(*args, **kwargs))
    except Exception:  # noqa: BLE001 - whatever the user's code raises for tensors without values; the layer then stays whole
        return None


def _operation_sequence(function: Any) -> list[Any]:
    """The layers and kinds of operators of a traced function, in order."""
    operations = [node.operation for node in _nodes(function)]
    return [id(operation) if isinstance(operation, keras.Layer) else type(operation) for operation in operations]


def _reaches_all_weights(layer: Any, function: Any) -> bool:
    """Whether every weight of `layer` belongs to a layer in the graph or is an argument of an operator in it."""
    reached_ids = {id(weight) for node in _nodes(function) for weight in _node_weights(node)}
    return all(id(weight) in reached_ids for weight in layer.weights)


def _node_weights(node: Any) -> list[Any]:
    layer_weights = node.operation.weights if isinstance(node.operation, keras.Layer) else []
    return [
        *layer_weights,
        *(
            argument
            for argument in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            if is_tensor(argument)
        ),
    ]


def uses_own_weights(function: Any) -> bool:
    """Whether operators of a traced function use weights that belong to no layer in it."""
    return any(
        isinstance(argument, keras.Variable)
        for node in _nodes(function)
        for argument in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    )


def walk(graph: Keras3Graph, inputs: list[Any], on_operation: OperationFn, on_traced_layer: TracedLayerFn) -> list[Any]:
    """Call `step(operation, args, kwargs)` for everything that is not opened, in order.

    `inputs` are the values, symbolic or not, of the graph's inputs; gives the values of its outputs. After what a
    traced layer consists of, `close` is told its call and result, and gives the result to go on with.
    """
    value_by_id = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}

    def resolve(leaf: Any) -> Any:
        return value_by_id.get(id(leaf), leaf)

    for call in graph.calls:
        args, kwargs = keras.tree.map_structure(resolve, (call.args, call.kwargs))
        if call.inner_graph is None:
            outputs = keras.tree.flatten(on_operation(call.operation, args, kwargs))
        else:
            outputs = walk(
                call.inner_graph, [resolve(tensor) for tensor in call.inner_inputs], on_operation, on_traced_layer
            )
            if call.is_traced:
                outputs = on_traced_layer(call, args, kwargs, outputs)
        value_by_id.update((id(tensor), value) for tensor, value in zip(call.outputs, outputs, strict=True))
    return [value_by_id[id(tensor)] for tensor in graph.outputs]


def iter_calls(graph: Keras3Graph, prefix: str = "") -> Iterator[tuple[str, GraphCall]]:
    """Every call of a layer or operator, those inside opened ones included, with the path of names before its own."""
    for call in graph.calls:
        if call.inner_graph is None:
            yield prefix, call
        else:
            yield from iter_calls(call.inner_graph, f"{prefix}{call.operation.name}_")
