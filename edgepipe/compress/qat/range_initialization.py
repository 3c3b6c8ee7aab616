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
from edgepipe.core.arrays import Arrays, count, take
from edgepipe.training.batch_norms import steady

SAMPLES = 512  # training samples that ranges are taken from
BATCH = 64
SMALLEST = 1e-5  # a narrower range says that the tensor is dead; 1 / scale would end as infinity, then as NaN


@dataclass
class _Seen:
    low: float = 0.0  # zero is always inside: TFLite stores it exactly
    high: float = 0.0


class _Observer(Quantizer):  # type: ignore[misc]  # tfmot carries no types
    """Stands in for a quantizer: lets values pass as they are and remembers the smallest and the largest."""

    def __init__(self) -> None:
        self.seen = _Seen()

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """No variables of its own."""
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
        self.seen.low = min(self.seen.low, float(tf.reduce_min(inputs)))
        self.seen.high = max(self.seen.high, float(tf.reduce_max(inputs)))
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Nothing to keep: it never leaves this module."""
        return {}


def initialise(model: Any, x: Arrays, seed: int, batch_statistics: bool) -> list[str]:
    """Set the range of each activation's fake-quant in `model` to what up to 512 samples of `x` show; names dead ones.

    Kernels are fake-quantized already, activations are not. With `batch_statistics` BatchNormalization shows both of
    its faces, moving statistics and those of the batch, because training goes on with the latter. Dropout is off, and
    no variable but the ranges changes.
    """
    chosen = np.random.RandomState(seed).permutation(count(x))[:SAMPLES]
    with _observed(model) as observers, steady(model):
        for start in range(0, len(chosen), BATCH):
            batch = take(x, chosen[start : start + BATCH])
            for training in (False, True) if batch_statistics else (False,):
                model(batch, training=training)
    return [layer.name for layer, observer in observers if not _assigned(layer, observer.seen)]


def _assigned(layer: Any, seen: _Seen) -> bool:
    if seen.high - seen.low <= SMALLEST:
        return False
    layer.quantizer_vars["min_var"].assign(seen.low)
    layer.quantizer_vars["max_var"].assign(seen.high)
    return True


@contextmanager
def _observed(model: Any) -> Iterator[list[tuple[Any, _Observer]]]:
    """Inside the block the quantizer of each activation whose range is learned is an observer."""
    layers = [layer for layer in activation_layers(model) if isinstance(layer.quantizer, ActivationQuantizer)]
    kept = [layer.quantizer for layer in layers]
    pairs = [(layer, _Observer()) for layer in layers]
    for layer, observer in pairs:
        layer.quantizer = observer
    try:
        yield pairs
    finally:
        for layer, quantizer in zip(layers, kept, strict=True):
            layer.quantizer = quantizer
