"""Masks of Keras as tensors of the lowered model.

In a Keras model, masks travel beside the tensors: an `Embedding(mask_zero=True)` or a `Masking` computes one, other
layers hand it on or use it, and no graph shows it. The lowered model computes each mask by operators, and gives it to
whatever uses it as an argument; none of its layers has an implicit mask.
"""

import inspect
import json
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lowering_context import LoweringCall, LoweringContext, Mask
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import Keras3Layer, MaskAttachment, MaskReader, OperatorLayer
from edgepipe.models.keras_operators import decode_argument, is_tensor
from edgepipe.models.keras_types import KerasTensor, TfKerasLayer

K = tf_keras.layers
MASK_FILL = -1e9  # what Keras adds to masked scores in float32
_ENDING_CLASSES = (K.GlobalAveragePooling1D, K.Dot, MaskReader)  # use up the masks of their inputs
_FIRST_MASK_CLASSES = (K.Attention, K.AdditiveAttention, K.TimeDistributed)  # hand on that of their first input


def takes_mask(layer: TfKerasLayer) -> bool:
    """Whether Keras gives `layer` the masks of its inputs as the argument `mask`."""
    return bool(layer._expects_mask_arg)


def compute_output_mask(ctx: LoweringContext, call: LoweringCall) -> Mask | None:
    """The mask that Keras attaches to the first output of the layer, as a tensor of the lowered model; None for none.

    Raises:
        InputError: a custom layer computes a mask of its own.
    """
    layer = call.layer
    if isinstance(layer, MaskAttachment):
        return call.inputs[1]
    if isinstance(layer, K.Embedding):
        return ctx.op("NotEqual", call.x, "mask", 0) if layer.mask_zero else None
    if isinstance(layer, K.Masking):
        return ctx.op("Any", ctx.op("NotEqual", call.x, "unmasked", float(layer.mask_value)), "mask", axis=-1)
    masks = tf.nest.flatten(call.mask_argument)
    if not layer.supports_masking or all(mask is None for mask in masks) or _ends_masks(layer):
        return None
    return _handed_on_mask(ctx, call, masks)


def _handed_on_mask(ctx: LoweringContext, call: LoweringCall, masks: list[Mask | None]) -> Mask | None:
    layer = call.layer
    if isinstance(layer, (K.RNN, K.Bidirectional)):
        return masks[0] if layer.return_sequences else None
    if isinstance(layer, K.Concatenate):
        return _joined_mask(ctx, call, masks)
    if isinstance(layer, K.Add.__base__):  # the base of all merging layers
        return combine_masks(ctx, [mask for mask in masks if mask is not None], "mask")
    if isinstance(layer, _FIRST_MASK_CLASSES) or _hands_mask_on(layer):
        return masks[0]
    raise InputError(
        f"layer '{layer.name}', of class {type(layer).__name__}, computes a mask of its own (compute_mask), which "
        "quantization-aware training cannot carry over; compute the mask with keras.ops and pass it as an argument, or "
        "leave out `quantize`: `convert` alone quantizes after training"
    )


def _ends_masks(layer: TfKerasLayer) -> bool:
    return isinstance(layer, _ENDING_CLASSES) or (isinstance(layer, K.Lambda) and layer.mask is None)


def _hands_mask_on(layer: TfKerasLayer) -> bool:
    if isinstance(layer, Keras3Layer):
        return type(layer.keras3_layer).compute_mask is keras.Layer.compute_mask
    return inspect.getattr_static(type(layer), "compute_mask") is K.Layer.compute_mask


def _joined_mask(ctx: LoweringContext, call: LoweringCall, masks: list[Mask | None]) -> Mask | None:
    """Masks joined along the steps, where Keras demands one of each input; along the features, their logical and."""
    given_masks = [mask for mask in masks if mask is not None]
    if call.layer.axis in (-1, len(call.x.shape) - 1):
        return combine_masks(ctx, given_masks, "mask")
    return ctx.apply(K.Concatenate(axis=call.layer.axis, name=f"{call.layer.name}_mask"), given_masks)


