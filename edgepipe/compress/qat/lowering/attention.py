"""Attention as 1 x 1 convolutions, batched matrix products and a softmax: all int8 operators of TFLite."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.convolutions import lower_pointwise
from edgepipe.compress.qat.lowering.lowering_context import LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.masks import (
    boolean_mask,
    clear_masked_steps,
    combine_masks,
    constant_or_tensor,
    expand_mask,
    fill_scores,
)
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer

K = tf_keras.layers


def lower_multi_head_attention(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Vaswani et al. 2017 (arXiv 1706.03762), over the sequence axis of (batch, length, features)."""
    layer = call.layer
    arguments = _MultiHeadArguments.from_call(call)
    query, value, key = arguments.query, arguments.value, arguments.key
    opaque_reason = _opaque_reason(call, query)
    if opaque_reason:
        return keep_opaque(opaque_reason)(ctx, state_attention_mask(ctx, call))
    mask = _multi_head_mask(ctx, call, arguments)
    head_size = layer._key_dim
    projected_heads = [
        _project_heads(ctx, x, *_dense_weights(dense_layer), name)
        for x, dense_layer, name in (
            (query, layer._query_dense, "query"), (key, layer._key_dense, "key"), (value, layer._value_dense, "value"),
        )
    ]  # fmt: skip
    scores = ctx.op(
        "Multiply",
        _matmul(ctx, projected_heads[0], projected_heads[1], "scores", transpose=True),
        "scaled",
        head_size**-0.5,
    )
    attention_weights = _masked_softmax(ctx, scores, mask)
    attended_values = ctx.apply(
        K.Permute((2, 1, 3), name=f"{layer.name}_merge"), _matmul(ctx, attention_weights, projected_heads[2], "context")
    )
    merged_heads = ctx.reshape(
        attended_values, (query.shape[1], projected_heads[2].shape[1] * projected_heads[2].shape[3]), "joined"
    )
    kernel, bias = _dense_weights(layer._output_dense)
    return lower_pointwise(
        ctx, merged_heads, kernel.reshape(-1, kernel.shape[-1]), bias, f"{layer.name}_output", layer.trainable
    )


@dataclass(frozen=True)
class _MultiHeadArguments:
    query: KerasTensor
    value: KerasTensor
    key: KerasTensor
    has_key: bool  # whether the key was given, or is the value
    attention_mask: Any = None
    use_causal_mask: bool = False

    @classmethod
    def from_call(cls, call: LoweringCall) -> "_MultiHeadArguments":
        """The arguments by name, however they were given."""
        named = inspect.signature(call.layer.call).bind(call.inputs, *call.args, **call.kwargs).arguments
        key = named.get("key")
        return cls(
            named["query"],
            named["value"],
            named["value"] if key is None else key,
            key is not None,
            constant_or_tensor(named.get("attention_mask")),
            bool(named.get("use_causal_mask")),
        )


def _multi_head_mask(ctx: LoweringContext, call: LoweringCall, arguments: _MultiHeadArguments) -> Any:
    """The mask of the scores, (batch or 1, queries or 1, keys): explicit, implicit and causal; None for none."""
    query_mask, value_mask, key_mask = (
        call.mask_by_input_id.get(id(tensor)) for tensor in (arguments.query, arguments.value, arguments.key)
    )
    masks = [
        *([] if query_mask is None else [expand_mask(ctx, query_mask, 2, "query_mask")]),
        *([] if value_mask is None else [expand_mask(ctx, value_mask, 1, "value_mask")]),
        *([] if key_mask is None or not arguments.has_key else [expand_mask(ctx, key_mask, 1, "key_mask")]),
        *([_causal_mask(arguments.query, arguments.value)] if arguments.use_causal_mask else []),
    ]
    if not masks:
        return arguments.attention_mask
    if arguments.attention_mask is not None:
        masks.append(boolean_mask(ctx, arguments.attention_mask, "mask"))
    return combine_masks(ctx, masks, "mask")


def _causal_mask(query: KerasTensor, value: KerasTensor) -> Array:
    """(1, queries, values): a query attends to values at its own position and before."""
    return np.tril(np.ones((1, query.shape[1], value.shape[1]), bool))


def _masked_softmax(ctx: LoweringContext, scores: KerasTensor, mask: Any) -> KerasTensor:
    """The softmax of scores, (batch, [heads,] queries, keys), of which `mask` hides some."""
    if mask is not None:
        for number in range(len(scores.shape) - len(mask.shape)):
            mask = expand_mask(ctx, mask, -3, f"mask_axis{number}")
        scores = fill_scores(ctx, scores, mask)
    return ctx.apply(K.Softmax(name=f"{ctx.current_layer.name}_softmax"), scores)


def state_attention_mask(ctx: LoweringContext, call: LoweringCall) -> LoweringCall:
    """The same call of a MultiHeadAttention, with a single explicit mask in place of all its masks."""
    arguments = _MultiHeadArguments.from_call(call)
    mask = _multi_head_mask(ctx, call, arguments)
    tensors = (arguments.value, arguments.key) if arguments.has_key else (arguments.value,)
    other_options = {key: call.kwargs[key] for key in ("return_attention_scores",) if key in call.kwargs}
    mask_option = {} if mask is None else {"attention_mask": mask}
    return replace(call, inputs=arguments.query, args=tensors, kwargs={**other_options, **mask_option})


