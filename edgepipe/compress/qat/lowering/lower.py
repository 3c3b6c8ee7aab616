"""Rewrites a tf_keras model so that each layer is one TFLite operator, which fake-quant can be placed on.

Separable convolutions are split, normalizations and attention are decomposed, activations become layers of their own,
1-D and higher-dimensional layers become 2-D ones, and nested models are inlined. The lowered model computes the same
outputs as the original; `edgepipe.compress.qat.activation_placement` then decides where fake-quant is placed.
"""

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.layer_rules import find_rule
from edgepipe.compress.qat.lowering.lowering_context import LayerOrigin, LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.masks import compute_output_mask, takes_mask
from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError
from edgepipe.models.keras_types import KerasNode, KerasTensor, TensorTree, TfKerasLayer, TfKerasModel
from edgepipe.models.port_names import output_names

TOLERANCE = 1e-4  # relative to the largest value of an output, as for the bridge


@dataclass(frozen=True)
class LoweredModel:
    """The lowered model, and the original layer behind each of its layers, by name.

    `layer_outputs` lists every original layer in the order of computation with the name of the lowered layer that
    computes its output. That layer has another origin if nothing was left to do, as for a ReLU merged into an earlier
    one.
    """

    model: TfKerasModel
    origin_by_name: dict[str, LayerOrigin]
    layer_output_names: list[tuple[TfKerasLayer, str]]


def lower_model(model: TfKerasModel, is_excluded: Callable[[TfKerasLayer], bool]) -> LoweredModel:
    """Lower `model`; layers for which `is_excluded` is true are kept as they are."""
    ctx = LoweringContext(taken_names={tensor._keras_history.layer.name for tensor in model.inputs})
    readers_by_name = find_readers(model)
    inputs = [_build_input(tensor, readers_by_name) for tensor in model.inputs]

    def lower_call(call: LoweringCall) -> tuple[TensorTree, KerasTensor | None]:
        ctx.current_layer = call.layer
        call = replace(call, output_mask=compute_output_mask(ctx, call))
        output = find_rule(call.layer, is_excluded(call.layer))(ctx, call)
        ctx.record_output(output)
        return output, call.output_mask

    outputs = _walk_calls(model, inputs, lower_call, ctx, {})
    lowered_model = tf_keras.Model(
        pack_inputs(model, inputs), outputs if len(outputs) > 1 else outputs[0], name=model.name
    )
    lowered_model.output_names = output_names(model)
    return LoweredModel(lowered_model, ctx.origin_by_name, list(ctx.output_name_by_layer_id.values()))


def pack_inputs(model: TfKerasModel, inputs: list[KerasTensor]) -> TensorTree:
    """`inputs` in the structure that `model` is called with: one tensor, a list or a dictionary."""
    nested_inputs = getattr(model, "_nested_inputs", None)
    return (
        inputs[0]
        if len(inputs) == 1 and not isinstance(nested_inputs, dict)
        else tf.nest.pack_sequence_as(nested_inputs, inputs)
    )


def _build_input(tensor: KerasTensor, readers_by_name: dict[str, list[TfKerasLayer]]) -> KerasTensor:
    name = tensor._keras_history.layer.name
    # Keras accepts float indices too, but an index does not survive quantization to eight bits
    is_index = bool(readers_by_name[name]) and all(
        isinstance(layer, tf_keras.layers.Embedding) for layer in readers_by_name[name]
    )
    dtype = "int32" if is_index else tensor.dtype
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=dtype, name=name)


def _walk_calls(
    model: TfKerasModel,
    inputs: list[KerasTensor],
    lower_call: Callable[[LoweringCall], tuple[TensorTree, KerasTensor | None]],
    ctx: LoweringContext,
    mask_by_id: dict[str, KerasTensor],
) -> list[KerasTensor]:
    """Run `lower_call` on every layer call of `model` in order, nested models inlined; returns the outputs.

    `mask_by_id` holds the lowered mask of each tensor of the original that has one; those of the model's tensors are
    added.
    """
    tensor_by_id = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    read_count_by_tensor_id, call_count_by_layer_id = (
        _count_reads(model),
        Counter(id(node.layer) for node in iter_nodes(model)),
    )
    for node in iter_nodes(model):
        args, kwargs = resolve_arguments(node, tensor_by_id)
        layer = node.layer
        masks = [mask_by_id.get(key) for key in node.flat_input_ids]
        if isinstance(layer, tf_keras.Model):
            inner_masks = _present_masks(layer.inputs, masks)
            outputs: TensorTree = _walk_calls(layer, tf.nest.flatten(args), lower_call, ctx, inner_masks)
            output_masks = [inner_masks.get(str(id(tensor))) for tensor in layer.outputs]
        else:
            lowered_ids = (id(tensor_by_id[key]) for key in node.flat_input_ids)
            mask_by_input_id = {key: mask for key, mask in zip(lowered_ids, masks, strict=True) if mask is not None}
            is_only_call = call_count_by_layer_id[id(layer)] == 1
            outputs, mask = lower_call(_build_call(layer, args, kwargs, is_only_call, mask_by_input_id))
            output_masks = [mask]
        mask_by_id |= _present_masks(tf.nest.flatten(node.outputs), output_masks)
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensor_by_id[str(id(tensor))] = output
            (ctx.read_once_ids.add if read_count_by_tensor_id[str(id(tensor))] == 1 else ctx.read_once_ids.discard)(
                id(output)
            )
    return [tensor_by_id[str(id(tensor))] for tensor in model.outputs]


