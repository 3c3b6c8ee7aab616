"""Attention as 1 x 1 convolutions, batched matrix products and a softmax: all int8 operators of TFLite."""

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.convolutions import lower_pointwise
from edgepipe.compress.qat.lowering.lowering_context import LoweringCall, LoweringContext
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.core.arrays import Array
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer

K = tf_keras.layers


def lower_multi_head_attention(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """Vaswani et al. 2017 (arXiv 1706.03762), over the sequence axis of (batch, length, features)."""
    layer = call.layer
    query, value, key = _query_value_key(call)
    opaque_reason = _opaque_reason(layer, call, query)
    if opaque_reason:
        return keep_opaque(opaque_reason)(ctx, call)
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
    attention_weights = ctx.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
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


def _query_value_key(call: LoweringCall) -> tuple[KerasTensor, KerasTensor, KerasTensor]:
    tensors = [call.inputs, *call.args]
    value = tensors[1] if len(tensors) > 1 else call.kwargs["value"]
    key = tensors[2] if len(tensors) > 2 else call.kwargs.get("key", value)
    return tensors[0], value, value if key is None else key


def _opaque_reason(layer: TfKerasLayer, call: LoweringCall, query: KerasTensor) -> str:
    if call.kwargs.get("attention_mask") is not None or call.kwargs.get("use_causal_mask") or len(call.args) > 2:
        return "attention with a mask, whose minus infinity leaves no int8 levels for the scores"
    if call.kwargs.get("return_attention_scores"):
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
    """Luong et al. 2015 (arXiv 1508.04025): dot-product scores, optionally scaled."""
    layer, tensors = call.layer, list(call.inputs)
    if layer.score_mode != "dot" or call.args or set(call.kwargs) - {"use_causal_mask"} or len(tensors[0].shape) != 3:
        return keep_opaque("attention with masks or concatenated scores")(ctx, call)
    query, value, key = tensors[0], tensors[1], tensors[-1]
    scores = _matmul(ctx, query, key, "scores", transpose=True)
    if layer.use_scale:
        scores = ctx.op("Multiply", scores, "scaled", float(np.asarray(layer.scale)))
    attention_weights = ctx.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
    return _matmul(ctx, attention_weights, value, "context")
