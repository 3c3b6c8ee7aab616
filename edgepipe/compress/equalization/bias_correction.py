"""Bias correction: the output shift that int8 weights cause, subtracted from the biases.

Nagel et al. 2019, arXiv 1906.04721, section 4.2. Rounding weights gives each output channel a mean error E[(W' - W) x],
the same for all inputs, which a bias can undo. Only the weights are quantized here, as TFLite stores them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel, copy_with_bias, rebuild_model
from edgepipe.compress.equalization.channel_means import UnknownMean, estimate_input_moments, propagate_mean
from edgepipe.compress.equalization.input_arrays import describe_samples, prepare_inputs
from edgepipe.compress.equalization.weighted_layers import (
    has_kernel,
    is_weighted_layer,
    quantize_kernel,
    read_bias,
    read_kernel,
)
from edgepipe.compress.qat.fake_quant import locate_kernel
from edgepipe.compress.qat.lowering.lower import iter_nodes, resolve_arguments
from edgepipe.core.arrays import Array, Arrays


@dataclass(frozen=True)
class BiasCorrection:
    """The shift added to the bias of one layer: the largest and the mean magnitude over its channels.

    `relative_shift` is the mean magnitude over the mean deviation of the layer's output; None if that is not known.
    """

    layer_name: str
    channel_count: int
    largest_shift: float
    mean_shift: float
    relative_shift: float | None


@dataclass(frozen=True)
class CorrectedModel:
    """The float model with corrected biases, the corrections, and the layers that were not corrected, with reasons."""

    folded_model: FoldedModel
    corrections: tuple[BiasCorrection, ...]
    exclusion_notes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def model(self) -> Any:
        """The tf_keras model."""
        return self.folded_model.model


def correct_biases(folded_model: FoldedModel, samples: Arrays | None = None) -> CorrectedModel:
    """Correct the biases of `folded_model` where possible; layers without a bias get one.

    With `samples` the shift is measured, in one pass that carries a float and a quantized tensor: each layer is
    corrected before the next is measured, so that the remaining error of earlier layers is covered too. Without, it is
    (W' - W) E[x], with E[x] from the batch norms' statistics.

    Raises:
        InputError: samples that do not fit.
    """
    exclusion_reasons = dict(_uncorrectable_layer_reasons(folded_model))
    layer_names = [
        layer.name
        for layer in folded_model.model.layers
        if is_weighted_layer(layer) and layer.name not in exclusion_reasons
    ]
    shift_by_layer, unknown_mean_notes = (
        _shifts_from_norms(folded_model, layer_names)
        if samples is None
        else (_measure_shifts(folded_model, layer_names, samples), [])
    )
    model = _apply_shifts(folded_model, {name: shift for name, (shift, _) in shift_by_layer.items()})
    corrections = [_summarize_shift(name, shift, deviation) for name, (shift, deviation) in shift_by_layer.items()]
    exclusion_notes = [f"{name}: {reason}" for name, reason in exclusion_reasons.items()]
    return CorrectedModel(
        replace(folded_model, model=model),
        tuple(corrections),
        (*exclusion_notes, *unknown_mean_notes),
        (describe_samples(samples),),
    )


def _uncorrectable_layer_reasons(folded_model: FoldedModel) -> Iterator[tuple[str, str]]:
    """Layers with a kernel whose bias cannot be corrected, and why."""
    call_counts = Counter(node.layer.name for node in iter_nodes(folded_model.model))
    for layer in filter(has_kernel, folded_model.model.layers):
        if layer.name in folded_model.opaque_reasons:
            yield layer.name, f"kept whole: {folded_model.opaque_reasons[layer.name]}"
        elif not is_weighted_layer(layer):
            yield layer.name, f"a {type(layer).__name__}, not a convolution or dense layer as in TFLite"
        elif call_counts[layer.name] > 1:
            yield layer.name, f"shared: it is called {call_counts[layer.name]} times, and one bias cannot correct all"


ShiftByLayer = dict[str, tuple[Array, Array | None]]  # by layer: shift to add to the bias, deviation of the output


def _apply_shifts(folded_model: FoldedModel, shift_by_layer: dict[str, Array]) -> Any:
    layers_with_bias = {name: copy_with_bias(folded_model.model.get_layer(name)) for name in shift_by_layer}
    original_layers = {name: folded_model.model.get_layer(name) for name in shift_by_layer}
    weights_by_layer = {
        name: [read_kernel(original_layers[name]), (read_bias(original_layers[name]) + shift).astype(np.float32)]
        for name, shift in shift_by_layer.items()
    }
    return rebuild_model(folded_model.model, layers_with_bias, weights_by_layer)


def _summarize_shift(name: str, shift: Array, deviation: Array | None) -> BiasCorrection:
    magnitudes = np.abs(shift)
    relative_shift = None if deviation is None else float(magnitudes.mean() / max(float(deviation.mean()), 1e-12))
    return BiasCorrection(name, len(shift), float(magnitudes.max()), float(magnitudes.mean()), relative_shift)


def _shifts_from_norms(folded_model: FoldedModel, layer_names: list[str]) -> tuple[ShiftByLayer, list[str]]:
    """-(W' - W) E[x] for each layer whose E[x] is known."""
    shift_by_layer: ShiftByLayer = {}
    unknown_mean_notes: list[str] = []
    for name, input_moments in estimate_input_moments(folded_model).items():
        if name not in layer_names:
            continue
        if isinstance(input_moments, UnknownMean):
            unknown_mean_notes.append(f"{name}: {input_moments.reason}")
            continue
        layer, statistics = folded_model.model.get_layer(name), folded_model.statistics.get(name)
        shift = propagate_mean(layer, read_kernel(layer) - quantize_kernel(layer), input_moments.mean)
        shift_by_layer[name] = shift, None if statistics is None else statistics.deviation
    return shift_by_layer, unknown_mean_notes


@dataclass(frozen=True)
class _TensorPair:
    """A tensor in float, and the same tensor with quantized weights in all layers before it."""

    float_tensor: Any
    quantized_tensor: Any


def _measure_shifts(folded_model: FoldedModel, layer_names: list[str], samples: Arrays) -> ShiftByLayer:
    """-E[W' x' - W x] for each layer, with x' the output of the corrected layers before it."""
    model = folded_model.model
    shift_by_layer: ShiftByLayer = {}
    input_tensors = [tf.constant(array) for array in prepare_inputs(model, samples)]
    pair_by_tensor_id = {
        str(id(tensor)): _TensorPair(array, array) for tensor, array in zip(model.inputs, input_tensors, strict=True)
    }
    for node, finished_tensor_ids in _nodes_with_finished_ids(model):
        tensor_pair = _call_on_pair(node.layer, *resolve_arguments(node, pair_by_tensor_id))
        if node.layer.name in layer_names:
            shift = tf.reduce_mean(
                tensor_pair.float_tensor - tensor_pair.quantized_tensor,
                axis=range(len(tensor_pair.float_tensor.shape) - 1),
            )
            shift_by_layer[node.layer.name] = (
                np.asarray(shift, np.float64),
                _channel_deviation(tensor_pair.float_tensor),
            )
            tensor_pair = _TensorPair(tensor_pair.float_tensor, tensor_pair.quantized_tensor + shift)
        output_pairs = [
            _TensorPair(*tensors)
            for tensors in zip(
                tf.nest.flatten(tensor_pair.float_tensor), tf.nest.flatten(tensor_pair.quantized_tensor), strict=True
            )
        ]
        pair_by_tensor_id.update(
            (str(id(tensor)), output_pair)
            for tensor, output_pair in zip(tf.nest.flatten(node.outputs), output_pairs, strict=True)
        )
        for tensor_id in finished_tensor_ids:
            pair_by_tensor_id.pop(tensor_id, None)
    return shift_by_layer


def _call_on_pair(layer: Any, args: Any, kwargs: dict[str, Any]) -> _TensorPair:
    float_arguments, quantized_arguments = (
        tf.nest.map_structure(
            lambda argument, side=side: side(argument) if isinstance(argument, _TensorPair) else argument,
            (args, kwargs),
        )
        for side in (attrgetter("float_tensor"), attrgetter("quantized_tensor"))
    )
    float_output = layer(*float_arguments[0], **float_arguments[1])
    if not is_weighted_layer(layer):
        return _TensorPair(float_output, layer(*quantized_arguments[0], **quantized_arguments[1]))
    variable, float_kernel = getattr(layer, locate_kernel(layer)[0]), read_kernel(layer)
    variable.assign(quantize_kernel(layer))
    try:
        return _TensorPair(float_output, layer(*quantized_arguments[0], **quantized_arguments[1]))
    finally:
        variable.assign(float_kernel)


def _channel_deviation(tensor: Any) -> Array:
    return np.asarray(tf.math.reduce_std(tensor, axis=range(len(tensor.shape) - 1)))


def _nodes_with_finished_ids(model: Any) -> Iterator[tuple[Any, list[str]]]:
    """Each layer call with the keys of the tensors that are not read after it."""
    layer_nodes = list(iter_nodes(model))
    last_use_by_tensor_id = {key: position for position, node in enumerate(layer_nodes) for key in node.flat_input_ids}
    for node_index, node in enumerate(layer_nodes):
        yield node, [key for key in set(node.flat_input_ids) if last_use_by_tensor_id[key] == node_index]
