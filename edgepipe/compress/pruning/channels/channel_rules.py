"""How each layer class treats channels: the dependency graph of channel pruning, one small function per class.

A class without a rule is a barrier: the channels that it reads and outputs stay, and the report names it.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.layer_calls import walk_layer_calls
from edgepipe.compress.pruning.channels.channel_labels import ChannelGraph, ChannelLabels, label_last_axis
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import LayerScale, MaskAttachment, MaskReader, OperatorLayer

K = tf_keras.layers
Shape = tuple[int | None, ...]
# (graph, layer, input labels, output shape) -> output labels
ChannelRule = Callable[[ChannelGraph, Any, list[ChannelLabels], Shape], ChannelLabels]
_MAX_RESHAPE_ELEMENTS = 1 << 24  # of a tensor whose labels are tracked through a reshape, element by element


def build_channel_graph(model: Any) -> ChannelGraph:
    """The channels of the functional tf_keras `model`, its inputs and outputs frozen.

    Raises:
        InputError: two layers have the same name.
    """
    graph = ChannelGraph()
    model_input_labels = [_label_input(graph, tensor) for tensor in model.inputs]

    layers_by_name: dict[str, Any] = {}

    def label_layer(layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if layers_by_name.setdefault(layer.name, layer) is not layer:
            raise InputError(
                f"two layers of '{model.name}' are called '{layer.name}', in different nested models, which are merged "
                "when channels are removed: rename one of them"
            )
        input_labels = [argument for argument in tf.nest.flatten([args, kwargs]) if isinstance(argument, ChannelLabels)]
        output_tensors = tf.nest.flatten(outputs)
        return [_label_output(graph, layer, input_labels, tensor, len(output_tensors)) for tensor in output_tensors]

    for name, labels in zip(model.output_names, walk_layer_calls(model, model_input_labels, label_layer), strict=True):
        graph.union.freeze(labels.ids, f"'{name}' is an output of the model")
    return graph


def _label_input(graph: ChannelGraph, tensor: Any) -> ChannelLabels:
    ids = graph.union.new_labels(tensor.shape[-1] or 1)
    graph.union.freeze(ids, f"'{tensor._keras_history.layer.name}' is an input of the model")
    return label_last_axis(ids, tuple(tensor.shape))


def _label_output(
    graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], tensor: Any, output_count: int
) -> ChannelLabels:
    shape: Shape = tuple(tensor.shape)
    rule = _find_rule(layer) if output_count == 1 else None
    if rule is None:
        return graph.add_barrier(layer, iter(input_labels), shape, _barrier_reason(layer))
    try:
        return rule(graph, layer, input_labels, shape)
    except ChannelBarrier as reason:
        return graph.add_barrier(layer, iter(input_labels), shape, str(reason))


def _barrier_reason(layer: Any) -> str:
    if isinstance(layer, OperatorLayer):
        return f"an operator {layer.operator}, through which channels are not followed"
    class_reason = BARRIER_REASONS.get(type(layer))
    return class_reason or f"a {type(layer).__name__}, through which channels are not followed"


def _find_rule(layer: Any) -> ChannelRule | None:
    if isinstance(layer, OperatorLayer):
        return RULE_BY_OPERATOR.get(layer.operator)
    return RULE_BY_LAYER_CLASS.get(type(layer))


class ChannelBarrier(Exception):  # noqa: N818  a reason, never seen by a caller
    """Why channels cannot be tracked through a layer."""


def _last_axis_ids(labels: ChannelLabels) -> Array:
    """The labels of the last axis; a `ChannelBarrier` if the channels are on another."""
    if not labels.is_channels_last:
        raise ChannelBarrier(f"whose channels are on axis {labels.axis}, not on the last")
    return labels.ids


def _check_channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ChannelBarrier("whose channels come first (data_format: channels_first)")


def _identity(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    _check_channels_last(layer)
    return label_last_axis(_last_axis_ids(input_labels[0]), shape)


def _pooling(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """Pooling; global pooling may drop the spatial axes."""
    _check_channels_last(layer)
    return label_last_axis(_last_axis_ids(input_labels[0]), shape)


def _convolution(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    _check_channels_last(layer)
    rank = layer.rank
    if layer.groups == len(_last_axis_ids(input_labels[0])) > 1:
        return _grouped_convolution(graph, layer, input_labels[0].ids, shape)
    if layer.groups > 1:
        raise ChannelBarrier(f"whose {layer.groups} groups must keep their sizes")
    return _label_kernel(
        graph, layer, layer.kernel, rank, rank + 1, input_labels[0], shape, math.prod(_spatial_sizes(shape))
    )


def _grouped_convolution(graph: ChannelGraph, layer: Any, ids: Array, shape: Shape) -> ChannelLabels:
    """A convolution with as many groups as input channels, which is depthwise."""
    output_ids = ids.repeat(layer.filters // layer.groups)
    graph.grouped_input_labels[layer.name], graph.output_labels_by_layer[layer.name] = ids, output_ids
    graph.label_weight(layer, layer.kernel, {layer.rank + 1: output_ids})
    if layer.use_bias:
        graph.label_weight(layer, layer.bias, {0: output_ids})
    graph.kernel_use_counts.append((id(layer.kernel), math.prod(_spatial_sizes(shape))))
    return label_last_axis(output_ids, shape)


def _transposed_convolution(
    graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape
) -> ChannelLabels:
    _check_channels_last(layer)
    use_count = math.prod(_spatial_sizes(input_labels[0].shape))  # the kernel is applied at each input position
    return _label_kernel(graph, layer, layer.kernel, layer.rank + 1, layer.rank, input_labels[0], shape, use_count)


def _dense(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    return _label_kernel(graph, layer, layer.kernel, 0, 1, input_labels[0], shape, math.prod(_spatial_sizes(shape)))


def _spatial_sizes(shape: Shape) -> tuple[int, ...]:
    return tuple(size or 1 for size in shape[1:-1])


def _label_kernel(
    graph: ChannelGraph,
    layer: Any,
    kernel: Any,
    input_axis: int,
    output_axis: int,
    input_labels: ChannelLabels,
    shape: Shape,
    use_count: int,
) -> ChannelLabels:
    input_ids, output_ids = _last_axis_ids(input_labels), graph.label_outputs(layer, kernel.shape[output_axis])
    graph.label_weight(layer, kernel, {input_axis: input_ids, output_axis: output_ids}, input_axis)
    if layer.use_bias:
        graph.label_weight(layer, layer.bias, {0: output_ids})
    graph.kernel_use_counts.append((id(kernel), use_count))
    return label_last_axis(output_ids, shape)


def _depthwise(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    _check_channels_last(layer)
    ids = _last_axis_ids(input_labels[0])
    output_ids = ids.repeat(layer.depth_multiplier)
    graph.label_weight(layer, layer.depthwise_kernel, {len(layer.depthwise_kernel.shape) - 2: ids})
    if layer.use_bias:
        graph.label_weight(layer, layer.bias, {0: output_ids})
    graph.kernel_use_counts.append((id(layer.depthwise_kernel), math.prod(_spatial_sizes(shape))))
    return label_last_axis(output_ids, shape)


def _separable(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    _check_channels_last(layer)
    ids, use_count = _last_axis_ids(input_labels[0]), math.prod(_spatial_sizes(shape))
    graph.label_weight(layer, layer.depthwise_kernel, {layer.rank: ids})
    graph.kernel_use_counts.append((id(layer.depthwise_kernel), use_count))
    depthwise_labels = label_last_axis(ids.repeat(layer.depth_multiplier), shape)
    return _label_kernel(
        graph, layer, layer.pointwise_kernel, layer.rank, layer.rank + 1, depthwise_labels, shape, use_count
    )


def _batch_norm(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    if list(layer.axis) != [len(shape) - 1]:
        raise ChannelBarrier(f"which normalizes along axis {list(layer.axis)}")
    ids = _last_axis_ids(input_labels[0])
    for weight in layer.weights:
        graph.label_weight(layer, weight, {0: ids})
    return label_last_axis(ids, shape)


def _prelu(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    ids = _last_axis_ids(input_labels[0])
    if layer.alpha.shape[-1] == len(ids):  # otherwise `shared_axes` has one slope for all channels
        graph.label_weight(layer, layer.alpha, {len(shape) - 2: ids})
    return label_last_axis(ids, shape)


def _activation(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    if getattr(layer, "activation", None) is tf_keras.activations.softmax:
        raise ChannelBarrier(SOFTMAX_REASON)
    return _identity(graph, layer, input_labels, shape)


def _rescaling(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    if np.size(layer.scale) > 1 or np.size(layer.offset) > 1:
        raise ChannelBarrier("which has a scale or an offset for each channel in its config")
    return _identity(graph, layer, input_labels, shape)


def _elementwise(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """Elementwise: channels at the same index are joined; a channel that is broadcast over several must stay."""
    if isinstance(layer, OperatorLayer) and "array" in layer.arguments:
        raise ChannelBarrier("which has an array among its arguments")
    full_labels = [labels for labels in input_labels if len(_last_axis_ids(labels)) == shape[-1]]
    if not full_labels:
        raise ChannelBarrier("none of whose inputs has the channels of its output")
    for labels in input_labels:
        if len(labels.ids) == shape[-1]:
            graph.union.join(full_labels[0].ids, labels.ids)
        else:
            graph.union.freeze(labels.ids, f"broadcast over {shape[-1]} channels by '{layer.name}'")
    return label_last_axis(full_labels[0].ids, shape)


def _division(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """Division by a constant only: as a divisor, a removed channel would be a division by zero."""
    if not isinstance(json.loads(layer.arguments)["args"][1], (int, float)):
        raise ChannelBarrier("which divides by channels")
    return _elementwise(graph, layer, input_labels, shape)


def _concatenation(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    axis = layer.axis % len(shape)
    if axis == len(shape) - 1:
        return label_last_axis(np.concatenate([_last_axis_ids(labels) for labels in input_labels]), shape)
    for labels in input_labels[1:]:
        graph.union.join(_last_axis_ids(input_labels[0]), _last_axis_ids(labels))
    return label_last_axis(input_labels[0].ids, shape)


def _reshape(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """Tracks every element: a flattened image has the label of each channel once for each position."""
    input_sizes, axis = input_labels[0].shape[1:], input_labels[0].axis - 1
    known_sizes = [size for size in input_sizes if size is not None]
    if len(known_sizes) < len(input_sizes) or None in shape[1:] or math.prod(known_sizes) > _MAX_RESHAPE_ELEMENTS:
        raise ChannelBarrier(f"whose shapes {input_sizes} and {shape[1:]} are not all known, or too large to track")
    broadcast_ids = np.broadcast_to(
        np.expand_dims(input_labels[0].ids, tuple(range(1, len(input_sizes) - axis))), known_sizes
    )
    element_labels = graph.union.find_roots(broadcast_ids).reshape([size or 1 for size in shape[1:]])
    for axis in reversed(range(len(shape) - 1)):
        ids = np.moveaxis(element_labels, axis, -1).reshape(-1, element_labels.shape[axis])
        if (ids == ids[0]).all():
            graph.reshape_labels[layer.name] = ChannelLabels(ids[0], shape, axis + 1)
            return graph.reshape_labels[layer.name]
    raise ChannelBarrier(f"which mixes channels, from {input_sizes} to {shape[1:]}")


def _permute(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    return ChannelLabels(input_labels[0].ids, shape, layer.dims.index(input_labels[0].axis) + 1)


def _reduction(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """A mean or maximum over spatial axes."""
    arguments = json.loads(layer.arguments)
    axes = arguments["kwargs"].get("axis")
    axes = [axes] if isinstance(axes, int) else next(iter(axes.values())) if isinstance(axes, dict) else None
    rank = len(input_labels[0].shape)
    if axes is None or rank - 1 in [axis % rank for axis in axes]:
        raise ChannelBarrier("which reduces over channels")
    return label_last_axis(_last_axis_ids(input_labels[0]), shape)


def _layer_scale(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    ids = _last_axis_ids(input_labels[0])
    graph.label_weight(layer, layer.gamma, {0: ids})
    return label_last_axis(ids, shape)


def _mask(graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape) -> ChannelLabels:
    """A mask has no channels, and does not depend on those of its tensor."""
    return graph.add_barrier(layer, iter(()), shape, "which is a mask")


def _layer_rules() -> Iterator[tuple[Any, ChannelRule]]:
    pass_through_classes = (
        K.ReLU, K.LeakyReLU, K.ELU, K.ThresholdedReLU, K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D,
        K.AlphaDropout, K.GaussianNoise, K.GaussianDropout, K.ActivityRegularization, K.ZeroPadding1D,
        K.ZeroPadding2D, K.ZeroPadding3D, K.Cropping1D, K.Cropping2D, K.Cropping3D, K.UpSampling1D,
        K.UpSampling2D, K.UpSampling3D, K.MaxPooling1D, K.MaxPooling2D, K.MaxPooling3D, K.AveragePooling1D,
        K.AveragePooling2D, K.AveragePooling3D, K.Resizing,
    )  # fmt: skip
    pooling_classes = (
        K.GlobalAveragePooling1D, K.GlobalAveragePooling2D, K.GlobalAveragePooling3D,
        K.GlobalMaxPooling1D, K.GlobalMaxPooling2D, K.GlobalMaxPooling3D,
    )  # fmt: skip
    elementwise_classes = (K.Add, K.Subtract, K.Multiply, K.Average, K.Maximum, K.Minimum)
    for classes, rule in (
        (pass_through_classes, _identity),
        (pooling_classes, _pooling),
        (elementwise_classes, _elementwise),
    ):
        yield from ((cls, rule) for cls in classes)
    yield from ((cls, _convolution) for cls in (K.Conv1D, K.Conv2D, K.Conv3D))
    yield from ((cls, _transposed_convolution) for cls in (K.Conv1DTranspose, K.Conv2DTranspose, K.Conv3DTranspose))
    yield from ((cls, _depthwise) for cls in (K.DepthwiseConv1D, K.DepthwiseConv2D))
    yield from ((cls, _separable) for cls in (K.SeparableConv1D, K.SeparableConv2D))
    yield from {K.Dense: _dense, K.BatchNormalization: _batch_norm, K.PReLU: _prelu, K.Activation: _activation,
                K.Rescaling: _rescaling, K.Concatenate: _concatenation, K.Flatten: _reshape, K.Reshape: _reshape,
                K.Permute: _permute, LayerScale: _layer_scale, MaskAttachment: _identity,
                MaskReader: _mask}.items()  # fmt: skip


RULE_BY_LAYER_CLASS: dict[Any, ChannelRule] = dict(_layer_rules())
SOFTMAX_REASON = "which divides by the sum over all channels"
BARRIER_REASONS = {
    K.Softmax: SOFTMAX_REASON,
    K.LayerNormalization: "which takes mean and variance over all channels",
    K.GroupNormalization: "which takes mean and variance over groups of channels",
    K.UnitNormalization: "which divides by the norm over all channels",
    K.MultiHeadAttention: "whose heads have fixed sizes",
    K.Embedding: "whose rows are looked up",
}
_UNARY_OPS = ("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Silu", "HardSilu", "HardSigmoid", "Sigmoid",
              "Softplus", "Softsign", "Tanh", "Mish", "Abs", "Absolute", "Negative", "Square", "Exp",
              "Clip", "Copy")  # fmt: skip
_BINARY_OPS = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
RULE_BY_OPERATOR: dict[str, ChannelRule] = {
    **dict.fromkeys(_UNARY_OPS, _identity),
    **dict.fromkeys(_BINARY_OPS, _elementwise),
    **dict.fromkeys(("Divide", "TrueDivide"), _division),
    **dict.fromkeys(("Mean", "Max", "Min", "Sum", "Amax", "Amin"), _reduction),
}
