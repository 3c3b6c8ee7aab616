"""Rewrites a tf_keras model so that each layer is one TFLite operator, which fake-quant can be placed on.

Separable convolutions are split, normalizations and attention are decomposed, activations become layers of their own,
1-D and higher-dimensional layers become 2-D ones, and nested models are inlined. The lowered model computes the same
outputs as the original; `edgepipe.compress.qat.activation_placement` then decides where fake-quant is placed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.layer_rules import find_rule
from edgepipe.compress.qat.lowering.lowering_context import LayerOrigin, LoweringCall, LoweringContext
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

    def lower_call(call: LoweringCall) -> TensorTree:
        ctx.current_layer = call.layer
        output = find_rule(call.layer, is_excluded(call.layer))(ctx, call)
        ctx.record_output(output)
        return output

    outputs = _walk_calls(model, inputs, lower_call, ctx)
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
    lower_call: Callable[[LoweringCall], TensorTree],
    ctx: LoweringContext,
) -> list[KerasTensor]:
    """Run `lower_call` on every layer call of `model` in order, nested models inlined; returns the outputs."""
    tensor_by_id = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    read_count_by_tensor_id, call_count_by_layer_id = (
        _count_reads(model),
        Counter(id(node.layer) for node in iter_nodes(model)),
    )
    for node in iter_nodes(model):
        args, kwargs = resolve_arguments(node, tensor_by_id)
        layer = node.layer
        if isinstance(layer, tf_keras.Model):
            outputs: TensorTree = _walk_calls(layer, tf.nest.flatten(args), lower_call, ctx)
        else:
            first_arg, is_only_call = args[0] if args else None, call_count_by_layer_id[id(layer)] == 1
            outputs = lower_call(LoweringCall(layer, first_arg, args[1:], _drop_unset_kwargs(kwargs), is_only_call))
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensor_by_id[str(id(tensor))] = output
            (ctx.read_once_ids.add if read_count_by_tensor_id[str(id(tensor))] == 1 else ctx.read_once_ids.discard)(
                id(output)
            )
    return [tensor_by_id[str(id(tensor))] for tensor in model.outputs]


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
