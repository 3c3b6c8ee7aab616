"""A model whose batch norms are folded into the convolutions before them, and the statistics that they knew."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.equalization.input_arrays import difference, feeds
from edgepipe.compress.equalization.weighted_layers import along_outputs, kernel, weighted
from edgepipe.compress.qat.bias_limits import folding
from edgepipe.compress.qat.lowering.lower import Lowered, arguments, lower, nodes, structured
from edgepipe.compress.qat.lowering.opaque_layers import copy
from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.perturb import settle

K = tf_keras.layers


@dataclass(frozen=True)
class Normal:
    """Mean and standard deviation of each channel of a tensor, (channels,) each, as of a normal distribution."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Folded:
    """A tf_keras model of plain layers, and what is known about it.

    `model` has convolutions and dense layers without activation, named as in the original; the activations are layers
    behind them. `statistics` are of a weighted layer's output, by name: what the batch norm folded into it has learned.
    `whole` are layers that were not written out, with the reason. `difference` is the largest of the outputs from the
    original's, relative.
    """

    model: Any
    statistics: dict[str, Normal]
    whole: dict[str, str]
    difference: float
    notes: tuple[str, ...]


def folded(model: Any, samples: Arrays | None = None) -> Folded:
    """The tf_keras `model` lowered (`edgepipe.compress.qat.lowering.lower`), its batch norms folded.

    W' = W gamma / sqrt(variance + epsilon), b' = beta + (b - mean) gamma / sqrt(variance + epsilon). The result is
    compared with `model` on `samples`, on random inputs without.

    Raises:
        InputError: it computes something else; or samples that do not fit.
    """
    lowered = lower(model, lambda layer: False)
    norms = dict(_norms(lowered))
    kept = [f"'{name}' is not folded: {reason}" for name, reason in _unfolded(lowered, set(norms.values()))]
    fed = feeds(lowered.model, samples)
    layers = {name: with_bias(lowered.model.get_layer(name)) for name in norms}
    passed = dict.fromkeys(norms.values())
    weights = {name: _weights(lowered.model, name, norm) for name, norm in norms.items()}
    result = rebuilt(lowered.model, {**layers, **passed}, weights)
    whole = {name: origin.whole for name, origin in lowered.origins.items() if origin.whole}
    notes = [f"'{name}' is kept whole: {reason}" for name, reason in whole.items()]
    return Folded(result, _statistics(lowered, norms), whole, difference(model, result, fed), (*kept, *notes))


def _norms(lowered: Lowered) -> Iterator[tuple[str, str]]:
    """(convolution, batch norm) that can become one: nothing else calls the convolution."""
    calls = Counter(node.layer.name for node in nodes(lowered.model))
    sources: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(lowered.model):
        if isinstance(node.layer, K.BatchNormalization):
            sources[node.layer.name].append(node.keras_inputs[0]._keras_history.layer)
    for norm, before in sources.items():
        if not lowered.origins[norm].whole and all(weighted(layer) and calls[layer.name] == 1 for layer in before):
            yield from ((layer.name, norm) for layer in before)


def _unfolded(lowered: Lowered, folded_in: set[str]) -> Iterator[tuple[str, str]]:
    for layer in lowered.model.layers:
        if isinstance(layer, K.BatchNormalization) and layer.name not in folded_in:
            yield layer.name, lowered.origins[layer.name].whole or "the layer before it is shared, or not a plain one"


def _weights(model: Any, name: str, norm: str) -> list[Array]:
    layer = model.get_layer(name)
    factor, bias = folding(layer, model.get_layer(norm))
    every = np.broadcast_to(factor, np.shape(bias))
    return [(kernel(layer) * along_outputs(layer, every)).astype(np.float32), bias.astype(np.float32)]


def _statistics(lowered: Lowered, norms: dict[str, str]) -> dict[str, Normal]:
    """Of folded norms, and of those that stand alone, which are depthwise convolutions now."""
    alone = {
        name: origin.layer
        for name, origin in lowered.origins.items()
        if isinstance(origin.layer, K.BatchNormalization) and name not in norms.values() and not origin.whole
    }
    found = {name: lowered.model.get_layer(norm) for name, norm in norms.items()}
    return {name: _normal(norm) for name, norm in {**found, **alone}.items()}


def _normal(norm: Any) -> Normal:
    size = norm.moving_mean.shape
    gamma = np.abs(np.asarray(norm.gamma, np.float64)) if norm.scale else np.ones(size)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(size)
    return Normal(beta, gamma)


def with_bias(layer: Any) -> Any:
    """A fresh layer like `layer`, with a bias."""
    return type(layer).from_config({**layer.get_config(), "use_bias": True})


def rebuilt(model: Any, layers: dict[str, Any], weights: dict[str, list[Array]]) -> Any:
    """`model` anew, with other layers in place of those named, None for one that passes its input on.

    `weights` are those of the layers that replace others; every other layer is a copy with the weights it had.
    """
    inputs = [_input(tensor) for tensor in model.inputs]
    made = {layer.name: copy(layer) for layer in model.layers if layer.name not in layers} | layers
    values = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    for node in nodes(model):
        args, kwargs = arguments(node, values)
        layer = made[node.layer.name]
        result = args[0] if layer is None else layer(*args, **kwargs)
        for tensor, value in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(result), strict=True):
            values[str(id(tensor))] = value
    found = [values[str(id(tensor))] for tensor in model.outputs]
    twin = tf_keras.Model(structured(model, inputs), found if len(found) > 1 else found[0], name=model.name)
    twin.output_names = list(model.output_names)
    for name in {node.layer.name for node in nodes(model)} - {name for name, layer in made.items() if layer is None}:
        made[name].set_weights(weights.get(name) or model.get_layer(name).get_weights())
    settle(twin)
    return twin


def _input(tensor: Any) -> Any:
    name = tensor._keras_history.layer.name
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=name)