def _opaque_reason(call: LoweringCall, query: KerasTensor) -> str:
    if call.kwargs.get("return_attention_scores") or len(call.args) > 3:
        return "attention that also returns its scores"
    return "" if len(query.shape) == 3 else f"attention over {len(query.shape) - 2} axes"


def _dense_weights(dense_layer: TfKerasLayer) -> tuple[Array, Array | None]:
    return np.asarray(dense_layer.kernel), None if dense_layer.bias is None else np.asarray(dense_layer.bias)


def _project_heads(ctx: LoweringContext, x: KerasTensor, kernel: Array, bias: Array | None, name: str) -> KerasTensor:
    """(batch, length, features) -> (batch, heads, length, size)."""
    feature_count, head_count, head_size = kernel.shape
    flat_bias = None if bias is None else bias.ravel()
    projection = lower_pointwise(
        ctx, x, kernel.reshape(feature_count, head_count * head_size), flat_bias, f"{ctx.current_layer.name}_{name}"
    )
    split_heads = ctx.reshape(projection, (x.shape[1], head_count, head_size), f"{name}_heads")
    return ctx.apply(K.Permute((2, 1, 3), name=f"{ctx.current_layer.name}_{name}_turned"), split_heads)


def _matmul(ctx: LoweringContext, a: KerasTensor, b: KerasTensor, name: str, transpose: bool = False) -> KerasTensor:
    if transpose:
        axes = (*range(1, len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2)
        b = ctx.apply(K.Permute(axes, name=f"{ctx.current_layer.name}_{name}_transposed"), b)
    return ctx.op("Matmul", [a, b], name)


def lower_attention(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Luong et al. 2015 (arXiv 1508.04025): dot-product scores, optionally scaled, or those of `_summed_scores`."""
    layer, tensors = call.layer, list(call.inputs)
    query, key = tensors[0], tensors[-1]
    opaque_reason = _opaque_reason(call, query)
    if opaque_reason:
        return keep_opaque(opaque_reason)(ctx, call)
    scale = float(np.asarray(layer.scale)) if layer.use_scale else 1.0
    if layer.score_mode == "concat":
        weight = float(np.asarray(layer.concat_score_weight))
        scores = _summed_scores(ctx, query, key, scale, np.full(query.shape[-1], weight, "f4"))
        return _attend(ctx, call, scores)
    scores = _matmul(ctx, query, key, "scores", transpose=True)
    if scale != 1:
        scores = ctx.op("Multiply", scores, "scaled", scale)
    return _attend(ctx, call, scores)


def lower_additive_attention(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Bahdanau et al. 2014 (arXiv 1409.0473): the scores are weighted sums over tanh(query + key)."""
    layer, tensors = call.layer, list(call.inputs)
    opaque_reason = _opaque_reason(call, tensors[0])
    if opaque_reason:
        return keep_opaque(opaque_reason)(ctx, call)
    weights = np.asarray(layer.scale) if layer.use_scale else np.ones(tensors[0].shape[-1], "f4")
    return _attend(ctx, call, _summed_scores(ctx, tensors[0], tensors[-1], 1.0, weights))


def _summed_scores(
    ctx: LoweringContext, query: KerasTensor, key: KerasTensor, scale: float, weights: Array
) -> KerasTensor:
    """The sums over features of weights * tanh(scale * (query + key)), (batch, queries, keys)."""
    name, features = ctx.current_layer.name, query.shape[-1]
    queries = ctx.reshape(query, (query.shape[1], 1, features), "queries")
    keys = ctx.reshape(key, (1, key.shape[1], features), "keys")
    pairs = ctx.op("Add", [queries, keys], "pairs")
    if scale != 1:
        pairs = ctx.op("Multiply", pairs, "scaled", scale)
    tanh = ctx.apply(K.Activation("tanh", name=f"{name}_tanh"), pairs)
    sums = lower_pointwise(ctx, tanh, weights[:, None], None, f"{name}_sums", ctx.current_layer.trainable)
    return ctx.reshape(sums, (query.shape[1], key.shape[1]), "scores")


def _attend(ctx: LoweringContext, call: LoweringCall, scores: KerasTensor) -> KerasTensor:
    """The values, averaged by the softmax of the scores; zero where the query is masked."""
    query, value = call.inputs[:2]
    query_mask, value_mask = (call.kwargs.get("mask") or [None, None])[:2]
    is_causal = call.kwargs.get("use_causal_mask") or getattr(call.layer, "causal", False)
    masks = [
        *([] if value_mask is None else [expand_mask(ctx, boolean_mask(ctx, value_mask, "value"), 1, "value_mask")]),
        *([_causal_mask(query, value)] if is_causal else []),
    ]
    weights = _masked_softmax(ctx, scores, combine_masks(ctx, masks, "mask") if masks else None)
    context = _matmul(ctx, weights, value, "context")
    if query_mask is None:
        return context
    return clear_masked_steps(ctx, context, boolean_mask(ctx, query_mask, "query"), "cleared")
