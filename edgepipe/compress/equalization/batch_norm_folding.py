"""Batch-norm folding into the preceding convolutions; keeps the statistics that the batch norms have learned."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.equalization.input_arrays import measure_difference, prepare_inputs
from edgepipe.compress.equalization.weighted_layers import broadcast_outputs, is_weighted_layer, read_kernel
from edgepipe.compress.qat.bias_limits import compute_norm_folding
from edgepipe.compress.qat.lowering.lower import LoweredModel, lower_model, nodes, pack_inputs, resolve_arguments
from edgepipe.compress.qat.lowering.opaque_layers import copy_layer
from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.perturb import refresh_normalization

K = tf_keras.layers


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel of a tensor, (channels,) each, taken as normally distributed."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class FoldedModel:
    """A tf_keras model of plain layers, its activation statistics, and its difference from the original.

    `model` has convolutions and dense layers without activation, named as in the original; the activations are layers
    after them. `statistics` are of weighted layers' outputs, by name: those of the batch norm folded into the layer.
    `opaque_reasons` are layers that were not lowered, with the reason. `difference` is the largest relative difference
    of the outputs from the original's.
    """

    model: Any
    statistics: dict[str, ChannelStatistics]
    opaque_reasons: dict[str, str]
    difference: float
    notes: tuple[str, ...]


def fold_batch_norms(model: Any, samples: Arrays | None = None) -> FoldedModel:
    """Lower the tf_keras `model` (`edgepipe.compress.qat.lowering.lower`) and fold its batch norms.

    W' = W gamma / sqrt(variance + epsilon), b' = beta + (b - mean) gamma / sqrt(variance + epsilon). The result is
    compared with `model` on `samples`, or on random inputs without them.

    Raises:
        InputError: the folded model's outputs differ; or samples that do not fit.
    """
    lowered_model = lower_model(model, lambda layer: False)
    norms = dict(_foldable_norms(lowered_model))
    unfolded_notes = [
        f"'{name}' is not folded: {reason}" for name, reason in _unfolded_norms(lowered_model, set(norms.values()))
    ]
    input_arrays = prepare_inputs(lowered_model.model, samples)
    layers = {name: copy_with_bias(lowered_model.model.get_layer(name)) for name in norms}
    bypassed_norms = dict.fromkeys(norms.values())
    weights = {name: _fold_weights(lowered_model.model, name, norm) for name, norm in norms.items()}
    rebuilt_model = rebuild_model(lowered_model.model, {**layers, **bypassed_norms}, weights)
    opaque_reasons = {
        name: origin.opaque_reason for name, origin in lowered_model.origins.items() if origin.opaque_reason
    }
    opaque_notes = [f"'{name}' is kept whole: {reason}" for name, reason in opaque_reasons.items()]
    return FoldedModel(
        rebuilt_model,
        _collect_statistics(lowered_model, norms),
        opaque_reasons,
        measure_difference(model, rebuilt_model, input_arrays),
        (*unfolded_notes, *opaque_notes),
    )


def _foldable_norms(lowered_model: LoweredModel) -> Iterator[tuple[str, str]]:
    """(convolution, batch norm) that can be folded: the convolution is called only once."""
    calls = Counter(node.layer.name for node in nodes(lowered_model.model))
    sources: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(lowered_model.model):
        if isinstance(node.layer, K.BatchNormalization):
            sources[node.layer.name].append(node.keras_inputs[0]._keras_history.layer)
    for norm, source_layers in sources.items():
        if not lowered_model.origins[norm].opaque_reason and all(
            is_weighted_layer(layer) and calls[layer.name] == 1 for layer in source_layers
        ):
            yield from ((layer.name, norm) for layer in source_layers)


def _unfolded_norms(lowered_model: LoweredModel, folded_norms: set[str]) -> Iterator[tuple[str, str]]:
    for layer in lowered_model.model.layers:
        if isinstance(layer, K.BatchNormalization) and layer.name not in folded_norms:
            yield (
                layer.name,
                lowered_model.origins[layer.name].opaque_reason or "the layer before it is shared, or not a plain one",
            )


def _fold_weights(model: Any, name: str, norm: str) -> list[Array]:
    layer = model.get_layer(name)
    factor, bias = compute_norm_folding(layer, model.get_layer(norm))
    factors = np.broadcast_to(factor, np.shape(bias))
    return [(read_kernel(layer) * broadcast_outputs(layer, factors)).astype(np.float32), bias.astype(np.float32)]


def _collect_statistics(lowered_model: LoweredModel, norms: dict[str, str]) -> dict[str, ChannelStatistics]:
    """The statistics of folded batch norms, and of standalone ones, which were lowered to depthwise convolutions."""
    standalone_norms = {
        name: origin.layer
        for name, origin in lowered_model.origins.items()
        if isinstance(origin.layer, K.BatchNormalization) and name not in norms.values() and not origin.opaque_reason
    }
    folded_norms = {name: lowered_model.model.get_layer(norm) for name, norm in norms.items()}
    return {name: _norm_statistics(norm) for name, norm in {**folded_norms, **standalone_norms}.items()}


def _norm_statistics(norm: Any) -> ChannelStatistics:
    size = norm.moving_mean.shape
    gamma = np.abs(np.asarray(norm.gamma, np.float64)) if norm.scale else np.ones(size)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(size)
    return ChannelStatistics(beta, gamma)


def copy_with_bias(layer: Any) -> Any:
    """A new layer with the config of `layer`, and a bias."""
    return type(layer).from_config({**layer.get_config(), "use_bias": True})


def rebuild_model(model: Any, layers: dict[str, Any], weights: dict[str, list[Array]]) -> Any:
    """A copy of `model` with some layers replaced.

    `layers` are the replacements by name, None for a layer that is bypassed; `weights` are those of the replacements.
    All other layers are copied with their weights.
    """
    inputs = [_input(tensor) for tensor in model.inputs]
    layer_by_name = {layer.name: copy_layer(layer) for layer in model.layers if layer.name not in layers} | layers
    tensor_by_id = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    for node in nodes(model):
        args, kwargs = resolve_arguments(node, tensor_by_id)
        layer = layer_by_name[node.layer.name]
        outputs = args[0] if layer is None else layer(*args, **kwargs)
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensor_by_id[str(id(tensor))] = output
    model_outputs = [tensor_by_id[str(id(tensor))] for tensor in model.outputs]
    twin = tf_keras.Model(
        pack_inputs(model, inputs), model_outputs if len(model_outputs) > 1 else model_outputs[0], name=model.name
    )
    twin.output_names = list(model.output_names)
    for name in {node.layer.name for node in nodes(model)} - {
        name for name, layer in layer_by_name.items() if layer is None
    }:
        layer_by_name[name].set_weights(weights.get(name) or model.get_layer(name).get_weights())
    refresh_normalization(twin)
    return twin


def _input(tensor: Any) -> Any:
    name = tensor._keras_history.layer.name
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=name)