def _present_masks(tensors: list[KerasTensor], masks: list[KerasTensor | None]) -> dict[str, KerasTensor]:
    """The masks by the ids of their tensors; tensors beyond the masks have none."""
    return {str(id(tensor)): mask for tensor, mask in zip(tensors, masks, strict=False) if mask is not None}


def _build_call(
    layer: TfKerasLayer,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    is_only_call: bool,
    mask_by_input_id: Mapping[int, KerasTensor],
) -> LoweringCall:
    """The call, its mask, if it has one, among the keyword arguments: what travels beside the inputs is passed too."""
    parameter_names = list(inspect.signature(layer.call).parameters)
    if "mask" in parameter_names and len(args) == parameter_names.index("mask") + 1:
        args, kwargs = args[:-1], {**kwargs, "mask": args[-1]}
    ignores_masks = "mask" in kwargs and kwargs["mask"] is None  # asked to
    call = LoweringCall(
        layer,
        args[0] if args else None,
        args[1:],
        _drop_unset_kwargs(kwargs),
        is_only_call,
        {} if ignores_masks else mask_by_input_id,
    )
    if not takes_mask(layer) or all(mask is None for mask in tf.nest.flatten(call.mask_argument)):
        return call
    return replace(call, kwargs={**call.kwargs, "mask": call.mask_argument})


def iter_nodes(model: TfKerasModel) -> Iterator[KerasNode]:
    """The layer calls of a functional tf_keras model, in the order of computation."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def resolve_arguments(node: KerasNode, tensor_by_id: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer call, its symbolic tensors replaced by those of `tensor_by_id`."""
    # Keras pops one tensor per use
    tensors_by_id = {key: [tensor_by_id[key]] * node.flat_input_ids.count(key) for key in node.flat_input_ids}
    call_arguments: tuple[tuple[Any, ...], dict[str, Any]] = node.map_arguments(tensors_by_id)
    return call_arguments


def find_readers(model: TfKerasModel) -> dict[str, list[TfKerasLayer]]:
    """The layers that read the output of each layer, by its name; a layer that reads it twice is listed twice."""
    readers_by_name: dict[str, list[TfKerasLayer]] = defaultdict(list)
    for node in iter_nodes(model):
        for tensor in tf.nest.flatten(node.keras_inputs):
            readers_by_name[tensor._keras_history.layer.name].append(node.layer)
    return readers_by_name


def _count_reads(model: TfKerasModel) -> Counter[str]:
    """How often each tensor is read, by id; being a model output counts as one read."""
    read_ids = [key for node in iter_nodes(model) for key in node.flat_input_ids]
    return Counter([*read_ids, *(str(id(tensor)) for tensor in model.outputs)])


def _drop_unset_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: argument for key, argument in kwargs.items() if argument is not None and key != "training"}


def check_equal_outputs(model: TfKerasModel, lowered_model: TfKerasModel, samples: Arrays) -> float:
    """The largest difference between the outputs of both models on `samples`, relative to the largest output.

    Raises:
        InputError: the difference is above 1e-4.
    """
    worst_difference = 0.0
    for a, b in zip(
        *(map(np.asarray, tf.nest.flatten(m(samples, training=False))) for m in (model, lowered_model)), strict=True
    ):
        worst_difference = max(worst_difference, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    if not worst_difference <= TOLERANCE:
        raise InputError(
            f"'{model.name}' rewritten for quantization differs from the original by {worst_difference:.1e} of its "
            f"largest output (allowed {TOLERANCE:.0e}); please report it"
        )
    return worst_difference
