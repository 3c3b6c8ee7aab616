"""Ranges of activations taken from data, before quantization-aware training begins.

tfmot starts every activation's fake-quant at -6 .. 6 and moves it by a thousandth a step. On a small training set it
never arrives: an output that lives in 0 .. 0.2 is then trained, and converted, with a handful of levels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

from edgepipe.compress.qat.fake_quant import activation_layers
from edgepipe.compress.qat.quantizers import ActivationQuantizer
from edgepipe.core.arrays import Arrays, count_samples, take_samples
from edgepipe.training.batch_norms import frozen_statistics

SAMPLES = 512  # training samples that ranges are taken from
BATCH = 64
MIN_RANGE = 1e-5  # a narrower range says that the tensor is dead; 1 / scale would end as infinity, then as NaN


@dataclass
class _ObservedRange:
    low: float = 0.0  # zero is always inside: TFLite stores it exactly
    high: float = 0.0


class _Observer(Quantizer):  # type: ignore[misc]  # tfmot carries no types
    """Stands in for a quantizer: lets values pass as they are and remembers the smallest and the largest."""

    def __init__(self) -> None:
        self.observed_range = _ObservedRange()

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """No variables of its own."""
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
        self.observed_range.low = min(self.observed_range.low, float(tf.reduce_min(inputs)))
        self.observed_range.high = max(self.observed_range.high, float(tf.reduce_max(inputs)))
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Nothing to keep: it never leaves this module."""
        return {}


def initialize_ranges(model: Any, x: Arrays, seed: int, batch_statistics: bool) -> list[str]:
    """Set the range of each activation's fake-quant in `model` to what up to 512 samples of `x` show; names dead ones.

    Kernels are fake-quantized already, activations are not. With `batch_statistics` BatchNormalization shows both of
    its faces, moving statistics and those of the batch, because training goes on with the latter. Dropout is off, and
    no variable but the ranges changes.
    """
    sample_indices = np.random.RandomState(seed).permutation(count_samples(x))[:SAMPLES]
    with _observe_ranges(model) as observers, frozen_statistics(model):
        for start in range(0, len(sample_indices), BATCH):
            batch = take_samples(x, sample_indices[start : start + BATCH])
            for training in (False, True) if batch_statistics else (False,):
                model(batch, training=training)
    return [layer.name for layer, observer in observers if not _assign_range(layer, observer.observed_range)]


def _assign_range(layer: Any, observed_range: _ObservedRange) -> bool:
    if observed_range.high - observed_range.low <= MIN_RANGE:
        return False
    layer.quantizer_vars["min_var"].assign(observed_range.low)
    layer.quantizer_vars["max_var"].assign(observed_range.high)
    return True


@contextmanager
def _observe_ranges(model: Any) -> Iterator[list[tuple[Any, _Observer]]]:
    """Inside the block the quantizer of each activation whose range is learned is an observer."""
    layers = [layer for layer in activation_layers(model) if isinstance(layer.quantizer, ActivationQuantizer)]
    original_quantizers = [layer.quantizer for layer in layers]
    pairs = [(layer, _Observer()) for layer in layers]
    for layer, observer in pairs:
        layer.quantizer = observer
    try:
        yield pairs
    finally:
        for layer, quantizer in zip(layers, original_quantizers, strict=True):
            layer.quantizer = quantizer
