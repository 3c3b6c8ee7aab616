"""The graph of a Keras 3 model: lists of calls, nested for nested models and traced custom layers; and its walk."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from edgepipe.models.keras_types import (
    KerasFunction,
    KerasLayer,
    KerasModel,
    KerasNode,
    KerasOperation,
    KerasTensor,
    Tensor,
    TensorTree,
)
from edgepipe.models.layer_trace import iter_nodes, trace_layer

OperationFn = Callable[[KerasOperation, tuple[Any, ...], dict[str, Any]], TensorTree]
MaskFn = Callable[[Tensor], Tensor]  # reads the implicit mask of a tensor
ContentFn = Callable[[MaskFn], list[Tensor]]  # evaluates the content of a traced layer; returns its outputs
TracedLayerFn = Callable[["GraphCall", tuple[Any, ...], dict[str, Any], ContentFn], list[Tensor]]


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
    masked_inputs: tuple[KerasTensor, ...] = ()  # whose masks, which Keras gives to `call`, feed the last inner inputs


@dataclass(frozen=True)
class Keras3Graph:
    """Calls in the order of computation, from symbolic inputs to symbolic outputs."""

    name: str
    inputs: tuple[KerasTensor, ...]
    outputs: tuple[KerasTensor, ...]
    calls: tuple[GraphCall, ...]


def build_graph(model: KerasModel) -> Keras3Graph:
    """The graph of a built Sequential or functional `model`, including nested models and traceable custom layers."""
    return build_function_graph(model.name, _functional_model(model))


def build_function_graph(name: str, functional_graph: KerasModel | KerasFunction) -> Keras3Graph:
    """The graph of a functional model or a traced function, called `name`."""
    calls = tuple(_build_call(node) for node in iter_nodes(functional_graph))
    return Keras3Graph(name, tuple(functional_graph.inputs), tuple(functional_graph.outputs), calls)


def _build_call(node: KerasNode) -> GraphCall:
    keras_operation, args, kwargs = node.operation, node.arguments.args, _drop_unset_kwargs(node.arguments.kwargs)
    outputs = tuple(node.output_tensors)
    if is_model(keras_operation):
        inner_graph = build_function_graph(keras_operation.name, _functional_model(keras_operation))
        return GraphCall(keras_operation, args, kwargs, outputs, inner_graph, _symbolic_tensors(args))
    masked_inputs = _masked_inputs(keras_operation, args, kwargs) if needs_tracing(keras_operation) else {}
    mask_by_id = {id(tensor): keras.KerasTensor(tensor.shape[:2], "bool") for tensor in masked_inputs.values()}
    masks = {parameter: mask_by_id[id(tensor)] for parameter, tensor in masked_inputs.items()}
    traced_function = (
        trace_layer(keras_operation, args, {**kwargs, **masks}) if needs_tracing(keras_operation) else None
    )
    if traced_function is None:
        return GraphCall(keras_operation, args, kwargs, outputs)
    inner_graph = build_function_graph(keras_operation.name, traced_function)
    inner_inputs = tuple({id(tensor): tensor for tensor in _symbolic_tensors((args, kwargs))}.values())
    unique_masked_inputs = tuple({id(tensor): tensor for tensor in masked_inputs.values()}.values())
    return GraphCall(keras_operation, args, kwargs, outputs, inner_graph, inner_inputs, True, unique_masked_inputs)


def _masked_inputs(layer: KerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, KerasTensor]:
    """The arguments whose masks Keras gives to `call` by itself, by the names of the parameters that take the masks."""
    signature = inspect.signature(layer.call)
    argument_by_name = signature.bind(*args, **kwargs).arguments
    tensor_by_name = {name: leaf for name, leaf in argument_by_name.items() if isinstance(leaf, keras.KerasTensor)}
    name_by_parameter = (
        {"mask": next(iter(tensor_by_name))}
        if len(tensor_by_name) == 1
        else {f"{name}_mask": name for name in tensor_by_name}
    )
    return {
        parameter: tensor_by_name[name]
        for parameter, name in name_by_parameter.items()
        if parameter in signature.parameters
        and argument_by_name.get(parameter) is None
        and getattr(tensor_by_name[name], "_keras_mask", None) is not None
    }


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


def evaluate_graph(
    graph: Keras3Graph, inputs: list[Tensor], on_operation: OperationFn, on_traced_layer: TracedLayerFn
) -> list[Tensor]:
    """Evaluate `graph` with callbacks, in order; returns its outputs.

    Args:
        graph: The graph; those of nested models and traced layers are walked too.
        inputs: Tensors, symbolic or not, for the inputs of the graph.
        on_operation: Called as `(operation, args, kwargs)` for each layer and operator; returns its outputs.
        on_traced_layer: Called as `(call, args, kwargs, evaluate_content)` for each traced layer; returns the outputs
            to continue with.
    """
    tensor_by_id = dict(zip(map(id, graph.inputs), inputs, strict=True))

    def resolve(leaf: Any) -> Any:
        return tensor_by_id.get(id(leaf), leaf)

    def evaluate_call(call: GraphCall) -> list[Tensor]:
        args, kwargs = keras.tree.map_structure(resolve, (call.args, call.kwargs))
        inner_graph = call.inner_graph
        if inner_graph is None:
            return list(keras.tree.flatten(on_operation(call.operation, args, kwargs)))

        def evaluate_content(read_mask: MaskFn) -> list[Tensor]:
            masks = [read_mask(resolve(tensor)) for tensor in call.masked_inputs]
            entry_masks = [(leaf, getattr(leaf, "_keras_mask", None)) for leaf in keras.tree.flatten((args, kwargs))]
            inner_inputs = [*(resolve(tensor) for tensor in call.inner_inputs), *masks]
            outputs = evaluate_graph(inner_graph, inner_inputs, on_operation, on_traced_layer)
            if call.is_traced:
                _restore_masks(entry_masks)
            return outputs

        return (
            on_traced_layer(call, args, kwargs, evaluate_content) if call.is_traced else evaluate_content(implicit_mask)
        )

    for call in graph.calls:
        tensor_by_id.update(zip(map(id, call.outputs), evaluate_call(call), strict=True))
    return [tensor_by_id[id(tensor)] for tensor in graph.outputs]


def implicit_mask(tensor: Tensor) -> Tensor:
    """The mask that Keras has attached to a tensor with values; True everywhere if there is none."""
    mask = getattr(tensor, "_keras_mask", None)
    return keras.ops.ones(tensor.shape[:2], "bool") if mask is None else mask


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
