"""Normalizations: folded where they can be, otherwise written out in int8 operators."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.lower import Call, Lowering
from edgepipe.compress.qat.lowering.opaque_layers import kept

K = tf_keras.layers
WEIGHTED = (K.Conv2D, K.DepthwiseConv2D, K.Dense, K.Conv2DTranspose)  # an activation is a layer behind it


def batch_norm(low: Lowering, call: Call) -> Any:
    """Kept behind the convolution it folds into; standing alone, a 1 x 1 depthwise convolution with its statistics."""
    layer, x = call.layer, call.x
    if list(layer.axis) not in ([len(x.shape) - 1], [-1]):
        return kept(f"normalizes axis {list(layer.axis)}, not the channels")(low, call)
    inner, back = low.level(x)
    if isinstance(inner._keras_history.layer, WEIGHTED) and id(inner) in low.read_once:
        twin = type(layer).from_config({**layer.get_config(), "axis": -1})
        return back(low.apply(twin, inner, layer.get_weights()))
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    scale = gamma / np.sqrt(np.asarray(layer.moving_variance) + layer.epsilon)
    return low.affine(x, scale, beta - np.asarray(layer.moving_mean) * scale, "")


def rescaling(low: Lowering, call: Call) -> Any:
    """x * scale + offset: not trained."""
    return low.affine(call.x, np.asarray(call.layer.scale), np.asarray(call.layer.offset), "", trainable=False)


def normalization(low: Lowering, call: Call) -> Any:
    """(x - mean) / sqrt(variance), or its inverse, for statistics by channel."""
    layer = call.layer
    mean, variance = (np.asarray(part, np.float32) for part in (layer.mean, layer.variance))
    if mean.size not in (1, call.x.shape[-1]):
        return kept("statistics along other axes than channels")(low, call)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # keras.backend.epsilon(), as the layer has it
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    return low.affine(call.x, scale, offset, "", trainable=False)


def layer_scale(low: Lowering, call: Call) -> Any:
    """A factor for each channel: into the convolution before it, or a 1 x 1 depthwise convolution."""
    gamma = np.asarray(call.layer.get_weights()[0])
    inner, back = low.flat(call.x)
    before = inner._keras_history.layer
    if type(before) is K.Conv2D and call.sole and id(inner) in low.read_once:
        before.set_weights([values * gamma for values in before.get_weights()])
        return back(inner)
    return low.affine(call.x, gamma, np.zeros(1, np.float32), "")


def layer_norm(low: Lowering, call: Call) -> Any:
    """Ba et al. 2016 (arXiv 1607.06450) over the last axis."""
    layer, x = call.layer, call.x
    axes = [int(axis) % len(x.shape) for axis in np.ravel(layer.axis)]
    if axes != [len(x.shape) - 1]:
        return kept(f"normalizes axes {axes}, not the last")(low, call)
    normalized = _normalized(low, x, -1, layer.epsilon)
    return _scaled(low, layer, normalized)


def _normalized(low: Lowering, x: Any, axis: Any, epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon); each tensor in between has a range of its own."""
    mean = low.op("Mean", x, "mean", axis=axis, keepdims=True)
    centred = low.op("Subtract", [x, mean], "centred")
    squares = low.op("Multiply", [centred, centred], "squares")
    variance = low.op("Mean", squares, "variance", axis=axis, keepdims=True)
    shifted = low.op("Add", variance, "epsilon", float(epsilon))
    return low.op("Multiply", [centred, low.op("Rsqrt", shifted, "rsqrt")], "normalized")


def _scaled(low: Lowering, layer: Any, x: Any) -> Any:
    gamma = np.asarray(layer.gamma) if layer.scale else np.ones(1, np.float32)
    beta = np.asarray(layer.beta) if layer.center else np.zeros(1, np.float32)
    return low.affine(x, gamma, beta, "scaled") if layer.scale or layer.center else x


def group_norm(low: Lowering, call: Call) -> Any:
    """Wu & He 2018 (arXiv 1803.08494) over the last axis: statistics of each group of channels."""
    layer, x = call.layer, call.x
    shape = tuple(x.shape[1:])
    if layer.axis not in (-1, len(shape)):
        return kept(f"groups of axis {layer.axis}, not of the channels")(low, call)
    groups = shape[-1] if layer.groups == -1 else layer.groups
    grouped = low.reshape(x, (int(np.prod(shape[:-1])), groups, shape[-1] // groups), "groups")
    normalized = _normalized(low, grouped, (1, 3), layer.epsilon)
    return _scaled(low, layer, low.reshape(normalized, shape, "ungrouped"))
