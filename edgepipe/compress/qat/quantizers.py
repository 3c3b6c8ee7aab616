"""Fake-quant as TFLite's int8 kernels round: per-channel symmetric weights, per-tensor asymmetric activations.

Jacob et al. 2018 (arXiv 1712.05877); https://ai.google.dev/edge/litert/models/quantization_spec. All are quantizers of
tfmot's interface, run by its `QuantizeLayer` (activations) and `QuantizeWrapperV2` (weights).
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

EMA_DECAY = 0.99  # of an activation's moving range; tfmot's 0.999 stands still in the few hundred steps that QAT takes
MIN_WEIGHT_RANGE = 1e-6  # of a channel's largest weight; fake-quant divides by the range
MIN_SPARSITY = 0.1  # a kernel with a tenth of zeros was pruned; rounding to float32 never gives that by chance
MAX_CLUSTERS = 256  # more distinct values than int8 has are no clustering
MIN_MEMBERS = 2  # weights, not zero, that a value must have on average: trained weights are equal only on purpose
PROBE_SIZE = 4096  # weights that tell at a glance that a kernel is not clustered


class ActivationQuantizer(MovingAverageQuantizer):  # type: ignore[misc]  # tfmot carries no types
    """The range follows the batches' smallest and largest value as a moving average while training."""

    def __init__(self) -> None:
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self.exporting = False

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
        if self.exporting:
            return tf.identity(inputs)
        return quant_ops.MovingAvgQuantize(
            inputs, weights["min_var"], weights["max_var"], ema_decay=EMA_DECAY, is_training=training, num_bits=8
        )


class FixedRange(FixedQuantizer):  # type: ignore[misc]
    """The range that TFLite prescribes for an operator's output, such as 0 .. 255/256 for a softmax.

    At a model's output it only counts at inference: a probability rounded to zero has no gradient to learn from.
    """

    def __init__(self, low: float, high: float, in_training: bool) -> None:
        super().__init__(num_bits=8, init_min=low, init_max=high, narrow_range=False)
        self.in_training, self.exporting = in_training, False

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
        if self.exporting or (training and not self.in_training):
            return tf.identity(inputs)
        return super().__call__(inputs, training, weights)

    def get_config(self) -> dict[str, Any]:
        """What tells it apart from another."""
        return {"low": self.init_min, "high": self.init_max, "in_training": self.in_training}


@dataclass(frozen=True)
class KernelStructure:
    """What training must keep of a kernel: which weights are zero, and which are equal."""

    zero_mask: Array | None = None  # bool, shape of the kernel
    cluster_index: Array | None = None  # int32, shape of the kernel: which value each weight has

    @property
    def cluster_count(self) -> int:
        """How many distinct values the kernel has; 0 if it is not clustered."""
        return 0 if self.cluster_index is None else int(self.cluster_index.max()) + 1


def detect_structure(kernel: Array, axis: tuple[int, ...]) -> KernelStructure:
    """What `kernel`, with its output channels on `axis`, shows of pruning and clustering."""
    zero_mask, max_clusters = kernel == 0, int(np.count_nonzero(kernel)) // MIN_MEMBERS
    cluster_index = _cluster_indices(kernel, min(MAX_CLUSTERS, max_clusters))
    return KernelStructure(
        zero_mask if zero_mask.mean() > MIN_SPARSITY else None,
        cluster_index if cluster_index is not None else _channel_cluster_indices(kernel, axis, max_clusters),
    )


def _cluster_indices(kernel: Array, max_clusters: int) -> Array | None:
    if np.unique(kernel.ravel()[:PROBE_SIZE]).size > max_clusters:  # sorting all of a large kernel takes seconds
        return None
    distinct_values, cluster_index = np.unique(kernel, return_inverse=True)
    return cluster_index.reshape(kernel.shape).astype(np.int32) if distinct_values.size <= max_clusters else None


