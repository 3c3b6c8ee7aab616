"""Implicit masks of Keras 3 in its tf_keras twin: where Keras 3 uses one, ends one, and forgets one."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from edgepipe.models.bridge import bridge, relative_difference

K, ops = keras.layers, keras.ops
STRICT = 1e-5
STEPS, VOCABULARY = 8, 20


def _tokens(name: str) -> tuple[Any, Any]:
    ids = keras.Input((STEPS,), dtype="int32", name=name)
    return ids, K.Embedding(VOCABULARY, 6, mask_zero=True, name=f"embedding_{name}")(ids)


def _averaged(build: Callable[[Any], Any]) -> Callable[[], Any]:
    def build_model() -> Any:
        ids, x = _tokens("ids")
        return keras.Model(ids, K.GlobalAveragePooling1D()(build(x)))

    return build_model


def _nested(x: Any) -> Any:
    inner_input = keras.Input((STEPS, 6))
    return keras.Model(inner_input, K.Dense(5)(K.Dropout(0.1)(inner_input)), name="inner")(x)


def _residual_by_operator(x: Any) -> Any:
    return K.LayerNormalization()(x + K.MultiHeadAttention(2, 3)(x, x))


def _residual_by_layer(x: Any) -> Any:
    return K.LayerNormalization()(K.Add()([x, K.MultiHeadAttention(2, 3)(x, x)]))


def _two_blocks(x: Any) -> Any:
    return _residual_by_layer(_residual_by_layer(x))


def _positions(x: Any) -> Any:
    return K.Add()([x, K.Conv1D(6, 3, padding="same")(x)])


def _activated(x: Any) -> Any:
    return K.Dense(5)(ops.relu6(ops.tanh(x)))


class Block(K.Layer):  # type: ignore[misc]
    """A custom layer that takes the mask and hands it on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attention, self.norm = K.MultiHeadAttention(2, 3), K.LayerNormalization()
        self.supports_masking = True

    def call(self, x: Any, mask: Any = None) -> Any:
        return self.norm(x + self.attention(x, x, attention_mask=None if mask is None else mask[:, None, :]))


def _decoder() -> Any:
    (target_ids, target), (source_ids, source) = _tokens("target"), _tokens("source")
    x = K.LayerNormalization()(K.Add()([target, K.MultiHeadAttention(2, 3)(target, target, use_causal_mask=True)]))
    x = K.Add()([x, K.MultiHeadAttention(2, 3)(x, source)])
    return keras.Model([target_ids, source_ids], K.LSTM(4)(x))


def _float_mask() -> Any:
    x, mask = keras.Input((STEPS, 6), name="x"), keras.Input((STEPS, STEPS), name="mask")
    return keras.Model([x, mask], K.MultiHeadAttention(2, 3)(x, x, attention_mask=mask))


MODELS: dict[str, Callable[[], Any]] = {
    "average": _averaged(lambda x: x),
    "operator": _averaged(lambda x: K.Dense(5)(x * 2.0)),
    "activations": _averaged(_activated),
    "residual by an operator": _averaged(_residual_by_operator),
    "residual by a layer": _averaged(_residual_by_layer),
    "two blocks": _averaged(_two_blocks),
    "added to what has no mask": _averaged(_positions),
    "nested": _averaged(_nested),
    "dot product": _averaged(lambda x: K.Attention()([x, x])),
    "additive": _averaged(lambda x: K.AdditiveAttention()([K.Dense(6)(x), x])),
    "recurrent": _averaged(lambda x: K.Bidirectional(K.GRU(3, return_sequences=True))(x)),
    "custom block": _averaged(lambda x: Block()(x)),
    "decoder": _decoder,
    "float mask": _float_mask,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer '.*' .* was passed an input with a mask")  # Keras 3 on a mask that ends
@pytest.mark.parametrize("name", MODELS)
def test_the_twin_has_the_same_masks(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    twin = bridge(model).model
    lengths = np.array([[3], [STEPS], [1]])
    inputs = [_padded(tensor, lengths) for tensor in model.inputs]
    inputs_or_input = inputs if len(inputs) > 1 else inputs[0]
    assert relative_difference(model(inputs_or_input), twin(inputs_or_input)) < STRICT


def _padded(tensor: Any, lengths: Any) -> Any:
    generator, is_real = np.random.default_rng(0), np.arange(STEPS) < lengths
    if tensor.dtype == "int32":
        return (generator.integers(1, VOCABULARY, is_real.shape) * is_real).astype("int32")
    if tensor.name == "mask":
        return np.repeat(is_real[:, None], STEPS, axis=1).astype("float32") * 0.5
    return generator.normal(size=(len(lengths), *tensor.shape[1:])).astype("float32")
