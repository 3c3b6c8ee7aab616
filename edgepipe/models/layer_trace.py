"""Tracing of a Keras 3 layer's Python code into a graph of layers and operators.

What the code computes from constants and weights alone (`self.positions(ops.arange(n))`, `self.codes**2`) would be a
value, not a part of the graph, which freezes the weights in it. So weights and such constants are symbolic in the first
trace; code that needs the values of weights gets them in a second one.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import tensorflow as tf

from edgepipe.models.keras_operators import OPERATOR_NAMES, Constant, infer_open_size, is_tensor
from edgepipe.models.keras_types import (
    AnyKerasVariable,
    KerasFunction,
    KerasLayer,
    KerasNode,
    KerasOperation,
    KerasTensor,
    TensorTree,
)

_SHAPE_OPTIONS = {"BroadcastTo": "shape", "Reshape": "newshape", "Tile": "repeats"}


def trace_layer(layer: KerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> KerasFunction | None:
    """Trace `layer.call` with symbolic tensors into a keras.Function of the tensors among the arguments.

    None if it cannot be traced: the code needs values (TensorFlow functions, `if` on a tensor, the size of a batch); it
    computes something else in training; it holds an operator that no graph of the bridge takes; or the graph does not
    show how a weight of the layer is used, so that its value would be frozen.
    """
    for constants_are_symbolic in (True, False):
        function = _trace_call(layer, args, kwargs, False, constants_are_symbolic)
        if function is not None and _reaches_all_weights(layer, function):
            is_usable = _is_translatable(function) and _is_equal_in_training(
                layer, function, args, kwargs, constants_are_symbolic
            )
            return function if is_usable else None
    return None


def _is_equal_in_training(
    layer: KerasLayer,
    function: KerasFunction,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    constants_are_symbolic: bool,
) -> bool:
    """Whether training runs the same layers and operators as the traced inference."""
    if "training" not in inspect.signature(layer.call).parameters:
        return True
    training_function = _trace_call(layer, args, kwargs, True, constants_are_symbolic)
    return training_function is not None and _operation_keys(training_function) == _operation_keys(function)


def _trace_call(
    layer: KerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool, constants_are_symbolic: bool
) -> KerasFunction | None:
    fresh_tensor_by_id, (args, kwargs) = fresh_tensors((tuple(args), dict(kwargs)))
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    inputs = list(fresh_tensor_by_id.values())
    try:
        with ExitStack() as scopes:
            if constants_are_symbolic:
                scopes.enter_context(_symbolic_weights(layer, inputs[0]))
                for inner_layer in {id(each): each for each in layer._flatten_layers(include_self=False)}.values():
                    scopes.enter_context(_symbolic_inner_layer(inner_layer, inputs[0]))
            outputs = layer.call(*args, **kwargs)
        function = keras.Function(inputs, outputs)
        _infer_open_sizes(function)
        return function
    except Exception:  # noqa: BLE001 - whatever the user's code raises for symbolic tensors; the layer stays opaque
        return None


def _infer_open_sizes(function: KerasFunction) -> None:
    """Let each reshape to a shape with one open size (`ops.reshape(x, ops.shape(y))`) infer that size."""
    for node in iter_nodes(function):
        is_reshape = type(node.operation).__name__ == "Reshape"
        new_shape = node.operation.newshape if is_reshape else None
        if isinstance(new_shape, (tuple, list)) and new_shape.count(None) == 1 and -1 not in new_shape:
            node.operation.newshape = infer_open_size(new_shape)


def fresh_tensors(structure: TensorTree) -> tuple[dict[int, KerasTensor], TensorTree]:
    """New symbolic tensors for those of either Keras in `structure`, by their ids, and the structure with them."""
    fresh_tensor_by_id = {
        id(leaf): keras.Input(batch_shape=tuple(leaf.shape), dtype=keras.backend.standardize_dtype(leaf.dtype))
        for leaf in keras.tree.flatten(structure)
        if is_tensor(leaf) and not isinstance(leaf, keras.Variable)
    }
    return fresh_tensor_by_id, keras.tree.map_structure(lambda leaf: fresh_tensor_by_id.get(id(leaf), leaf), structure)


@contextmanager
def _symbolic_weights(layer: KerasLayer, anchor: KerasTensor) -> Iterator[None]:
    """The layer's own weights, as far as they are its attributes, are symbolic tensors inside the block."""
    weight_by_name = {name: value for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    symbol_by_name = {name: Constant()(anchor, weight) for name, weight in weight_by_name.items()}
    with _attributes(layer, symbol_by_name):
        yield


@contextmanager
def _attributes(layer: KerasLayer, value_by_name: dict[str, Any]) -> Iterator[None]:
    """Attributes of `layer` itself have these values inside the block, which Keras does not track."""
    own_attributes: dict[str, Any] = layer.__dict__
    former_values = {name: own_attributes[name] for name in value_by_name if name in own_attributes}
    own_attributes.update(value_by_name)
    try:
        yield
    finally:
        for name in value_by_name:
            del own_attributes[name]
        own_attributes.update(former_values)


@contextmanager
def _symbolic_inner_layer(layer: KerasLayer, anchor: KerasTensor) -> Iterator[None]:
    """Inside the block, the weights of `layer` are symbolic to others, and so are its calls on constants alone."""
    if not layer.weights:
        yield
        return
    weight_by_name = {name: value for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    call = layer.call

    def anchor_constant(leaf: Any) -> Any:
        return Constant()(anchor, leaf) if isinstance(leaf, tf.Tensor) else leaf

    def run(*args: Any, **kwargs: Any) -> Any:
        if not tf.executing_eagerly():  # Keras infers the shape of a symbolic call
            with _attributes(layer, weight_by_name):
                return call(*args, **kwargs)
        args, kwargs = keras.tree.map_structure(anchor_constant, (args, kwargs))
        return layer(*args, **kwargs)

    with _symbolic_weights(layer, anchor), _attributes(layer, {"call": run}):
        yield


def _is_translatable(function: KerasFunction) -> bool:
    return all(_is_translatable_node(node) for node in iter_nodes(function))


def _is_translatable_node(node: KerasNode) -> bool:
    """Whether the node is a layer, or an operator of `keras.ops` whose sizes are known."""
    keras_operation = node.operation
    if isinstance(keras_operation, (keras.Layer, keras.Function, Constant)):
        return True
    class_name = type(keras_operation).__name__
    sizes = getattr(keras_operation, _SHAPE_OPTIONS.get(class_name, ""), None)
    has_open_size = isinstance(sizes, (tuple, list)) and None in sizes
    return class_name in OPERATOR_NAMES and not has_open_size


def _operation_keys(function: KerasFunction) -> list[int | type]:
    """The layers (by id) and operator classes of a traced function, in order."""
    operations = [node.operation for node in iter_nodes(function)]
    return [id(operation) if isinstance(operation, keras.Layer) else type(operation) for operation in operations]


def _reaches_all_weights(layer: KerasLayer, function: KerasFunction) -> bool:
    """Whether every weight of `layer` belongs to a layer of the graph or is an argument of one of its operators."""
    reached_weight_ids = {id(weight) for node in iter_nodes(function) for weight in _node_weights(node)}
    return all(id(weight) in reached_weight_ids for weight in layer.weights)


def _node_weights(node: KerasNode) -> list[AnyKerasVariable]:
    layer_weights = node.operation.weights if isinstance(node.operation, keras.Layer) else []
    return [*layer_weights, *(leaf for leaf in _node_arguments(node) if is_tensor(leaf))]


def _node_arguments(node: KerasNode) -> list[Any]:
    return list(keras.tree.flatten((node.arguments.args, node.arguments.kwargs)))


def iter_nodes(functional_graph: KerasOperation) -> Iterator[KerasNode]:
    """The calls of a functional model or a traced function, in the order of computation."""
    for depth in sorted(functional_graph._nodes_by_depth, reverse=True):
        yield from (node for node in functional_graph._nodes_by_depth[depth] if not node.is_input)


def is_keras_graph(function: KerasFunction) -> bool:
    """Whether Keras can store a traced function: none of its operators uses a weight that belongs to no layer."""
    return not any(
        isinstance(node.operation, Constant) or any(isinstance(leaf, keras.Variable) for leaf in _node_arguments(node))
        for node in iter_nodes(function)
    )


def trace_mask(
    layer: KerasLayer, inputs: TensorTree, masks: TensorTree
) -> tuple[KerasFunction | None, list[bool]] | None:
    """Trace `layer.compute_mask` into a keras.Function of the tensors in `inputs` and `masks`.

    Returns the function of the masks that it computes (None if there are none), and for each output whether it has
    one; None if it cannot be traced.
    """
    fresh_tensor_by_id, (fresh_inputs, fresh_masks) = fresh_tensors((inputs, masks))
    try:
        output_masks = list(keras.tree.flatten(layer.compute_mask(fresh_inputs, fresh_masks)))
        present_masks = [mask for mask in output_masks if mask is not None]
        function = keras.Function(list(fresh_tensor_by_id.values()), present_masks) if present_masks else None
    except Exception:  # noqa: BLE001 - whatever the user's code raises for symbolic tensors
        return None
    return function, [mask is not None for mask in output_masks]
