"""How each class of layer treats channels: the dependency graph of channel pruning, one small function a class.

A class that stands in no table stops channels: what it reads and gives stays, and the report names it.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.layer_calls import walk
from edgepipe.compress.pruning.channels.channel_labels import Graph, Labels, on_last
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import LayerScale, Operator

K = tf_keras.layers
Shape = tuple[int | None, ...]
Rule = Callable[[Graph, Any, list[Labels], Shape], Labels]  # (graph, layer, inputs, shape of the output) -> its labels
_LARGEST = 1 << 24  # elements of a tensor whose labels are followed through a reshape one by one


def graph_of(model: Any) -> Graph:
    """The channels of the functional tf_keras `model`, its inputs and outputs fixed.

    Raises:
        InputError: two layers have one name.
    """
    graph = Graph()
    inputs = [_input(graph, tensor) for tensor in model.inputs]

    named: dict[str, Any] = {}

    def step(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if named.setdefault(layer.name, layer) is not layer:
            raise InputError(
                f"two layers of '{model.name}' are called '{layer.name}', in different nested models, which become one "
                "when channels go: rename one of them"
            )
        values = [part for part in tf.nest.flatten([args, kwargs]) if isinstance(part, Labels)]
        given = tf.nest.flatten(outputs)
        return [_labels(graph, layer, values, tensor, len(given)) for tensor in given]

    for name, labels in zip(model.output_names, walk(model, inputs, step), strict=True):
        graph.union.freeze(labels.ids, f"'{name}' is an output of the model")
    return graph


def _input(graph: Graph, tensor: Any) -> Labels:
    ids = graph.union.fresh(tensor.shape[-1] or 1)
    graph.union.freeze(ids, f"'{tensor._keras_history.layer.name}' is an input of the model")
    return on_last(ids, tuple(tensor.shape))


def _labels(graph: Graph, layer: Any, values: list[Labels], tensor: Any, outputs: int) -> Labels:
    shape: Shape = tuple(tensor.shape)
    rule = _rule(layer) if outputs == 1 else None
    if rule is None:
        return graph.barrier(layer, iter(values), shape, _why(layer))
    try:
        return rule(graph, layer, values, shape)
    except Stopped as reason:
        return graph.barrier(layer, iter(values), shape, str(reason))


def _why(layer: Any) -> str:
    if isinstance(layer, Operator):
        return f"an operator {layer.operator}, through which channels are not followed"
    known = STOPS.get(type(layer))
    return known or f"a {type(layer).__name__}, through which channels are not followed"


def _rule(layer: Any) -> Rule | None:
    if isinstance(layer, Operator):
        return OPERATORS.get(layer.operator)
    return RULES.get(type(layer))


class Stopped(Exception):  # noqa: N818  a reason, never seen by a caller
    """Why channels do not pass this layer."""


def _last(value: Labels) -> Array:
    """The labels of the last axis."""
    if not value.last:
        raise Stopped(f"whose channels lie on axis {value.axis}, not on the last")
    return value.ids


def _channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise Stopped("whose channels come first (data_format: channels_first)")


def _passes(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    _channels_last(layer)
    return on_last(_last(values[0]), shape)


def _pools(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    """Global pooling may drop the axes of places."""
    _channels_last(layer)
    return on_last(_last(values[0]), shape)


def _convolves(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    _channels_last(layer)
    rank = layer.rank
    if layer.groups == len(_last(values[0])) > 1:
        return _grouped(graph, layer, values[0].ids, shape)
    if layer.groups > 1:
        raise Stopped(f"whose {layer.groups} groups must keep their sizes")
    return _makes(graph, layer, layer.kernel, rank, rank + 1, values[0], shape, math.prod(_sides(shape)))


def _grouped(graph: Graph, layer: Any, ids: Array, shape: Shape) -> Labels:
    """A convolution with as many groups as channels is a depthwise one."""
    made = ids.repeat(layer.filters // layer.groups)
    graph.grouped[layer.name], graph.outputs[layer.name] = ids, made
    graph.cut(layer, layer.kernel, {layer.rank + 1: made})
    if layer.use_bias:
        graph.cut(layer, layer.bias, {0: made})
    graph.uses.append((id(layer.kernel), math.prod(_sides(shape))))
    return on_last(made, shape)


def _transposes(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    _channels_last(layer)
    places = math.prod(_sides(values[0].shape))  # a transposed convolution is used at each place of its input
    return _makes(graph, layer, layer.kernel, layer.rank + 1, layer.rank, values[0], shape, places)


def _dense(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    return _makes(graph, layer, layer.kernel, 0, 1, values[0], shape, math.prod(_sides(shape)))


def _sides(shape: Shape) -> tuple[int, ...]:
    return tuple(side or 1 for side in shape[1:-1])


def _makes(
    graph: Graph, layer: Any, kernel: Any, reads: int, makes: int, value: Labels, shape: Shape, places: int
) -> Labels:
    read, made = _last(value), graph.made(layer, kernel.shape[makes])
    graph.cut(layer, kernel, {reads: read, makes: made}, reads)
    if layer.use_bias:
        graph.cut(layer, layer.bias, {0: made})
    graph.uses.append((id(kernel), places))
    return on_last(made, shape)


def _depthwise(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    _channels_last(layer)
    ids = _last(values[0])
    made = ids.repeat(layer.depth_multiplier)
    graph.cut(layer, layer.depthwise_kernel, {len(layer.depthwise_kernel.shape) - 2: ids})
    if layer.use_bias:
        graph.cut(layer, layer.bias, {0: made})
    graph.uses.append((id(layer.depthwise_kernel), math.prod(_sides(shape))))
    return on_last(made, shape)


def _separable(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    _channels_last(layer)
    ids, places = _last(values[0]), math.prod(_sides(shape))
    graph.cut(layer, layer.depthwise_kernel, {layer.rank: ids})
    graph.uses.append((id(layer.depthwise_kernel), places))
    between = on_last(ids.repeat(layer.depth_multiplier), shape)
    return _makes(graph, layer, layer.pointwise_kernel, layer.rank, layer.rank + 1, between, shape, places)


def _normalizes(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    if list(layer.axis) != [len(shape) - 1]:
        raise Stopped(f"which normalizes along axis {list(layer.axis)}")
    ids = _last(values[0])
    for weight in layer.weights:
        graph.cut(layer, weight, {0: ids})
    return on_last(ids, shape)


def _prelu(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    ids = _last(values[0])
    if layer.alpha.shape[-1] == len(ids):  # else `shared_axes` has one slope for all channels
        graph.cut(layer, layer.alpha, {len(shape) - 2: ids})
    return on_last(ids, shape)


def _activates(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    if getattr(layer, "activation", None) is tf_keras.activations.softmax:
        raise Stopped(SOFTMAX)
    return _passes(graph, layer, values, shape)


def _rescales(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    if np.size(layer.scale) > 1 or np.size(layer.offset) > 1:
        raise Stopped("which has a scale or an offset for each channel in its configuration")
    return _passes(graph, layer, values, shape)


def _merges(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    """Elementwise: equal places belong together; one channel that is spread over many must stay."""
    if isinstance(layer, Operator) and "array" in layer.arguments:
        raise Stopped("which has an array among its arguments")
    full = [value for value in values if len(_last(value)) == shape[-1]]
    if not full:
        raise Stopped("none of whose inputs has the channels of its output")
    for value in values:
        if len(value.ids) == shape[-1]:
            graph.union.join(full[0].ids, value.ids)
        else:
            graph.union.freeze(value.ids, f"spread over {shape[-1]} channels by '{layer.name}'")
    return on_last(full[0].ids, shape)


def _divides(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    """By a constant only: where channels divide, a removed one would be a division by zero."""
    if not isinstance(json.loads(layer.arguments)["args"][1], (int, float)):
        raise Stopped("which divides by channels")
    return _merges(graph, layer, values, shape)


def _concatenates(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    axis = layer.axis % len(shape)
    if axis == len(shape) - 1:
        return on_last(np.concatenate([_last(value) for value in values]), shape)
    for value in values[1:]:
        graph.union.join(_last(values[0]), _last(value))
    return on_last(values[0].ids, shape)


def _reshapes(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    """Follows every element: a flattened picture has the label of each channel once for each place."""
    given, axis = values[0].shape[1:], values[0].axis - 1
    sizes = [size for size in given if size is not None]
    if len(sizes) < len(given) or None in shape[1:] or math.prod(sizes) > _LARGEST:
        raise Stopped(f"whose shapes {given} and {shape[1:]} are not all known, or too large to follow")
    spread = np.broadcast_to(np.expand_dims(values[0].ids, tuple(range(1, len(given) - axis))), sizes)
    elements = graph.union.roots(spread).reshape([size or 1 for size in shape[1:]])
    for axis in reversed(range(len(shape) - 1)):
        ids = np.moveaxis(elements, axis, -1).reshape(-1, elements.shape[axis])
        if (ids == ids[0]).all():
            graph.reshaped[layer.name] = Labels(ids[0], shape, axis + 1)
            return graph.reshaped[layer.name]
    raise Stopped(f"which mixes channels, from {given} to {shape[1:]}")


def _permutes(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    return Labels(values[0].ids, shape, layer.dims.index(values[0].axis) + 1)


def _reduces(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    """A mean or maximum over places."""
    given = json.loads(layer.arguments)
    axes = given["kwargs"].get("axis")
    axes = [axes] if isinstance(axes, int) else next(iter(axes.values())) if isinstance(axes, dict) else None
    rank = len(values[0].shape)
    if axes is None or rank - 1 in [axis % rank for axis in axes]:
        raise Stopped("which reduces over channels")
    return on_last(_last(values[0]), shape)


def _scales(graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
    ids = _last(values[0])
    graph.cut(layer, layer.gamma, {0: ids})
    return on_last(ids, shape)


def _table() -> Iterator[tuple[Any, Rule]]:
    passing = (K.ReLU, K.LeakyReLU, K.ELU, K.ThresholdedReLU, K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D,
               K.AlphaDropout, K.GaussianNoise, K.GaussianDropout, K.ActivityRegularization, K.ZeroPadding1D,
               K.ZeroPadding2D, K.ZeroPadding3D, K.Cropping1D, K.Cropping2D, K.Cropping3D, K.UpSampling1D,
               K.UpSampling2D, K.UpSampling3D, K.MaxPooling1D, K.MaxPooling2D, K.MaxPooling3D, K.AveragePooling1D,
               K.AveragePooling2D, K.AveragePooling3D, K.Resizing)  # fmt: skip
    pools = (K.GlobalAveragePooling1D, K.GlobalAveragePooling2D, K.GlobalAveragePooling3D,
             K.GlobalMaxPooling1D, K.GlobalMaxPooling2D, K.GlobalMaxPooling3D)  # fmt: skip
    merges = (K.Add, K.Subtract, K.Multiply, K.Average, K.Maximum, K.Minimum)
    for classes, rule in ((passing, _passes), (pools, _pools), (merges, _merges)):
        yield from ((cls, rule) for cls in classes)
    yield from ((cls, _convolves) for cls in (K.Conv1D, K.Conv2D, K.Conv3D))
    yield from ((cls, _transposes) for cls in (K.Conv1DTranspose, K.Conv2DTranspose, K.Conv3DTranspose))
    yield from ((cls, _depthwise) for cls in (K.DepthwiseConv1D, K.DepthwiseConv2D))
    yield from ((cls, _separable) for cls in (K.SeparableConv1D, K.SeparableConv2D))
    yield from {K.Dense: _dense, K.BatchNormalization: _normalizes, K.PReLU: _prelu, K.Activation: _activates,
                K.Rescaling: _rescales, K.Concatenate: _concatenates, K.Flatten: _reshapes, K.Reshape: _reshapes,
                K.Permute: _permutes, LayerScale: _scales}.items()  # fmt: skip


RULES: dict[Any, Rule] = dict(_table())
SOFTMAX = "which divides by the sum over all channels"
STOPS = {
    K.Softmax: SOFTMAX,
    K.LayerNormalization: "which takes mean and variance over all channels",
    K.GroupNormalization: "which takes mean and variance over groups of channels",
    K.UnitNormalization: "which divides by the norm over all channels",
    K.MultiHeadAttention: "whose heads have fixed sizes",
    K.Embedding: "whose rows are looked up",
}
_ELEMENTWISE = ("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Silu", "HardSilu", "HardSigmoid", "Sigmoid",
                "Softplus", "Softsign", "Tanh", "Mish", "Abs", "Absolute", "Negative", "Square", "Exp",
                "Clip")  # fmt: skip
_BETWEEN = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
OPERATORS: dict[str, Rule] = {**dict.fromkeys(_ELEMENTWISE, _passes), **dict.fromkeys(_BETWEEN, _merges),
                              **dict.fromkeys(("Divide", "TrueDivide"), _divides),
                              **dict.fromkeys(("Mean", "Max", "Min", "Sum", "Amax", "Amin"), _reduces)}  # fmt: skip
