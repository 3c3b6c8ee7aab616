"""The graph of a Keras 3 model as one list of calls, nested models and custom layers opened up, and walking over it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from edgepipe.models.keras_operators import is_tensor

Step = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
Close = Callable[["Call", tuple[Any, ...], dict[str, Any], list[Any]], list[Any]]


@dataclass(frozen=True)
class Call:
    """One call of a layer, an operator, or something that is opened: then `inner` is what it consists of."""

    operation: Any
    args: tuple[Any, ...]  # with the symbolic tensors of the original
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]
    inner: "Graph | None" = None
    feeds: tuple[Any, ...] = ()  # of an opened one: the tensors that are the inputs of `inner`
    traced: bool = False  # opened by tracing what its `call` does, not because it is a graph already


@dataclass(frozen=True)
class Graph:
    """Calls in the order of computation, from symbolic inputs to symbolic outputs."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    calls: tuple[Call, ...]


def graph_of(model: Any) -> Graph:
    """The graph of a built Sequential or functional `model`; nested models, and custom layers that can be, opened."""
    return _graph(model.name, _functional(model))


def _graph(name: str, functional: Any) -> Graph:
    calls = tuple(_call(node) for node in _nodes(functional))
    return Graph(name, tuple(functional.inputs), tuple(functional.outputs), calls)


def _nodes(functional: Any) -> Iterator[Any]:
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        yield from (node for node in functional._nodes_by_depth[depth] if not node.is_input)


def _call(node: Any) -> Call:
    operation, args, kwargs = node.operation, node.arguments.args, _given(node.arguments.kwargs)
    outputs = tuple(node.output_tensors)
    if is_model(operation):
        inner = _graph(operation.name, _functional(operation))
        return Call(operation, args, kwargs, outputs, inner, _tensors(args))
    opened = trace(operation, args, kwargs) if is_opaque(operation) else None
    if opened is None:
        return Call(operation, args, kwargs, outputs)
    inner = _graph(operation.name, opened)
    return Call(operation, args, kwargs, outputs, inner, _tensors((args, kwargs)), traced=True)


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Keras 3 notes `training` in the graph but a call of the model overrides it, whatever it says.
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def _tensors(value: Any) -> tuple[Any, ...]:
    return tuple(part for part in keras.tree.flatten(value) if isinstance(part, keras.KerasTensor))


def is_model(operation: Any) -> bool:
    """Whether a node of a graph is a model with a graph of its own."""
    return isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")


def _functional(model: Any) -> Any:
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
    own = getattr(keras.layers, type(operation).__name__, None) is not type(operation)
    return own and type(operation).__name__ not in ("LayerScale", "StochasticDepth")


def trace(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `layer.call` does to symbolic tensors, as a keras.Function of the tensors among the arguments; or None.

    None where it cannot be traced: the code needs values (TensorFlow functions, `if` on a tensor); it does something
    else in training; or a weight of the layer takes part in a way that the graph does not show, so that its value would
    be frozen in.
    """
    function = _traced(layer, args, kwargs, training=False)
    if function is None or not _reached(layer, function):
        return None
    if "training" not in inspect.signature(layer.call).parameters:
        return function
    training = _traced(layer, args, kwargs, training=True)
    return function if training is not None and _steps(training) == _steps(function) else None


def _traced(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
    fresh = {id(part): keras.KerasTensor(part.shape, part.dtype) for part in _tensors((args, kwargs))}
    args, kwargs = keras.tree.map_structure(lambda part: fresh.get(id(part), part), (tuple(args), dict(kwargs)))
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    try:
        return keras.Function(list(fresh.values()), layer.call(*args, **kwargs))
    except Exception:  # noqa: BLE001 - whatever the user's code raises for tensors without values; the layer then stays whole
        return None


def _steps(function: Any) -> list[Any]:
    """The layers and kinds of operators of a traced function, in order."""
    operations = [node.operation for node in _nodes(function)]
    return [id(part) if isinstance(part, keras.Layer) else type(part) for part in operations]


def _reached(layer: Any, function: Any) -> bool:
    """Whether every weight of `layer` belongs to a layer in the graph or is an argument of an operator in it."""
    found = {id(weight) for node in _nodes(function) for weight in _weights(node)}
    return all(id(weight) in found for weight in layer.weights)


def _weights(node: Any) -> list[Any]:
    own = node.operation.weights if isinstance(node.operation, keras.Layer) else []
    return [
        *own,
        *(part for part in keras.tree.flatten((node.arguments.args, node.arguments.kwargs)) if is_tensor(part)),
    ]


def own_weights_used(function: Any) -> bool:
    """Whether operators of a traced function use weights that belong to no layer in it."""
    return any(
        isinstance(part, keras.Variable)
        for node in _nodes(function)
        for part in keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
    )


def walk(graph: Graph, inputs: list[Any], step: Step, close: Close) -> list[Any]:
    """Call `step(operation, args, kwargs)` for everything that is not opened, in order.

    `inputs` are the values, symbolic or not, of the graph's inputs; gives the values of its outputs. After what a
    traced layer consists of, `close` is told its call and result, and gives the result to go on with.
    """
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}

    def known(part: Any) -> Any:
        return values.get(id(part), part)

    for call in graph.calls:
        args, kwargs = keras.tree.map_structure(known, (call.args, call.kwargs))
        if call.inner is None:
            result = keras.tree.flatten(step(call.operation, args, kwargs))
        else:
            result = walk(call.inner, [known(tensor) for tensor in call.feeds], step, close)
            if call.traced:
                result = close(call, args, kwargs, result)
        values.update((id(tensor), value) for tensor, value in zip(call.outputs, result, strict=True))
    return [values[id(tensor)] for tensor in graph.outputs]


def calls(graph: Graph, prefix: str = "") -> Iterator[tuple[str, Call]]:
    """Every call of a layer or operator, those inside opened ones included, with the path of names before its own."""
    for call in graph.calls:
        if call.inner is None:
            yield prefix, call
        else:
            yield from calls(call.inner, f"{prefix}{call.operation.name}_")
