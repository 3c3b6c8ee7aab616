"""Initializes activation ranges from data, before quantization-aware training.

tfmot starts every activation's fake-quant at -6 .. 6 and moves it by 0.1 % a step. On a small training set it never
converges: an output within 0 .. 0.2 is then trained, and converted, with a handful of levels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

from edgepipe.compress.qat.fake_quant import activation_quantize_layers
from edgepipe.compress.qat.quantizers import ActivationQuantizer
from edgepipe.core.arrays import Arrays, count_samples, take_samples
from edgepipe.models.keras_types import AnyKerasVariable, Tensor, TfKerasLayer, TfKerasModel
from edgepipe.training.batch_norms import frozen_statistics

RANGE_SAMPLE_COUNT = 512  # training samples that ranges are initialized from
RANGE_BATCH_SIZE = 64
MIN_RANGE = 1e-5  # the tensor of a narrower range is dead; 1 / scale would become infinity, then NaN


@dataclass
class _ObservedRange:
    low: float = 0.0  # zero is always inside: TFLite stores it exactly
    high: float = 0.0


class _RangeObserver(Quantizer):  # type: ignore[misc]  # tfmot carries no types
    """Replaces a quantizer: passes values unchanged and records their minimum and maximum."""

    def __init__(self) -> None:
        self.observed_range = _ObservedRange()

    def build(self, tensor_shape: Any, name: str, layer: TfKerasLayer) -> dict[str, AnyKerasVariable]:
        """No variables."""
        return {}

    def __call__(self, inputs: Tensor, training: bool, weights: dict[str, AnyKerasVariable], **_: Any) -> Tensor:
        self.observed_range.low = min(self.observed_range.low, float(tf.reduce_min(inputs)))
        self.observed_range.high = max(self.observed_range.high, float(tf.reduce_max(inputs)))
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Empty: an observer is never serialized."""
        return {}


def initialize_ranges(model: TfKerasModel, x: Arrays, seed: int, use_batch_statistics: bool) -> list[str]:
    """Set the range of each activation's fake-quant to the minimum and maximum over up to 512 samples.

    Meanwhile kernels are fake-quantized, activations are not, and dropout is off. Only the ranges are changed.

    Args:
        model: The fake-quant model.
        x: Training samples, of which up to 512 are drawn.
        seed: Seed of the draw.
        use_batch_statistics: Also cover activations normalized with batch statistics, as in training, not only those
            normalized with moving statistics.

    Returns:
        The names of the fake-quant layers whose tensor is dead (always zero); their range is left unchanged.
    """
    sample_indices = np.random.RandomState(seed).permutation(count_samples(x))[:RANGE_SAMPLE_COUNT]
    with _observe_ranges(model) as layer_observers, frozen_statistics(model):
        for start in range(0, len(sample_indices), RANGE_BATCH_SIZE):
            batch = take_samples(x, sample_indices[start : start + RANGE_BATCH_SIZE])
            for training in (False, True) if use_batch_statistics else (False,):
                model(batch, training=training)
    return [layer.name for layer, observer in layer_observers if not _assign_range(layer, observer.observed_range)]


def _assign_range(layer: TfKerasLayer, observed_range: _ObservedRange) -> bool:
    if observed_range.high - observed_range.low <= MIN_RANGE:
        return False
    layer.quantizer_vars["min_var"].assign(observed_range.low)
    layer.quantizer_vars["max_var"].assign(observed_range.high)
    return True


@contextmanager
def _observe_ranges(model: TfKerasModel) -> Iterator[list[tuple[TfKerasLayer, _RangeObserver]]]:
    """Inside the block, an observer replaces the quantizer of each activation whose range is trained."""
    layers = [layer for layer in activation_quantize_layers(model) if isinstance(layer.quantizer, ActivationQuantizer)]
    original_quantizers = [layer.quantizer for layer in layers]
    layer_observers = [(layer, _RangeObserver()) for layer in layers]
    for layer, observer in layer_observers:
        layer.quantizer = observer
    try:
        yield layer_observers
    finally:
        for layer, quantizer in zip(layers, original_quantizers, strict=True):
            layer.quantizer = quantizer
