"""Which channels of a folded model can be scaled, and the layers that produce and read each.

Dividing a channel by s where it is produced and multiplying it by s where it is read changes nothing, if all operations
in between commute with a positive factor. Labels as in channel pruning (`edgepipe.compress.pruning.channels`) show
which channels must share a factor - those of both summands of a residual sum, for example - and which must stay, why.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel
from edgepipe.compress.equalization.weighted_layers import (
    as_channel_pairs,
    count_outputs,
    has_kernel,
    is_weighted_layer,
    read_kernel,
    spread_input_ids,
    spread_output_ids,
)
from edgepipe.compress.layer_calls import walk_layer_calls
from edgepipe.compress.pruning.channels.channel_labels import ChannelGraph, ChannelLabels, label_last_axis
from edgepipe.compress.pruning.channels.channel_rules import (
    BARRIER_REASONS,
    RULE_BY_LAYER_CLASS,
    RULE_BY_OPERATOR,
    ChannelBarrier,
    ChannelRule,
    Shape,
)
from edgepipe.compress.qat.activation_placement import QuantizationRole, place_fake_quant, quantization_role
from edgepipe.compress.qat.lowering.lower import find_readers, iter_nodes
from edgepipe.core.arrays import Array
from edgepipe.models.bridge_layers import OperatorLayer

K = tf_keras.layers
# f(s x) = s f(x) for s > 0; augmentation and noise have no effect in inference, but are not tracked through either
_SCALE_COMMUTING_LAYERS = (
    K.LeakyReLU, K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.ZeroPadding1D,
    K.ZeroPadding2D, K.Cropping1D, K.Cropping2D, K.UpSampling1D, K.UpSampling2D, K.MaxPooling1D, K.MaxPooling2D,
    K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D, K.GlobalAveragePooling2D, K.GlobalMaxPooling1D,
    K.GlobalMaxPooling2D, K.Resizing, K.Add, K.Subtract, K.Maximum, K.Minimum, K.Concatenate, K.Flatten, K.Reshape,
    K.Permute,
)  # fmt: skip
_SCALE_COMMUTING_OPERATORS = ("Relu", "Mean", "Max", "Amax", "Copy")
_SUM_OPERATORS = ("Add", "Subtract", "Maximum", "Minimum")
_SCALE_OPERATORS = ("Multiply", "Divide", "TrueDivide")


@dataclass(frozen=True)
class LabeledLayer:
    """A weighted layer: the labels that each (row, column) of its kernel reads and produces, and max |weight|."""

    layer: Any
    input_label_grid: Array  # labels, (rows, 1), or (rows, columns) if columns differ
    output_label_grid: Array  # labels, (1, columns), or (rows, columns) if rows differ
    max_weight_magnitudes: Array  # (rows, columns), over kernel positions
    output_labels: Array  # (outputs,), labels

    @property
    def is_depthwise(self) -> bool:
        """Whether each output channel reads one input channel only."""
        return isinstance(self.layer, K.DepthwiseConv2D)

    def scaled_magnitudes(self, scales: Array) -> Array:
        """`max_weights` with a factor for each label."""
        return np.asarray(self.max_weight_magnitudes * self.weight_factors(scales))

    def weight_factors(self, scales: Array) -> Array:
        """The factor of each weight: s of the channel it reads over s of the channel it produces."""
        return np.asarray(scales[self.input_label_grid] / scales[self.output_label_grid])


def raise_maxima(maxima: Array, label_grid: Array, magnitudes: Array) -> None:
    """Raise the maximum of each label in `labels`, a grid of a `LabeledLayer`, to the largest of its `ranges`."""
    shared_axes = tuple(axis for axis, size in enumerate(label_grid.shape) if size == 1)
    np.maximum.at(maxima, label_grid, magnitudes.max(axis=shared_axes, keepdims=True))


@dataclass(frozen=True)
class RangedTensor:
    """A tensor with its own range in TFLite, and the label of each index of its `axis`."""

    tensor: Any
    label_ids: Array
    axis: int


@dataclass(frozen=True)
class ScalableChannels:
    """The channel labels of a model, and the layers and tensors that they belong to."""

    label_count: int
    fixed_reasons: dict[int, str]  # label -> why it cannot be scaled
    labeled_layers: tuple[LabeledLayer, ...]
    ranged_tensors: tuple[RangedTensor, ...]
    barrier_reasons: dict[str, str]  # layers with a kernel that channels are not tracked through, and why

    @property
    def free_mask(self) -> Array:
        """Whether each label may be scaled."""
        free_label_mask = np.zeros(self.label_count, bool)
        for labeled_layer in self.labeled_layers:
            free_label_mask[labeled_layer.output_labels] = True
        free_label_mask[list(self.fixed_reasons)] = False
        return free_label_mask


def find_scalable_channels(folded_model: FoldedModel) -> ScalableChannels:
    """Track every channel through `folded_model`."""
    return _ChannelTracer(folded_model).trace()


class _ChannelTracer:
    def __init__(self, folded_model: FoldedModel) -> None:
        self.folded_model, self.graph = folded_model, ChannelGraph()
        self.call_counts = Counter(node.layer.name for node in iter_nodes(folded_model.model))
        self.kernel_labels: list[tuple[Any, Array, Array]] = []  # (layer, input labels, output labels)
        self.tensor_labels: list[tuple[Any, Any, ChannelLabels]] = []  # (layer, its output, labels)

    def trace(self) -> ScalableChannels:
        model, union = self.folded_model.model, self.graph.union
        output_labels = walk_layer_calls(model, self._label_inputs(), self._label_layer)
        for name, labels in zip(model.output_names, output_labels, strict=True):
            union.freeze(labels.ids, f"'{name}' is an output of the model")
        labeled_layers = [
            _build_labeled_layer(layer, union.find_roots(input_ids), union.find_roots(output_ids))
            for layer, input_ids, output_ids in self.kernel_labels
        ]
        ranged_layer_names = self._find_ranged_layer_names()
        ranged_tensors = [
            RangedTensor(tensor, union.find_roots(labels.ids), labels.axis)
            for layer, tensor, labels in self.tensor_labels
            if layer.name in ranged_layer_names
        ]
        return ScalableChannels(
            len(union.parent_labels),
            dict(union.freeze_reasons),
            tuple(labeled_layers),
            tuple(ranged_tensors),
            self._barrier_reasons(),
        )

    def _label_inputs(self) -> list[ChannelLabels]:
        input_labels = []
        for tensor, name in zip(self.folded_model.model.inputs, self.folded_model.model.input_names, strict=True):
            labels = label_last_axis(self.graph.union.new_labels(tensor.shape[-1] or 1), tuple(tensor.shape))
            self.graph.union.freeze(labels.ids, f"'{name}' is an input of the model")
            self.tensor_labels.append((tensor._keras_history.layer, tensor, labels))
            input_labels.append(labels)
        return input_labels

    def _label_layer(self, layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        input_labels = [argument for argument in tf.nest.flatten([args, kwargs]) if isinstance(argument, ChannelLabels)]
        output_tensors = tf.nest.flatten(outputs)
        output_labels = [
            self._label_output(layer, input_labels, tuple(tensor.shape), len(output_tensors))
            for tensor in output_tensors
        ]
        self.tensor_labels.extend(
            (layer, tensor, labels) for tensor, labels in zip(output_tensors, output_labels, strict=True)
        )
        return output_labels

    def _label_output(
        self, layer: Any, input_labels: list[ChannelLabels], shape: Shape, output_count: int
    ) -> ChannelLabels:
        try:
            if output_count != 1:
                raise ChannelBarrier(f"which gives {output_count} tensors")
            return self._find_rule(layer)(self.graph, layer, input_labels, shape)
        except ChannelBarrier as reason:
            return self.graph.add_barrier(layer, iter(input_labels), shape, str(reason))

    def _find_rule(self, layer: Any) -> ChannelRule:
        if layer.name in self.folded_model.opaque_reasons:
            raise ChannelBarrier(f"kept whole: {self.folded_model.opaque_reasons[layer.name]}")
        if is_weighted_layer(layer):
            if self.call_counts[layer.name] > 1:
                raise ChannelBarrier(f"shared: it is called {self.call_counts[layer.name]} times")
            return self._label_weighted_layer
        if isinstance(layer, OperatorLayer):
            return _operator_rule(layer)
        if type(layer) in (K.ReLU, K.PReLU):
            _check_relu(layer)
            return RULE_BY_LAYER_CLASS[K.ReLU]
        if type(layer) in _SCALE_COMMUTING_LAYERS:
            return RULE_BY_LAYER_CLASS[type(layer)]
        raise ChannelBarrier(
            BARRIER_REASONS.get(type(layer)) or _activation_reason(layer) or _barrier_reason(type(layer).__name__)
        )

    def _label_weighted_layer(
        self, graph: ChannelGraph, layer: Any, input_labels: list[ChannelLabels], shape: Shape
    ) -> ChannelLabels:
        if not input_labels[0].is_channels_last:
            raise ChannelBarrier(f"which reads channels from axis {input_labels[0].axis}")
        output_ids = graph.label_outputs(layer, count_outputs(layer))
        self.kernel_labels.append((layer, input_labels[0].ids, output_ids))
        return label_last_axis(output_ids, shape)

    def _barrier_reasons(self) -> dict[str, str]:
        kernel_layer_names = {layer.name for layer in self.folded_model.model.layers if has_kernel(layer)}
        return {name: reason for name, (_, reason) in self.graph.barrier_by_layer.items() if name in kernel_layer_names}

    def _find_ranged_layer_names(self) -> set[str]:
        """Layers whose output is a separate tensor in TFLite, not fused with the next layer."""
        model, readers_by_name = self.folded_model.model, find_readers(self.folded_model.model)
        output_layer_names = {tensor._keras_history.layer.name for tensor in model.outputs}
        opaque_reasons = self.folded_model.opaque_reasons
        role_by_layer: dict[str, QuantizationRole] = {
            layer.name: quantization_role(layer, opaque_reasons.get(layer.name, "")) for layer in model.layers
        }
        input_names = set(model.input_names)
        ranged_layer_names = set(input_names)
        for layer in model.layers:
            reader_roles = [role_by_layer[reader.name] for reader in readers_by_name[layer.name]]
            call_count, is_output = self.call_counts[layer.name], layer.name in output_layer_names
            if (
                layer.name not in input_names
                and place_fake_quant(
                    layer, role_by_layer[layer.name], reader_roles, call_count, is_output
                ).has_own_range
            ):
                ranged_layer_names.add(layer.name)
        return ranged_layer_names


def _build_labeled_layer(layer: Any, input_ids: Array, output_ids: Array) -> LabeledLayer:
    magnitudes = np.abs(as_channel_pairs(layer, read_kernel(layer)).astype(np.float64))
    max_weight_magnitudes = magnitudes.reshape(-1, *magnitudes.shape[-2:]).max(axis=0)
    return LabeledLayer(
        layer,
        spread_input_ids(layer, input_ids),
        spread_output_ids(layer, output_ids),
        max_weight_magnitudes,
        output_ids,
    )


def _check_relu(layer: Any) -> None:
    limit, threshold = getattr(layer, "max_value", None), getattr(layer, "threshold", 0)
    if limit is not None:
        raise ChannelBarrier(f"which clips at {float(limit):g}")
    if threshold:
        raise ChannelBarrier(f"which clips below {float(threshold):g}")


def _activation_reason(layer: Any) -> str:
    activation_function = getattr(layer, "activation", None)
    return (
        f"the activation {getattr(activation_function, '__name__', activation_function)}"
        if isinstance(layer, K.Activation)
        else ""
    )


def _operator_rule(layer: Any) -> ChannelRule:
    operator_name, arguments = layer.operator, json.loads(layer.arguments)["args"]
    constant_arguments = [
        argument for argument in arguments if not (isinstance(argument, dict) and "tensor" in argument)
    ]
    is_numeric = all(isinstance(constant, (int, float)) for constant in constant_arguments)
    commutes_with_scaling = (
        operator_name in _SCALE_COMMUTING_OPERATORS
        or (operator_name in _SUM_OPERATORS and not constant_arguments)
        or (
            operator_name in _SCALE_OPERATORS
            and is_numeric
            and len(constant_arguments) == 1
            and arguments[0] not in constant_arguments
        )
    )
    if not commutes_with_scaling:
        raise ChannelBarrier(_barrier_reason(operator_name))
    return RULE_BY_OPERATOR[operator_name]


def _barrier_reason(name: str) -> str:
    return f"a {name}, which does not commute with a factor"
