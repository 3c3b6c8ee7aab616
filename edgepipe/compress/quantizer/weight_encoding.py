"""Weights in integers: symmetric, one scale for each filter. Biases: in steps of input scale times weight scale.

Where a filter's weights are tiny, or all zero after pruning, its bias would not fit into 32 bits. Such a filter gets a
larger weight scale: its weights lose less than one part in 2^30 of its bias.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.core.arrays import Array

MAX_BIAS = 2.0**30  # of a stored bias; sums are added to it in 32 bits
MIN_WEIGHT = 1e-30  # largest weight of a filter; below it the filter counts as zero


@final
@dataclass(frozen=True)
class WeightEncoding:
    """The scales of a constant filter tensor, one for each filter, or one for all."""

    bits: int
    scales: Array  # (filters,) or (1,)
    axis: int | None  # the axis that counts filters; None: one scale for all

    def encode(self, weights: Array) -> Array:
        """The codes, int8; the most negative one is not used."""
        shape = [-1 if axis == self.axis and len(self.scales) > 1 else 1 for axis in range(weights.ndim)]
        limit = 2 ** (self.bits - 1) - 1
        return np.clip(np.rint(weights / self.scales.reshape(shape)), -limit, limit).astype(np.int8)

    def encode_bias(self, bias: Array, input_scale: float, dtype: type) -> Array:
        """The codes of a bias, (filters,)."""
        return np.rint(bias.astype(np.float64) / self.bias_scales(input_scale)).astype(dtype)

    def bias_scales(self, input_scale: float) -> Array:
        """The scales of a bias, float64 of float32 numbers."""
        return (self.scales * input_scale).astype(np.float32).astype(np.float64)


def choose_weight_encoding(
    weights: Array, axis: int | None, bias: Array | None = None, input_scale: float = 1.0, bits: int = 8
) -> WeightEncoding:
    """The encoding of constant weights.

    Args:
        weights: the filters, of any rank.
        axis: the axis that counts filters; None for one scale for all.
        bias: (filters,), which has to fit into 32 bits; None if there is none.
        input_scale: scale of the tensor that the filters are multiplied with.
        bits: of a weight.
    """
    other_axes = tuple(dim for dim in range(weights.ndim) if dim != axis)
    largest_weights = np.atleast_1d(np.abs(weights.astype(np.float64)).max(axis=other_axes))
    largest_weights = np.where(largest_weights > MIN_WEIGHT, largest_weights, largest_weights.max() or 1.0)
    scales = largest_weights / (2 ** (bits - 1) - 1)
    if bias is not None:
        bias_magnitudes = np.abs(bias.astype(np.float64))
        least_scales = (bias_magnitudes if len(scales) > 1 else bias_magnitudes.max()) / (input_scale * MAX_BIAS)
        scales = np.maximum(scales, least_scales)
    return WeightEncoding(bits, scales.astype(np.float32).astype(np.float64), axis)
