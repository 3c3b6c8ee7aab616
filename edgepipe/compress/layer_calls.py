"""The layer calls of a functional tf_keras model: in order, nested models expanded."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lower import iter_nodes, resolve_arguments

# (layer, positional arguments, keyword arguments, its Keras outputs) -> a value for each output
LayerCallback = Callable[[Any, Any, dict[str, Any], Any], Any]


def walk_layer_calls(model: Any, input_values: list[Any], apply_layer: LayerCallback) -> list[Any]:
    """Call `apply_layer` for each layer call of `model`, with values in place of tensors; returns the outputs' values.

    Args:
        model: a functional tf_keras model.
        input_values: a value for each input of `model`, in order.
        apply_layer: computes the values of a layer's outputs from those of its inputs.
    """
    value_by_tensor_id = dict(zip((str(id(tensor)) for tensor in model.inputs), input_values, strict=True))
    for node in iter_nodes(model):
        args, kwargs = resolve_arguments(node, value_by_tensor_id)
        if isinstance(node.layer, tf_keras.Model):
            output_values: Any = walk_layer_calls(node.layer, tf.nest.flatten(args), apply_layer)
        else:
            output_values = apply_layer(node.layer, args, kwargs, node.outputs)
        for tensor, output_value in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(output_values), strict=True):
            value_by_tensor_id[str(id(tensor))] = output_value
    return [value_by_tensor_id[str(id(tensor))] for tensor in model.outputs]
