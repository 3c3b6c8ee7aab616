"""Fake-quant as TFLite's int8 kernels round: per-channel symmetric weights, per-tensor asymmetric activations.

Jacob et al. 2018 (arXiv 1712.05877); https://ai.google.dev/edge/litert/models/quantization_spec. All implement tfmot's
quantizer interface, run by its `QuantizeLayer` (activations) and `QuantizeWrapperV2` (weights).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quant_ops
from tensorflow_model_optimization.python.core.quantization.keras.quantize_config import QuantizeConfig
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import (
    FixedQuantizer,
    MovingAverageQuantizer,
    Quantizer,
)

from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import AnyKerasVariable, Tensor, TfKerasLayer

INT8_STEPS = 255  # between the ends of a range
EMA_DECAY = 0.99  # of an activation's moving range; tfmot's 0.999 hardly moves in the few hundred steps of QAT
MIN_WEIGHT_RANGE = 1e-6  # of a channel's largest weight; fake-quant divides by the range
MIN_SPARSITY = 0.1  # a kernel with 10 % zeros was pruned; float32 weights are not zero by chance
MAX_CLUSTERS = 256  # a kernel with more distinct values than int8 has is not clustered
MIN_CLUSTER_MEMBERS = 2  # nonzero weights per distinct value, on average: trained weights are not equal by chance
CLUSTER_PROBE_SIZE = 4096  # weights to look at first, to rule out clustering quickly


class ActivationQuantizer(MovingAverageQuantizer):  # type: ignore[misc]  # tfmot carries no types
    """Asymmetric int8 fake-quant whose range is a moving average of the minimum and maximum of training batches."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)

    def __call__(self, inputs: Tensor, training: bool, weights: dict[str, AnyKerasVariable], **_: Any) -> Tensor:
        return quant_ops.MovingAvgQuantize(
            inputs, weights["min_var"], weights["max_var"], ema_decay=EMA_DECAY, is_training=training, num_bits=8
        )


class NonzeroQuantizer(ActivationQuantizer):
    """Fake-quant of a tensor whose inverse, root of the inverse or logarithm is taken.

    In training, what rounds to zero becomes one step: infinity has no gradient, and no place in a moving average. At
    inference it becomes zero, as in TFLite, and the infinity that follows saturates.
    """

    def __call__(self, inputs: Tensor, training: bool, weights: dict[str, AnyKerasVariable], **options: Any) -> Tensor:
        rounded = super().__call__(inputs, training, weights, **options)
        step = tf.convert_to_tensor(weights["max_var"] - weights["min_var"]) / INT8_STEPS
        return tf.where(rounded == 0, step, rounded) if training else rounded


class FixedRangeQuantizer(FixedQuantizer):  # type: ignore[misc]
    """Fake-quant with the range that TFLite prescribes for an operator's output, such as 0 .. 255/256 for a softmax.

    At a model output it is only active at inference: a probability rounded to zero has no gradient.
    """

    def __init__(self, low: float, high: float, in_training: bool) -> None:
        super().__init__(num_bits=8, init_min=low, init_max=high, narrow_range=False)
        self.in_training = in_training

    def __call__(self, inputs: Tensor, training: bool, weights: dict[str, AnyKerasVariable], **_: Any) -> Tensor:
        if training and not self.in_training:
            return tf.identity(inputs)
        return super().__call__(inputs, training, weights)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"low": self.init_min, "high": self.init_max, "in_training": self.in_training}


@dataclass(frozen=True)
class KernelStructure:
    """The structure of a kernel that training must keep: which weights are zero, and which are equal."""

    zero_mask: Array | None = None  # bool, shape of the kernel
    cluster_indices: Array | None = None  # int32, shape of the kernel: cluster of each weight

    @property
    def cluster_count(self) -> int:
        """Number of distinct values of the kernel; 0 if it is not clustered."""
        return 0 if self.cluster_indices is None else int(self.cluster_indices.max()) + 1


def detect_structure(kernel: Array, channel_axes: tuple[int, ...]) -> KernelStructure:
    """Detect the pruning and clustering of `kernel`, whose output channels are on `axis`."""
    zero_mask, max_clusters = kernel == 0, int(np.count_nonzero(kernel)) // MIN_CLUSTER_MEMBERS
    cluster_indices = _cluster_indices(kernel, min(MAX_CLUSTERS, max_clusters))
    return KernelStructure(
        zero_mask if zero_mask.mean() > MIN_SPARSITY else None,
        cluster_indices
        if cluster_indices is not None
        else _channel_cluster_indices(kernel, channel_axes, max_clusters),
    )


def _cluster_indices(kernel: Array, max_clusters: int) -> Array | None:
    if np.unique(kernel.ravel()[:CLUSTER_PROBE_SIZE]).size > max_clusters:  # sorting a large kernel takes seconds
        return None
    distinct_values, cluster_indices = np.unique(kernel, return_inverse=True)
    return cluster_indices.reshape(kernel.shape).astype(np.int32) if distinct_values.size <= max_clusters else None


