"""The weighted layers of a folded model, and their kernels as weights between input and output channels."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.fake_quant import locate_kernel
from edgepipe.compress.qat.lowering.normalizations import WEIGHTED_LAYER_CLASSES
from edgepipe.compress.qat.quantizers import KernelStructure, WeightQuantizer
from edgepipe.core.arrays import Array

K = tf_keras.layers


def is_weighted_layer(layer: Any) -> bool:
    """Whether `layer` is exactly one convolution or dense layer, so that scaling its kernel scales its output.

    Subclasses do not count: they may use the kernel in other ways.
    """
    if type(layer) not in WEIGHTED_LAYER_CLASSES or layer.activation is not tf_keras.activations.linear:
        return False
    return bool(getattr(layer, "data_format", "channels_last") == "channels_last")


def has_kernel(layer: Any) -> bool:
    """Whether `layer`, of any class, has weights between channels."""
    return not isinstance(layer, K.PReLU) and any(len(weight.shape) > 1 for weight in layer.weights)


def read_kernel(layer: Any) -> Array:
    """The kernel of `layer`, in its own layout."""
    return np.asarray(getattr(layer, locate_kernel(layer)[0]))


def as_channel_pairs(layer: Any, array: Array) -> Array:
    """A kernel with (input, output) channels on its last two axes, (input, multiplier) if depthwise; self-inverse."""
    return np.swapaxes(array, -1, -2) if isinstance(layer, K.Conv2DTranspose) else array


def spread_input_ids(layer: Any, input_ids: Array) -> Array:
    """The one of the input channels `ids` that each weight reads: (rows, 1), or (rows, columns) with groups.

    Rows and columns as in `as_channel_pairs`.
    """
    row_count, column_count = as_channel_pairs(layer, read_kernel(layer)).shape[-2:]
    group_count = 1 if isinstance(layer, (K.DepthwiseConv2D, K.Dense)) else layer.groups
    ids_by_group = np.asarray(input_ids).reshape(group_count, row_count)
    return ids_by_group.T if group_count == 1 else ids_by_group.repeat(column_count // group_count, axis=0).T


def spread_output_ids(layer: Any, output_ids: Array) -> Array:
    """The one of the output channels `ids` that each weight produces: (1, columns), or (rows, columns) if depthwise.

    Rows and columns as in `as_channel_pairs`.
    """
    return np.asarray(output_ids).reshape(len(output_ids) // as_channel_pairs(layer, read_kernel(layer)).shape[-1], -1)


def count_outputs(layer: Any) -> int:
    """The number of output channels."""
    return int(np.prod([read_kernel(layer).shape[axis] for axis in locate_kernel(layer)[1]]))


def broadcast_outputs(layer: Any, channel_values: Array) -> Array:
    """One value for each output channel, (outputs,), reshaped to broadcast against the kernel."""
    broadcast_shape = [
        size if axis in locate_kernel(layer)[1] else 1 for axis, size in enumerate(read_kernel(layer).shape)
    ]
    return np.asarray(channel_values).reshape(broadcast_shape)


def quantize_kernel(layer: Any) -> Array:
    """The kernel quantized as in TFLite's int8, symmetric with 127 for each output channel's maximum, dequantized."""
    attribute, axis = locate_kernel(layer)
    return np.asarray(WeightQuantizer(axis, KernelStructure())(getattr(layer, attribute), training=False, weights={}))


def read_bias(layer: Any) -> Array:
    """The bias, zeros without one: (outputs,)."""
    return np.asarray(layer.bias) if layer.use_bias else np.zeros(count_outputs(layer), np.float32)
