"""The weighted layers of a folded model, and their kernels as weights between input and output channels."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.fake_quant import locate_kernel
from edgepipe.compress.qat.lowering.normalizations import WEIGHTED_LAYERS
from edgepipe.compress.qat.quantizers import KernelStructure, WeightQuantizer
from edgepipe.core.arrays import Array

K = tf_keras.layers


def is_weighted_layer(layer: Any) -> bool:
    """Whether `layer` is one convolution or dense layer and nothing else, so that scaling its kernel scales its output.

    A subclass may do anything to its kernel, and is none.
    """
    if type(layer) not in WEIGHTED_LAYERS or layer.activation is not tf_keras.activations.linear:
        return False
    return bool(getattr(layer, "data_format", "channels_last") == "channels_last")


def has_kernel(layer: Any) -> bool:
    """Whether `layer` has weights between channels, of whatever class it is."""
    return not isinstance(layer, K.PReLU) and any(len(weight.shape) > 1 for weight in layer.weights)


def read_kernel(layer: Any) -> Array:
    """The kernel as it is."""
    return np.asarray(getattr(layer, locate_kernel(layer)[0]))


def as_channel_pairs(layer: Any, array: Array) -> Array:
    """A kernel with (input, output) channels on its last two axes, (input, multiplier) of a depthwise one; and back."""
    return np.swapaxes(array, -1, -2) if isinstance(layer, K.Conv2DTranspose) else array


def spread_input_ids(layer: Any, ids: Array) -> Array:
    """Which of the input channels `ids` each weight of `pairs` reads: (rows, 1), or (rows, columns) with groups."""
    rows, columns = as_channel_pairs(layer, read_kernel(layer)).shape[-2:]
    groups = 1 if isinstance(layer, (K.DepthwiseConv2D, K.Dense)) else layer.groups
    ids_by_group = np.asarray(ids).reshape(groups, rows)
    return ids_by_group.T if groups == 1 else ids_by_group.repeat(columns // groups, axis=0).T


def spread_output_ids(layer: Any, ids: Array) -> Array:
    """Which of the output channels `ids` each weight of `pairs` makes: (1, columns), (rows, columns) if depthwise."""
    return np.asarray(ids).reshape(len(ids) // as_channel_pairs(layer, read_kernel(layer)).shape[-1], -1)


def count_outputs(layer: Any) -> int:
    """How many output channels there are."""
    return int(np.prod([read_kernel(layer).shape[axis] for axis in locate_kernel(layer)[1]]))


def broadcast_outputs(layer: Any, channel_values: Array) -> Array:
    """A value for each output channel, (outputs,), in the shape in which it multiplies the kernel."""
    shape = [size if axis in locate_kernel(layer)[1] else 1 for axis, size in enumerate(read_kernel(layer).shape)]
    return np.asarray(channel_values).reshape(shape)


def quantize_kernel(layer: Any) -> Array:
    """The kernel as TFLite's int8 has it: symmetric, 127 the largest weight of each output channel, in float again."""
    attribute, axis = locate_kernel(layer)
    return np.asarray(WeightQuantizer(axis, KernelStructure())(getattr(layer, attribute), training=False, weights={}))


def read_bias(layer: Any) -> Array:
    """The bias, zeros without one: (outputs,)."""
    return np.asarray(layer.bias) if layer.use_bias else np.zeros(count_outputs(layer), np.float32)