def _channel_cluster_indices(kernel: Array, channel_axes: tuple[int, ...], max_clusters: int) -> Array | None:
    """Cluster indices with separate clusters for each channel; None if there are more than `max_clusters` in all."""
    last_axes = tuple(range(kernel.ndim - len(channel_axes), kernel.ndim))
    channels_last_kernel = np.moveaxis(kernel, channel_axes, last_axes)
    flat_kernel = channels_last_kernel.reshape(-1, int(np.prod([kernel.shape[a] for a in channel_axes])))
    probe_rows = flat_kernel[:, : -(-CLUSTER_PROBE_SIZE // len(flat_kernel))]
    if (
        _count_distinct(probe_rows).sum() > np.count_nonzero(probe_rows)
        or (distinct_counts := _count_distinct(flat_kernel)).sum() > max_clusters
        or distinct_counts.max() > MAX_CLUSTERS
    ):
        return None
    cluster_indices = np.stack([np.unique(channel, return_inverse=True)[1] for channel in flat_kernel.T], axis=1)
    numbered_clusters = cluster_indices + np.cumsum(distinct_counts) - distinct_counts
    ordered_clusters: Array = np.moveaxis(
        numbered_clusters.reshape(channels_last_kernel.shape), last_axes, channel_axes
    )
    return ordered_clusters.astype(np.int32)


def _count_distinct(columns: Array) -> Array:
    """Number of distinct values in each column."""
    change_counts: Array = np.count_nonzero(np.diff(np.sort(columns, axis=0), axis=0), axis=0)
    return 1 + change_counts


class WeightQuantizer(Quantizer):  # type: ignore[misc]
    """Per-channel fake-quant of a kernel: a symmetric narrow range (-127 .. 127) per slice of `axis`, from the weights.

    `axis` holds the axes of the output channels: the last one of a convolution, the last two of a depthwise convolution
    (tfmot takes only the last, so that its per-channel is in fact per-tensor). Zeros stay zero and equal weights stay
    equal, according to `structure`: each weight is replaced by the mean of its cluster, which also shares the gradient.
    """

    def __init__(self, axis: tuple[int, ...], structure: KernelStructure) -> None:
        self.axis, self.structure, self.exporting = axis, structure, False

    def build(self, tensor_shape: Any, name: str, layer: TfKerasLayer) -> dict[str, AnyKerasVariable]:
        """No variables: the range follows from the current weights."""
        return {}

    def __call__(self, inputs: Tensor, training: bool, weights: dict[str, AnyKerasVariable], **_: Any) -> Tensor:
        return self._constant_kernel(inputs) if self.exporting else self._fake_quant(self.apply_structure(inputs))

    def _constant_kernel(self, kernel: AnyKerasVariable) -> Tensor:
        """The rounded kernel as a plain constant, into which the converter folds the batch norm."""
        with tf.init_scope():
            rounded_kernel = self._fake_quant(self.apply_structure(tf.convert_to_tensor(kernel))).numpy()
        return tf.constant(rounded_kernel)

    def apply_structure(self, kernel: Tensor) -> Tensor:
        """`kernel` with its zeros and clusters restored."""
        if self.structure.cluster_indices is not None:
            cluster_indices = tf.constant(self.structure.cluster_indices)
            cluster_means = tf.math.unsorted_segment_mean(kernel, cluster_indices, self.structure.cluster_count)
            kernel = tf.gather(cluster_means, cluster_indices)
        zero_mask = self.structure.zero_mask
        return kernel if zero_mask is None else tf.where(tf.constant(zero_mask), 0.0, kernel)

    def _fake_quant(self, kernel: Tensor) -> Tensor:
        rank = len(kernel.shape)
        axis_order = [axis for axis in range(rank) if axis not in self.axis] + list(self.axis)
        channels_last_kernel = tf.transpose(kernel, axis_order)
        channel_count = int(np.prod([kernel.shape[axis] for axis in self.axis]))
        flat_kernel = tf.reshape(channels_last_kernel, (-1, channel_count))
        channel_max = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(flat_kernel), axis=0), MIN_WEIGHT_RANGE))
        quantized_kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat_kernel, -channel_max, channel_max, narrow_range=True
        )
        return tf.transpose(tf.reshape(quantized_kernel, channels_last_kernel.shape), np.argsort(axis_order))

    def get_config(self) -> dict[str, Any]:
        """Never serialized: a fake-quant model is stored as base, recipe and weights."""
        return {"axis": self.axis}


class KernelQuantizeConfig(QuantizeConfig):  # type: ignore[misc]
    """tfmot's configuration of a layer with fake-quant on its kernel only; activations have their own layers."""

    def __init__(self, attribute: str, quantizer: WeightQuantizer) -> None:
        self.attribute, self.quantizer = attribute, quantizer

    def get_weights_and_quantizers(self, layer: TfKerasLayer) -> list[tuple[AnyKerasVariable, Quantizer]]:
        """The kernel and its quantizer."""
        return [(getattr(layer, self.attribute), self.quantizer)]

    def set_quantize_weights(self, layer: TfKerasLayer, quantize_weights: list[Tensor]) -> None:
        """Replace the kernel of the layer by the fake-quantized one."""
        setattr(layer, self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: TfKerasLayer) -> list[Any]:
        """None."""
        return []

    def set_quantize_activations(self, layer: TfKerasLayer, quantize_activations: list[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: TfKerasLayer) -> list[Any]:
        """None."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Never serialized, as for `WeightQuantizer`."""
        return {"attribute": self.attribute}
