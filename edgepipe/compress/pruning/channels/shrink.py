"""The smaller model: every layer rebuilt with its remaining channels and their weights."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.layer_calls import walk_layer_calls
from edgepipe.compress.pruning.channels.channel_groups import ChannelGroups
from edgepipe.compress.pruning.channels.channel_labels import LabeledWeight
from edgepipe.core.arrays import Array
from edgepipe.models.bridge_layers import LayerScale
from edgepipe.models.port_names import output_names

K = tf_keras.layers


def shrink_model(model: Any, channel_groups: ChannelGroups, removed_group_mask: Array) -> Any:
    """`model` without the groups in the mask `removed_groups`; it computes the same as with their weights at zero.

    Nested models are expanded; names of layers, inputs and outputs stay.
    """
    builder = _ShrunkModelBuilder(channel_groups, channel_groups.removable_roots[removed_group_mask])
    input_tensors = [_clone_input(tensor) for tensor in model.inputs]
    output_tensors = walk_layer_calls(model, input_tensors, builder.shrink_layer)
    shrunk_model = tf_keras.Model(
        input_tensors[0] if len(input_tensors) == 1 else _pack_inputs(model, input_tensors),
        output_tensors[0] if len(output_tensors) == 1 else output_tensors,
        name=model.name,
    )
    shrunk_model.output_names = output_names(model)
    for old_layer, new_layer in builder.layer_pair_by_id.values():
        new_layer.set_weights([builder.slice_weight(weight) for weight in old_layer.weights])
    return shrunk_model


def _clone_input(tensor: Any) -> Any:
    layer = tensor._keras_history.layer
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=layer.name)


def _pack_inputs(model: Any, inputs: list[Any]) -> Any:
    return tf.nest.pack_sequence_as(model._nested_inputs, inputs)


class _ShrunkModelBuilder:
    def __init__(self, channel_groups: ChannelGroups, removed_roots: Array) -> None:
        self.channel_groups, self.removed_roots = channel_groups, removed_roots
        self.layer_pair_by_id: dict[int, tuple[Any, Any]] = {}  # id of the layer -> (it, its smaller copy)

    def shrink_layer(self, layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if id(layer) not in self.layer_pair_by_id:
            self.layer_pair_by_id[id(layer)] = layer, type(layer).from_config(self._shrunk_config(layer, args))
        return self.layer_pair_by_id[id(layer)][1](*args, **kwargs)

    def _shrunk_config(self, layer: Any, args: Any) -> dict[str, Any]:
        config = dict(layer.get_config())
        output_labels = self.channel_groups.graph.output_labels_by_layer.get(layer.name)
        if output_labels is not None:
            config["units" if isinstance(layer, K.Dense) else "filters"] = self._count_remaining(output_labels)
            if (input_labels := self.channel_groups.graph.grouped_input_labels.get(layer.name)) is not None:
                config["groups"] = self._count_remaining(input_labels)
        elif isinstance(layer, LayerScale):
            config["projection_dim"] = args[0].shape[-1]
        elif isinstance(layer, K.Reshape):
            config["target_shape"] = self._target_shape(layer)
        return config

    def _target_shape(self, layer: Any) -> list[int]:
        shape, labels = list(layer.target_shape), self.channel_groups.graph.reshape_labels.get(layer.name)
        if labels is not None and shape[labels.axis - 1] != -1:
            shape[labels.axis - 1] = self._count_remaining(labels.ids)
        return shape

    def _count_remaining(self, ids: Array) -> int:
        return int((~np.isin(self.channel_groups.graph.union.find_roots(ids), self.removed_roots)).sum())

    def slice_weight(self, weight: Any) -> Array:
        """The weight without the removed channels."""
        array: Array = weight.numpy()
        labeled_weight: LabeledWeight | None = self.channel_groups.graph.labeled_weight_by_id.get(id(weight))
        for axis, ids in labeled_weight.labels_by_axis.items() if labeled_weight is not None else ():
            keep_mask = ~np.isin(self.channel_groups.graph.union.find_roots(ids), self.removed_roots)
            array = np.compress(keep_mask, array, axis=axis)
        return array