def _channel_cluster_indices(kernel: Array, axis: tuple[int, ...], max_clusters: int) -> Array | None:
    """A value of each channel is a cluster of its own; None if there are more than `most` in all."""
    last_axes = tuple(range(kernel.ndim - len(axis), kernel.ndim))
    channels_last = np.moveaxis(kernel, axis, last_axes)
    flat_kernel = channels_last.reshape(-1, int(np.prod([kernel.shape[a] for a in axis])))
    probe_rows = flat_kernel[:, : -(-PROBE_SIZE // len(flat_kernel))]
    if (
        _count_distinct(probe_rows).sum() > np.count_nonzero(probe_rows)
        or (distinct_counts := _count_distinct(flat_kernel)).sum() > max_clusters
        or distinct_counts.max() > MAX_CLUSTERS
    ):
        return None
    cluster_index = np.stack([np.unique(channel, return_inverse=True)[1] for channel in flat_kernel.T], axis=1)
    numbered_clusters = cluster_index + np.cumsum(distinct_counts) - distinct_counts
    ordered_clusters: Array = np.moveaxis(numbered_clusters.reshape(channels_last.shape), last_axes, axis)
    return ordered_clusters.astype(np.int32)


def _count_distinct(columns: Array) -> Array:
    """How many distinct values each column has."""
    changes: Array = np.count_nonzero(np.diff(np.sort(columns, axis=0), axis=0), axis=0)
    return 1 + changes


class WeightQuantizer(Quantizer):  # type: ignore[misc]
    """Fake-quant of a kernel, one symmetric narrow range (-127 .. 127) for each slice along `axis`, from the weights.

    `axis` holds the axes that output channels lie on: the last of a convolution, the last two of a depthwise one (which
    tfmot takes the last of only, so that its per-channel is per-tensor in truth). Zeros stay zero and equal weights
    equal, as `ties` says: the mean of a cluster stands for its members, and its gradient is theirs.
    """

    def __init__(self, axis: tuple[int, ...], structure: KernelStructure) -> None:
        self.axis, self.structure, self.exporting = axis, structure, False

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """No variables: the range is that of the weights as they are."""
        return {}

    def __call__(self, inputs: Any, training: bool, weights: Any, **_: Any) -> Any:
        structured_kernel = self.apply_structure(inputs)
        # The converter quantizes a plain constant by the same rule, after it has folded the batch norm into it.
        return tf.identity(structured_kernel) if self.exporting else self._fake_quant(structured_kernel)

    def apply_structure(self, kernel: Any) -> Any:
        """The kernel with its zeros and clusters as they must be."""
        if self.structure.cluster_index is not None:
            cluster_index = tf.constant(self.structure.cluster_index)
            cluster_means = tf.math.unsorted_segment_mean(kernel, cluster_index, self.structure.cluster_count)
            kernel = tf.gather(cluster_means, cluster_index)
        return (
            kernel if self.structure.zero_mask is None else tf.where(tf.constant(self.structure.zero_mask), 0.0, kernel)
        )

    def _fake_quant(self, kernel: Any) -> Any:
        rank = len(kernel.shape)
        order = [axis for axis in range(rank) if axis not in self.axis] + list(self.axis)
        channels_last = tf.transpose(kernel, order)
        channels = int(np.prod([kernel.shape[axis] for axis in self.axis]))
        flat_kernel = tf.reshape(channels_last, (-1, channels))
        channel_max = tf.stop_gradient(tf.maximum(tf.reduce_max(tf.abs(flat_kernel), axis=0), MIN_WEIGHT_RANGE))
        quantized_kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel(
            flat_kernel, -channel_max, channel_max, narrow_range=True
        )
        return tf.transpose(tf.reshape(quantized_kernel, channels_last.shape), np.argsort(order))

    def get_config(self) -> dict[str, Any]:
        """Not serialized: a fake-quant model is stored as base, recipe and weights."""
        return {"axis": self.axis}


class KernelQuantizeConfig(QuantizeConfig):  # type: ignore[misc]
    """tfmot's description of a layer whose kernel alone is fake-quantized; activations have layers of their own."""

    def __init__(self, attribute: str, quantizer: WeightQuantizer) -> None:
        self.attribute, self.quantizer = attribute, quantizer

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        """The kernel."""
        return [(getattr(layer, self.attribute), self.quantizer)]

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Let the layer compute with the fake-quantized kernel."""
        setattr(layer, self.attribute, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """None."""
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Nothing to set."""

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """None."""
        return []

    def get_config(self) -> dict[str, Any]:
        """Not serialized either."""
        return {"attribute": self.attribute}
