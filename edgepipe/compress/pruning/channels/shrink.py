"""The smaller model: every layer again with the channels that are left, and their weights."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.layer_calls import walk
from edgepipe.compress.pruning.channels.channel_groups import Groups
from edgepipe.compress.pruning.channels.channel_labels import Cut
from edgepipe.core.arrays import Array
from edgepipe.models.bridge_layers import LayerScale

K = tf_keras.layers


def shrink(model: Any, groups: Groups, gone: Array) -> Any:
    """`model` without the groups marked in `gone`: what is left computes as if the others were zero.

    Nested models are opened up; names of layers, inputs and outputs stay.
    """
    builder = _Builder(groups, groups.roots[gone])
    inputs = [_input(tensor) for tensor in model.inputs]
    outputs = walk(model, inputs, builder.call)
    smaller = tf_keras.Model(inputs[0] if len(inputs) == 1 else _packed(model, inputs),
                             outputs[0] if len(outputs) == 1 else outputs, name=model.name)  # fmt: skip
    smaller.output_names = list(model.output_names)
    for old, new in builder.made.values():
        new.set_weights([builder.sliced(weight) for weight in old.weights])
    return smaller


def _input(tensor: Any) -> Any:
    layer = tensor._keras_history.layer
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=layer.name)


def _packed(model: Any, inputs: list[Any]) -> Any:
    return tf.nest.pack_sequence_as(model._nested_inputs, inputs)


class _Builder:
    def __init__(self, groups: Groups, removed: Array) -> None:
        self.groups, self.removed = groups, removed
        self.made: dict[int, tuple[Any, Any]] = {}  # id of the layer -> (it, its smaller twin)

    def call(self, layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if id(layer) not in self.made:
            self.made[id(layer)] = layer, type(layer).from_config(self._config(layer, args))
        return self.made[id(layer)][1](*args, **kwargs)

    def _config(self, layer: Any, args: Any) -> dict[str, Any]:
        config = dict(layer.get_config())
        made = self.groups.graph.outputs.get(layer.name)
        if made is not None:
            config["units" if isinstance(layer, K.Dense) else "filters"] = self._left(made)
            if (read := self.groups.graph.grouped.get(layer.name)) is not None:
                config["groups"] = self._left(read)
        elif isinstance(layer, LayerScale):
            config["projection_dim"] = args[0].shape[-1]
        elif isinstance(layer, K.Reshape):
            config["target_shape"] = self._target(layer)
        return config

    def _target(self, layer: Any) -> list[int]:
        shape, labels = list(layer.target_shape), self.groups.graph.reshaped.get(layer.name)
        if labels is not None and shape[labels.axis - 1] != -1:
            shape[labels.axis - 1] = self._left(labels.ids)
        return shape

    def _left(self, ids: Array) -> int:
        return int((~np.isin(self.groups.graph.union.roots(ids), self.removed)).sum())

    def sliced(self, weight: Any) -> Array:
        """The weight without what is removed."""
        values: Array = weight.numpy()
        cut: Cut | None = self.groups.graph.cuts.get(id(weight))
        for axis, ids in cut.axes.items() if cut is not None else ():
            left = ~np.isin(self.groups.graph.union.roots(ids), self.removed)
            values = np.compress(left, values, axis=axis)
        return values
