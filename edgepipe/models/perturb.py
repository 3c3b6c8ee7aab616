"""Gives every weight of a model a random value of sane magnitude.

Fresh weights hide mistakes: a BatchNormalization at identity gives the same outputs with or without its weights. After
`perturb` every weight matters, variances stay positive and activations neither vanish nor explode.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel, AnyKerasVariable

# Variance gain of a kernel. ReLU halves the variance, so 2 keeps the activations' variance (He et al. 2015, arXiv
# 1502.01852), but the linear bottlenecks of MobileNetV2 then saturate; with 1 the input does not reach the last layers.
VARIANCE_GAIN = 1.5


def perturb(model: AnyKerasModel, seed: int = 0) -> None:
    """Overwrite every weight of `model` (Keras 3 or tf_keras); equal architectures and seeds give equal weights."""
    generator = np.random.default_rng(seed)
    depthwise_ids = {id(weight) for layer in _all_layers(model) if _is_depthwise(layer) for weight in layer.weights}
    for weight in model.weights:
        role = "depthwise" if id(weight) in depthwise_ids and len(weight.shape) > 1 else _weight_role(weight)
        weight.assign(_draw_weight(role, tuple(weight.shape), generator, np.asarray(weight)))
    refresh_normalization(model)


@contextlib.contextmanager
def perturbed_weights(model: AnyKerasModel, seed: int = 0) -> Iterator[None]:
    """Perturb the weights of `model` inside the block; afterwards they are restored bit for bit."""
    original_weights = [np.asarray(weight).copy() for weight in model.weights]
    try:
        perturb(model, seed)
        yield
    finally:
        for weight, original_weight in zip(model.weights, original_weights, strict=True):
            weight.assign(original_weight)
        refresh_normalization(model)


def refresh_normalization(model: AnyKerasModel) -> None:
    """Update layers that hold a second copy of their weights (Normalization) from the weights."""
    for layer in _all_layers(model):
        if type(layer).__name__ == "Normalization" and layer.built:
            layer.finalize_state()


def _all_layers(model: AnyKerasModel) -> list[AnyKerasLayer]:
    if isinstance(model, tf.Module):  # tf_keras
        return [module for module in model.submodules if module is not model]
    return list(model._flatten_layers(include_self=False))


def _is_depthwise(layer: AnyKerasLayer) -> bool:
    return type(layer).__name__.startswith("Depthwise")  # Keras 3 names its weight "kernel", as everywhere


def _weight_role(weight: AnyKerasVariable) -> str:
    return str(weight.name).split("/")[-1].split(":")[0]


def _draw_weight(role: str, shape: tuple[int, ...], generator: np.random.Generator, old_weight: Array) -> Array:
    if not tf.as_dtype(old_weight.dtype).is_floating:  # NumPy does not count bfloat16 among the floats
        return old_weight
    if "variance" in role:
        return generator.uniform(0.5, 1.5, shape).astype(old_weight.dtype)
    if "gamma" in role:  # gamma^2 / variance averages about one: no growth from layer to layer
        return generator.uniform(0.5, 1.3, shape).astype(old_weight.dtype)
    if len(shape) < 2:
        return generator.normal(0, 0.05, shape).astype(old_weight.dtype)
    fan_in = np.prod(shape[:-2]) if "depthwise" in role else np.prod(shape[:-1])
    return generator.normal(0, np.sqrt(VARIANCE_GAIN / fan_in), shape).astype(old_weight.dtype)
