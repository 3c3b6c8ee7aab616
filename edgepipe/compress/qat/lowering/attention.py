"""Attention written out: 1 x 1 convolutions, batched matrix products and a softmax, all int8 operators of TFLite."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.convolutions import lower_pointwise
from edgepipe.compress.qat.lowering.lower import Lowering, LoweringCall
from edgepipe.compress.qat.lowering.opaque_layers import keep_opaque
from edgepipe.core.arrays import Array

K = tf_keras.layers


def lower_multi_head_attention(low: Lowering, call: LoweringCall) -> Any:
    """Vaswani et al. 2017 (arXiv 1706.03762), over the one sequence axis of (batch, length, features)."""
    layer = call.layer
    query, value, key = _query_value_key(call)
    reason = _opaque_reason(layer, call, query)
    if reason:
        return keep_opaque(reason)(low, call)
    size = layer._key_dim
    heads = [
        _project_heads(low, x, *_dense_weights(dense_layer), name)
        for x, dense_layer, name in (
            (query, layer._query_dense, "query"), (key, layer._key_dense, "key"), (value, layer._value_dense, "value"),
        )
    ]  # fmt: skip
    scores = low.op("Multiply", _matmul(low, heads[0], heads[1], "scores", transpose=True), "scaled", size**-0.5)
    weights = low.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
    context = low.apply(K.Permute((2, 1, 3), name=f"{layer.name}_merge"), _matmul(low, weights, heads[2], "context"))
    merged_heads = low.reshape(context, (query.shape[1], heads[2].shape[1] * heads[2].shape[3]), "joined")
    kernel, bias = _dense_weights(layer._output_dense)
    return lower_pointwise(
        low, merged_heads, kernel.reshape(-1, kernel.shape[-1]), bias, f"{layer.name}_output", layer.trainable
    )


def _query_value_key(call: LoweringCall) -> tuple[Any, Any, Any]:
    tensors = [call.inputs, *call.args]
    value = tensors[1] if len(tensors) > 1 else call.kwargs["value"]
    key = tensors[2] if len(tensors) > 2 else call.kwargs.get("key", value)
    return tensors[0], value, value if key is None else key


def _opaque_reason(layer: Any, call: LoweringCall, query: Any) -> str:
    if call.kwargs.get("attention_mask") is not None or call.kwargs.get("use_causal_mask") or len(call.args) > 2:
        return "attention with a mask, whose minus infinity leaves no levels for the scores"
    if call.kwargs.get("return_attention_scores"):
        return "attention that also returns its scores"
    return "" if len(query.shape) == 3 else f"attention over {len(query.shape) - 2} axes"


def _dense_weights(dense_layer: Any) -> tuple[Array, Array | None]:
    return np.asarray(dense_layer.kernel), None if dense_layer.bias is None else np.asarray(dense_layer.bias)


def _project_heads(low: Lowering, x: Any, kernel: Array, bias: Array | None, name: str) -> Any:
    """(batch, length, features) -> (batch, heads, length, size)."""
    features, heads, size = kernel.shape
    flat_bias = None if bias is None else bias.ravel()
    projection = lower_pointwise(
        low, x, kernel.reshape(features, heads * size), flat_bias, f"{low.current_layer.name}_{name}"
    )
    split_heads = low.reshape(projection, (x.shape[1], heads, size), f"{name}_heads")
    return low.apply(K.Permute((2, 1, 3), name=f"{low.current_layer.name}_{name}_turned"), split_heads)


def _matmul(low: Lowering, a: Any, b: Any, name: str, transpose: bool = False) -> Any:
    if transpose:
        axes = (*range(1, len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2)
        b = low.apply(K.Permute(axes, name=f"{low.current_layer.name}_{name}_transposed"), b)
    return low.op("Matmul", [a, b], name)


def lower_attention(low: Lowering, call: LoweringCall) -> Any:
    """Luong et al. 2015 (arXiv 1508.04025): dot-product scores, optionally scaled."""
    layer, tensors = call.layer, list(call.inputs)
    if layer.score_mode != "dot" or call.args or set(call.kwargs) - {"use_causal_mask"} or len(tensors[0].shape) != 3:
        return keep_opaque("attention with masks or concatenated scores")(low, call)
    query, value, key = tensors[0], tensors[1], tensors[-1]
    scores = _matmul(low, query, key, "scores", transpose=True)
    if layer.use_scale:
        scores = low.op("Multiply", scores, "scaled", float(np.asarray(layer.scale)))
    weights = low.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
    return _matmul(low, weights, value, "context")
