"""Attention written out: 1 x 1 convolutions, batched matrix products and a softmax, all int8 operators of TFLite."""

from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.qat.lowering.convolutions import pointwise
from edgepipe.compress.qat.lowering.lower import Call, Lowering
from edgepipe.compress.qat.lowering.opaque_layers import kept
from edgepipe.core.arrays import Array

K = tf_keras.layers


def multi_head_attention(low: Lowering, call: Call) -> Any:
    """Vaswani et al. 2017 (arXiv 1706.03762), over the one sequence axis of (batch, length, features)."""
    layer = call.layer
    query, value, key = _three(call)
    reason = _why_kept(layer, call, query)
    if reason:
        return kept(reason)(low, call)
    size = layer._key_dim
    heads = [
        _heads(low, x, *_dense(part), name)
        for x, part, name in (
            (query, layer._query_dense, "query"), (key, layer._key_dense, "key"), (value, layer._value_dense, "value"),
        )
    ]  # fmt: skip
    scores = low.op("Multiply", _product(low, heads[0], heads[1], "scores", transpose=True), "scaled", size**-0.5)
    weights = low.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
    context = low.apply(K.Permute((2, 1, 3), name=f"{layer.name}_merge"), _product(low, weights, heads[2], "context"))
    joined = low.reshape(context, (query.shape[1], heads[2].shape[1] * heads[2].shape[3]), "joined")
    kernel, bias = _dense(layer._output_dense)
    return pointwise(low, joined, kernel.reshape(-1, kernel.shape[-1]), bias, f"{layer.name}_output", layer.trainable)


def _three(call: Call) -> tuple[Any, Any, Any]:
    given = [call.inputs, *call.args]
    value = given[1] if len(given) > 1 else call.kwargs["value"]
    key = given[2] if len(given) > 2 else call.kwargs.get("key", value)
    return given[0], value, value if key is None else key


def _why_kept(layer: Any, call: Call, query: Any) -> str:
    if call.kwargs.get("attention_mask") is not None or call.kwargs.get("use_causal_mask") or len(call.args) > 2:
        return "attention with a mask, whose minus infinity leaves no levels for the scores"
    if call.kwargs.get("return_attention_scores"):
        return "attention that also returns its scores"
    return "" if len(query.shape) == 3 else f"attention over {len(query.shape) - 2} axes"


def _dense(part: Any) -> tuple[Array, Array | None]:
    return np.asarray(part.kernel), None if part.bias is None else np.asarray(part.bias)


def _heads(low: Lowering, x: Any, kernel: Array, bias: Array | None, name: str) -> Any:
    """(batch, length, features) -> (batch, heads, length, size)."""
    features, heads, size = kernel.shape
    flat = None if bias is None else bias.ravel()
    projected = pointwise(low, x, kernel.reshape(features, heads * size), flat, f"{low.current.name}_{name}")
    split = low.reshape(projected, (x.shape[1], heads, size), f"{name}_heads")
    return low.apply(K.Permute((2, 1, 3), name=f"{low.current.name}_{name}_turned"), split)


def _product(low: Lowering, a: Any, b: Any, name: str, transpose: bool = False) -> Any:
    if transpose:
        axes = (*range(1, len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2)
        b = low.apply(K.Permute(axes, name=f"{low.current.name}_{name}_transposed"), b)
    return low.op("Matmul", [a, b], name)


def attention(low: Lowering, call: Call) -> Any:
    """Luong et al. 2015 (arXiv 1508.04025): dot-product scores, optionally scaled."""
    layer, tensors = call.layer, list(call.inputs)
    if layer.score_mode != "dot" or call.args or set(call.kwargs) - {"use_causal_mask"} or len(tensors[0].shape) != 3:
        return kept("attention with masks or concatenated scores")(low, call)
    query, value, key = tensors[0], tensors[1], tensors[-1]
    scores = _product(low, query, key, "scores", transpose=True)
    if layer.use_scale:
        scores = low.op("Multiply", scores, "scaled", float(np.asarray(layer.scale)))
    weights = low.apply(K.Softmax(name=f"{layer.name}_softmax"), scores)
    return _product(low, weights, value, "context")
