"""Ranges of activations taken from data, before quantization-aware training begins.

tfmot starts every activation's fake-quant at -6 .. 6 and moves it by a thousandth a step. On a small training set it
never arrives: an output that lives in 0 .. 0.2 is then trained, and converted, with a handful of levels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

from edgepipe.arrays import Arrays, count, take

SAMPLES = 512  # training samples that ranges are taken from
BATCH = 64
SMALLEST = 1e-5  # a narrower range says that the tensor is dead; 1 / scale would end as infinity, then as NaN


class _Observer(Quantizer):  # type: ignore[misc]  # tfmot carries no types
    """Stands in for a quantizer: lets values pass as they are and remembers the smallest and the largest."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0  # zero is always inside: TFLite stores it exactly

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """No variables of its own."""
        return {}

    def __call__(self, inputs: Any, training: Any, weights: Any, **_: Any) -> Any:
        self.low = min(self.low, float(tf.reduce_min(inputs)))
        self.high = max(self.high, float(tf.reduce_max(inputs)))
        return tf.identity(inputs)  # a variable, handed back, would become one of the layer's weights a second time

    def get_config(self) -> dict[str, Any]:
        """Nothing to keep: it never leaves this module."""
        return {}

    def assign(self, variables: dict[str, Any]) -> None:
        """Give `variables`, the range of the quantizer it stood in for, what was seen; a dead tensor keeps its own."""
        if self.high - self.low > SMALLEST:
            variables["min_var"].assign(self.low)
            variables["max_var"].assign(self.high)


def initialise(model: Any, x: Arrays, seed: int) -> None:
    """Set the range of each activation's fake-quant in `model` to what up to 512 samples of `x` show, in float.

    BatchNormalization shows both of its faces, moving statistics and those of the batch: in a network that was trained
    for a few steps only they are far apart, and training goes on with the latter. Dropout is off, and no variable but
    the ranges changes. The weights' ranges need nothing: tfmot takes them anew at every step.
    """
    chosen = np.random.RandomState(seed).permutation(count(x))[:SAMPLES]
    batches = [take(x, chosen[start : start + BATCH]) for start in range(0, len(chosen), BATCH)]
    with _observed(model) as observers, _steady(model):
        for batch in batches:
            model(batch, training=False)
            model(batch, training=True)
    for observer, variables in observers:
        observer.assign(variables)


@contextmanager
def _steady(model: Any) -> Iterator[None]:
    """Inside the block a pass in training mode neither moves BatchNormalization's statistics nor drops anything."""
    layers = [getattr(layer, "layer", layer) for layer in model.layers]
    steadied = ((tf_keras.layers.BatchNormalization, "momentum", 1.0), (tf_keras.layers.Dropout, "rate", 0.0))
    settings = [(layer, name, value) for cls, name, value in steadied for layer in layers if isinstance(layer, cls)]
    kept = [getattr(layer, name) for layer, name, _ in settings]
    for layer, name, steady in settings:
        setattr(layer, name, steady)
    try:
        yield
    finally:
        for (layer, name, _), value in zip(settings, kept, strict=True):
            setattr(layer, name, value)


@contextmanager
def _observed(model: Any) -> Iterator[list[tuple[_Observer, dict[str, Any]]]]:
    """Inside the block every quantizer of `model` is an observer; yields those of inputs and activations."""
    inputs = [layer for layer in model.layers if isinstance(layer, QuantizeLayer) and layer.quantizer is not None]
    wrappers = [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]
    activations = [activation for wrapper in wrappers for activation in wrapper._quantize_activations]
    kept = [(owner, owner.quantizer) for owner in (*inputs, *activations)]
    kept_lists = [(wrapper, wrapper._weight_vars, wrapper._output_quantizers) for wrapper in wrappers]
    try:
        yield [pair for layer in inputs for pair in _swap_input(layer)] + [pair for w in wrappers for pair in _swap(w)]
    finally:
        for owner, quantizer in kept:
            owner.quantizer = quantizer
        for wrapper, weights, outputs in kept_lists:
            wrapper._weight_vars, wrapper._output_quantizers = weights, outputs


def _swap_input(layer: Any) -> list[tuple[_Observer, dict[str, Any]]]:
    layer.quantizer = _Observer()
    return [(layer.quantizer, layer.quantizer_vars)]


def _swap(wrapper: Any) -> list[tuple[_Observer, dict[str, Any]]]:
    wrapper._weight_vars = [(weight, _Observer(), variables) for weight, _, variables in wrapper._weight_vars]
    found = []
    for activation in wrapper._quantize_activations:
        activation.quantizer = _Observer()
        # An activation that is quantized before and after it shows both to one observer; only gelu is, in tfmot.
        names = ("_pre_activation_vars", "_post_activation_vars")
        found += [(activation.quantizer, vars(activation)[name]) for name in names if name in vars(activation)]
    if wrapper._output_quantizers:
        wrapper._output_quantizers = [_Observer()]
        found.append((wrapper._output_quantizers[0], wrapper._output_quantizer_vars))
    return found
