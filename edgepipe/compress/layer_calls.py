"""The layer calls of a functional tf_keras model: in order, nested models opened up."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lower import arguments, nodes

Step = Callable[
    [Any, Any, dict[str, Any], Any], Any
]  # (layer, positional arguments, named ones, its outputs) -> values


def walk(model: Any, inputs: list[Any], step: Step) -> list[Any]:
    """Call `step` for each layer call of `model`, with values in place of tensors; gives the values of the outputs.

    Args:
        inputs: a value for each input of `model`, in order.
    """
    values = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    for node in nodes(model):
        args, kwargs = arguments(node, values)
        if isinstance(node.layer, tf_keras.Model):
            result: Any = walk(node.layer, tf.nest.flatten(args), step)
        else:
            result = step(node.layer, args, kwargs, node.outputs)
        for tensor, value in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(result), strict=True):
            values[str(id(tensor))] = value
    return [values[str(id(tensor))] for tensor in model.outputs]
