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
from edgepipe.compress.qat.lowering.lower import LoweredModel, iter_nodes, lower_model, pack_inputs, resolve_arguments
from edgepipe.compress.qat.lowering.opaque_layers import copy_layer
from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.perturb import refresh_normalization
from edgepipe.models.port_names import output_names

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
    output_difference: float
    notes: tuple[str, ...]


def fold_batch_norms(model: Any, samples: Arrays | None = None) -> FoldedModel:
    """Lower the tf_keras `model` (`edgepipe.compress.qat.lowering.lower`) and fold its batch norms.

    W' = W gamma / sqrt(variance + epsilon), b' = beta + (b - mean) gamma / sqrt(variance + epsilon). The result is
    compared with `model` on `samples`, or on random inputs without them.

    Raises:
        InputError: the folded model's outputs differ; or samples that do not fit.
    """
    lowered_model = lower_model(model, lambda layer: False)
    norm_by_layer = dict(_foldable_layer_norm_pairs(lowered_model))
    unfolded_notes = [
        f"'{name}' is not folded: {reason}"
        for name, reason in _unfolded_norm_reasons(lowered_model, set(norm_by_layer.values()))
    ]
    input_arrays = prepare_inputs(lowered_model.model, samples)
    layers_with_bias = {name: copy_with_bias(lowered_model.model.get_layer(name)) for name in norm_by_layer}
    bypassed_norms = dict.fromkeys(norm_by_layer.values())
    weights_by_layer = {name: _fold_weights(lowered_model.model, name, norm) for name, norm in norm_by_layer.items()}
    rebuilt_model = rebuild_model(lowered_model.model, {**layers_with_bias, **bypassed_norms}, weights_by_layer)
    opaque_reasons = {
        name: origin.opaque_reason for name, origin in lowered_model.origin_by_name.items() if origin.opaque_reason
    }
    opaque_notes = [f"'{name}' is kept whole: {reason}" for name, reason in opaque_reasons.items()]
    return FoldedModel(
        rebuilt_model,
        _collect_statistics(lowered_model, norm_by_layer),
        opaque_reasons,
        measure_difference(model, rebuilt_model, input_arrays),
        (*unfolded_notes, *opaque_notes),
    )


def _foldable_layer_norm_pairs(lowered_model: LoweredModel) -> Iterator[tuple[str, str]]:
    """(convolution, batch norm) that can be folded: the convolution is called only once."""
    call_counts = Counter(node.layer.name for node in iter_nodes(lowered_model.model))
    source_layers_by_norm: dict[str, list[Any]] = defaultdict(list)
    for node in iter_nodes(lowered_model.model):
        if isinstance(node.layer, K.BatchNormalization):
            source_layers_by_norm[node.layer.name].append(node.keras_inputs[0]._keras_history.layer)
    for norm_name, source_layers in source_layers_by_norm.items():
        if not lowered_model.origin_by_name[norm_name].opaque_reason and all(
            is_weighted_layer(layer) and call_counts[layer.name] == 1 for layer in source_layers
        ):
            yield from ((layer.name, norm_name) for layer in source_layers)


def _unfolded_norm_reasons(lowered_model: LoweredModel, folded_norm_names: set[str]) -> Iterator[tuple[str, str]]:
    for layer in lowered_model.model.layers:
        if isinstance(layer, K.BatchNormalization) and layer.name not in folded_norm_names:
            yield (
                layer.name,
                lowered_model.origin_by_name[layer.name].opaque_reason
                or "the layer before it is shared, or not a plain one",
            )


def _fold_weights(model: Any, name: str, norm_name: str) -> list[Array]:
    layer = model.get_layer(name)
    factor, bias = compute_norm_folding(layer, model.get_layer(norm_name))
    factors = np.broadcast_to(factor, np.shape(bias))
    return [(read_kernel(layer) * broadcast_outputs(layer, factors)).astype(np.float32), bias.astype(np.float32)]


def _collect_statistics(lowered_model: LoweredModel, norm_by_layer: dict[str, str]) -> dict[str, ChannelStatistics]:
    """The statistics of folded batch norms, and of standalone ones, which were lowered to depthwise convolutions."""
    standalone_norms = {
        name: origin.layer
        for name, origin in lowered_model.origin_by_name.items()
        if isinstance(origin.layer, K.BatchNormalization)
        and name not in norm_by_layer.values()
        and not origin.opaque_reason
    }
    folded_norms = {name: lowered_model.model.get_layer(norm) for name, norm in norm_by_layer.items()}
    return {name: _norm_statistics(norm) for name, norm in {**folded_norms, **standalone_norms}.items()}


def _norm_statistics(batch_norm: Any) -> ChannelStatistics:
    channel_shape = batch_norm.moving_mean.shape
    gamma = np.abs(np.asarray(batch_norm.gamma, np.float64)) if batch_norm.scale else np.ones(channel_shape)
    beta = np.asarray(batch_norm.beta, np.float64) if batch_norm.center else np.zeros(channel_shape)
    return ChannelStatistics(beta, gamma)


def copy_with_bias(layer: Any) -> Any:
    """A new layer with the config of `layer`, and a bias."""
    return type(layer).from_config({**layer.get_config(), "use_bias": True})


def rebuild_model(model: Any, replacement_layers: dict[str, Any], weights_by_layer: dict[str, list[Array]]) -> Any:
    """A copy of `model` with some layers replaced.

    `layers` are the replacements by name, None for a layer that is bypassed; `weights` are those of the replacements.
    All other layers are copied with their weights.
    """
    input_tensors = [_clone_input(tensor) for tensor in model.inputs]
    layer_by_name = {
        layer.name: copy_layer(layer) for layer in model.layers if layer.name not in replacement_layers
    } | replacement_layers
    tensor_by_id = dict(zip((str(id(tensor)) for tensor in model.inputs), input_tensors, strict=True))
    for node in iter_nodes(model):
        args, kwargs = resolve_arguments(node, tensor_by_id)
        layer = layer_by_name[node.layer.name]
        outputs = args[0] if layer is None else layer(*args, **kwargs)
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensor_by_id[str(id(tensor))] = output
    model_outputs = [tensor_by_id[str(id(tensor))] for tensor in model.outputs]
    rebuilt_model = tf_keras.Model(
        pack_inputs(model, input_tensors),
        model_outputs if len(model_outputs) > 1 else model_outputs[0],
        name=model.name,
    )
    rebuilt_model.output_names = output_names(model)
    for name in {node.layer.name for node in iter_nodes(model)} - {
        name for name, layer in layer_by_name.items() if layer is None
    }:
        layer_by_name[name].set_weights(weights_by_layer.get(name) or model.get_layer(name).get_weights())
    refresh_normalization(rebuilt_model)
    return rebuilt_model


def _clone_input(tensor: Any) -> Any:
    name = tensor._keras_history.layer.name
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=name)