def combine_masks(ctx: LoweringContext, masks: list[Mask], suffix: str) -> Mask:
    """The logical and of masks, each a bool tensor or a constant; equal ones count once."""
    constants = [mask for mask in masks if not is_tensor(mask)]
    tensors = list({id(mask): mask for mask in masks if is_tensor(mask)}.values())
    constant = np.logical_and.reduce(constants) if constants else None
    if not tensors:
        return constant
    combined_mask = tensors[0]
    for number, mask in enumerate(tensors[1:], 1):
        combined_mask = ctx.op("LogicalAnd", [combined_mask, mask], f"{suffix}_and{number}")
    return combined_mask if constant is None else ctx.op("LogicalAnd", combined_mask, f"{suffix}_and", constant)


def boolean_mask(ctx: LoweringContext, mask: Any, suffix: str) -> Mask:
    """A mask of any type as bool: a tensor, or a constant."""
    if not is_tensor(mask):
        return np.asarray(mask).astype(bool)
    return mask if mask.dtype.is_bool else ctx.op("NotEqual", mask, f"{suffix}_bool", 0)


def constant_or_tensor(mask: Any) -> Any:
    """A mask as the constant that it is, if an operator of the bridge holds it."""
    layer = getattr(mask, "_keras_history", (None,))[0]
    if not isinstance(layer, OperatorLayer) or layer.operator != "Constant":
        return mask
    return decode_argument(json.loads(layer.arguments)["args"][1], [])


def expand_mask(ctx: LoweringContext, mask: Mask, axis: int, suffix: str) -> Mask:
    """`mask` with an axis of length one; without a negative `axis`, layers of the same suffix would collide."""
    return ctx.op("ExpandDims", mask, suffix, axis=axis) if is_tensor(mask) else np.expand_dims(mask, axis)


def fill_scores(ctx: LoweringContext, scores: KerasTensor, mask: Any) -> KerasTensor:
    """`scores` with minus a billion where `mask` is false, before a softmax.

    Keras adds minus a billion, in float32 the same as to replace the score by it. The sum with a constant runs on more
    devices than a selection; a selection needs no float form of a bool mask. A float mask may be a fraction.
    """
    if not is_tensor(mask):
        return ctx.op("Add", scores, "masked", np.where(np.asarray(mask).astype(bool), 0.0, MASK_FILL).astype("f4"))
    if mask.dtype.is_floating:
        hidden_share = ctx.op("Add", ctx.op("Multiply", mask, "minus_mask", -1.0), "hidden", 1.0)
        return ctx.op("Add", [scores, ctx.op("Multiply", hidden_share, "fill", MASK_FILL)], "masked")
    return ctx.op("Where", [boolean_mask(ctx, mask, "mask"), scores], "masked", MASK_FILL)


def clear_masked_steps(ctx: LoweringContext, x: KerasTensor, mask: Mask, suffix: str) -> KerasTensor:
    """`x`, (batch, steps, ...), with zeros at the steps where `mask`, (batch, steps), is false."""
    for number in range(len(x.shape) - len(mask.shape)):
        mask = expand_mask(ctx, mask, -1, f"{suffix}_axis{number}")
    return ctx.op("Where", [mask, x], suffix, 0.0)


def lower_masking(ctx: LoweringContext, call: LoweringCall) -> KerasTensor:
    """Steps whose features all have the mask value become zero."""
    return clear_masked_steps(ctx, call.x, call.output_mask, "cleared")


def average_unmasked(ctx: LoweringContext, call: LoweringCall, mask: KerasTensor) -> KerasTensor:
    """The mean over the steps of (batch, steps, features) that `mask` keeps: their sum, divided by their number."""
    keepdims = bool(call.layer.keepdims)
    cleared_x = clear_masked_steps(ctx, call.x, mask, "cleared")
    weights = ctx.op("Where", expand_mask(ctx, mask, -1, "weights_axis"), "weights", 1.0, 0.0)
    total = ctx.op("Sum", cleared_x, "sum", axis=1, keepdims=keepdims)
    return ctx.op("Divide", [total, ctx.op("Sum", weights, "count", axis=1, keepdims=keepdims)], "mean")
