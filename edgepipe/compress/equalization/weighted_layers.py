"""The weighted layers of a folded model, and their kernels as weights between input and output channels."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.fake_quant import kernel_of
from edgepipe.compress.qat.lowering.normalizations import WEIGHTED
from edgepipe.compress.qat.quantizers import Ties, WeightQuantizer
from edgepipe.core.arrays import Array

K = tf_keras.layers


def weighted(layer: Any) -> bool:
    """Whether `layer` is one convolution or dense layer and nothing else, so that scaling its kernel scales its output.

    A subclass may do anything to its kernel, and is none.
    """
    if type(layer) not in WEIGHTED or layer.activation is not tf_keras.activations.linear:
        return False
    return bool(getattr(layer, "data_format", "channels_last") == "channels_last")


def holds_kernel(layer: Any) -> bool:
    """Whether `layer` has weights between channels, of whatever class it is."""
    return not isinstance(layer, K.PReLU) and any(len(weight.shape) > 1 for weight in layer.weights)


def kernel(layer: Any) -> Array:
    """The kernel as it is."""
    return np.asarray(getattr(layer, kernel_of(layer)[0]))


def pairs(layer: Any, values: Array) -> Array:
    """A kernel with (input, output) channels on its last two axes, (input, multiplier) of a depthwise one; and back."""
    return np.swapaxes(values, -1, -2) if isinstance(layer, K.Conv2DTranspose) else values


def read_by(layer: Any, ids: Array) -> Array:
    """Which of the input channels `ids` each weight of `pairs` reads: (rows, 1), or (rows, columns) with groups."""
    rows, columns = pairs(layer, kernel(layer)).shape[-2:]
    groups = 1 if isinstance(layer, (K.DepthwiseConv2D, K.Dense)) else layer.groups
    by_group = np.asarray(ids).reshape(groups, rows)
    return by_group.T if groups == 1 else by_group.repeat(columns // groups, axis=0).T


def made_by(layer: Any, ids: Array) -> Array:
    """Which of the output channels `ids` each weight of `pairs` makes: (1, columns), (rows, columns) if depthwise."""
    return np.asarray(ids).reshape(len(ids) // pairs(layer, kernel(layer)).shape[-1], -1)


def outputs(layer: Any) -> int:
    """How many output channels there are."""
    return int(np.prod([kernel(layer).shape[axis] for axis in kernel_of(layer)[1]]))


def along_outputs(layer: Any, values: Array) -> Array:
    """A value for each output channel, (outputs,), in the shape in which it multiplies the kernel."""
    shape = [size if axis in kernel_of(layer)[1] else 1 for axis, size in enumerate(kernel(layer).shape)]
    return np.asarray(values).reshape(shape)


def eight_bits(layer: Any) -> Array:
    """The kernel as TFLite's int8 has it: symmetric, 127 the largest weight of each output channel, in float again."""
    attribute, axis = kernel_of(layer)
    return np.asarray(WeightQuantizer(axis, Ties())(getattr(layer, attribute), training=False, weights={}))


def bias(layer: Any) -> Array:
    """The bias, zeros without one: (outputs,)."""
    return np.asarray(layer.bias) if layer.use_bias else np.zeros(outputs(layer), np.float32)
