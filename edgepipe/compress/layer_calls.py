"""The layer calls of a functional tf_keras model: in order, nested models opened up."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lower import nodes, resolve_arguments

LayerCallback = Callable[
    [Any, Any, dict[str, Any], Any], Any
]  # (layer, positional arguments, named ones, its outputs) -> values


def walk_layer_calls(model: Any, inputs: list[Any], apply_layer: LayerCallback) -> list[Any]:
    """Call `step` for each layer call of `model`, with values in place of tensors; gives the values of the outputs.

    Args:
        inputs: a value for each input of `model`, in order.
    """
    value_by_tensor = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    for node in nodes(model):
        args, kwargs = resolve_arguments(node, value_by_tensor)
        if isinstance(node.layer, tf_keras.Model):
            outputs: Any = walk_layer_calls(node.layer, tf.nest.flatten(args), apply_layer)
        else:
            outputs = apply_layer(node.layer, args, kwargs, node.outputs)
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            value_by_tensor[str(id(tensor))] = output
    return [value_by_tensor[str(id(tensor))] for tensor in model.outputs]
