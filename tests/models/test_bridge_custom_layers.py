"""Custom layers as the examples of Keras have them: traced through constants and own weights, with the masks they hand
on, in the bridge, in the graph that is lowered for quantization, and after being stored."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.lower import lower_model
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge, relative_difference
from edgepipe.models.keras3_export import to_keras

K, ops = keras.layers, keras.ops
STRICT = 1e-5
STEPS, VOCABULARY, WIDTH = 6, 20, 4


class Block(keras.layers.Layer):  # type: ignore[misc]
    """A transformer block that gives the mask to its attention, and hands it on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.supports_masking = True
        self.attention, self.norm, self.dropout = K.MultiHeadAttention(2, 3), K.LayerNormalization(), K.Dropout(0.1)

    def call(self, x: Any, training: Any = None, mask: Any = None) -> Any:
        attention_mask = None if mask is None else ops.cast(mask[:, None, :], "int32")
        attended = self.attention(x, x, attention_mask=attention_mask)
        return self.norm(x + self.dropout(attended, training=training))


class ImplicitBlock(Block):
    """A block whose attention finds the mask on its tensor."""

    def call(self, x: Any) -> Any:  # type: ignore[override]
        return self.norm(x + self.attention(x, x))


class TokensAndPositions(keras.layers.Layer):  # type: ignore[misc]
    """Two embeddings, one of them called on a constant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tokens, self.positions = K.Embedding(VOCABULARY, WIDTH), K.Embedding(STEPS, WIDTH)

    def call(self, ids: Any) -> Any:
        return self.tokens(ids) + self.positions(ops.arange(0, ops.shape(ids)[-1], 1))

    def compute_mask(self, ids: Any, mask: Any = None) -> Any:
        return ops.not_equal(ids, 0)


class Decoder(keras.layers.Layer):  # type: ignore[misc]
    """Attention over two sequences with a causal mask, which is a constant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.supports_masking = True
        self.first, self.second, self.add = K.MultiHeadAttention(2, 3), K.MultiHeadAttention(2, 3), K.Add()

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, context = inputs
        positions = ops.arange(x.shape[1])
        is_before = ops.cast(positions[:, None] >= positions, "int32")[None]
        masks = mask or (None, None)
        x = self.add([x, self.first(x, x, attention_mask=is_before, query_mask=masks[0])])
        return self.add([x, self.second(x, context, query_mask=masks[0], key_mask=masks[1])])


class Pooling(keras.layers.Layer):  # type: ignore[misc]
    """A mean over unmasked steps, after which there is no mask."""

    def call(self, x: Any, mask: Any = None) -> Any:
        weights = ops.cast(mask, "float32")[..., None]
        return ops.sum(x * weights, 1) / ops.maximum(ops.sum(weights, 1), 1.0)

    def compute_mask(self, x: Any, mask: Any = None) -> None:
        return None


class Quantizer(keras.layers.Layer):  # type: ignore[misc]
    """Vector quantization: distances to codes, whose squares are computed from a weight alone."""

    def build(self, shape: Any) -> None:
        self.codes = self.add_weight(shape=(shape[-1], 8), initializer="normal", name="codes")

    def call(self, x: Any) -> Any:
        rows = ops.reshape(x, (-1, WIDTH))
        distances = ops.sum(self.codes**2, axis=0) - 2 * ops.matmul(rows, self.codes)
        chosen = ops.matmul(ops.one_hot(ops.argmin(distances, axis=1), 8), ops.transpose(self.codes))
        return ops.reshape(chosen, ops.shape(x))


class Rotary(keras.layers.Layer):  # type: ignore[misc]
    """Rotary positions: the shape, with an open batch, is that of another tensor."""

    def call(self, x: Any) -> Any:
        angles = ops.outer(ops.arange(x.shape[1], dtype="float32"), ops.arange(1, 1 + x.shape[2] // 2, dtype="float32"))
        a, b, cosine, sine = x[..., ::2], x[..., 1::2], ops.cos(angles), ops.sin(angles)
        return ops.reshape(ops.stack([a * cosine - b * sine, a * sine + b * cosine], axis=-1), ops.shape(x))


class ClassToken(keras.layers.Layer):  # type: ignore[misc]
    """A weight repeated for each sample: that needs the size of the batch, so the layer stays as it is."""

    def build(self, shape: Any) -> None:
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="normal", name="token")

    def call(self, x: Any) -> Any:
        return ops.concatenate([ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1])), x], axis=1)


class Tied(keras.layers.Layer):  # type: ignore[misc]
    """A head that uses the weights of the embedding."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.embedding = K.Embedding(VOCABULARY, WIDTH)

    def call(self, ids: Any) -> Any:
        return ops.matmul(self.embedding(ids), ops.transpose(self.embedding.embeddings))


class Inverted(keras.layers.Layer):  # type: ignore[misc]
    """A layer that computes another mask than that of its input."""

    def call(self, x: Any) -> Any:
        return x * 2.0

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return ops.logical_not(mask)


class Sampling(keras.layers.Layer):  # type: ignore[misc]
    """Random at inference."""

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x))


def _of_text(build: Callable[[Any], Any], embed: Callable[[Any], Any] | None = None) -> Callable[[], Any]:
    def build_model() -> Any:
        ids = keras.Input((STEPS,), dtype="int32")
        embedded = embed(ids) if embed else K.Embedding(VOCABULARY, WIDTH, mask_zero=True)(ids)
        return keras.Model(ids, K.GlobalAveragePooling1D()(build(embedded)))

    return build_model


def _of_series(build: Callable[[Any], Any]) -> Callable[[], Any]:
    def build_model() -> Any:
        series = keras.Input((STEPS, WIDTH))
        return keras.Model(series, build(K.Dense(WIDTH)(series)))

    return build_model


def _translator() -> Any:
    source, target = (keras.Input((STEPS,), dtype="int32", name=name) for name in ("source", "target"))
    embed = K.Embedding(VOCABULARY, WIDTH, mask_zero=True)
    return keras.Model([source, target], K.Dense(3)(Decoder()([embed(target), Block()(embed(source))])))


def _nested(x: Any) -> Any:
    inner_input = keras.Input((STEPS, WIDTH))
    return Block()(keras.Model(inner_input, Block()(inner_input), name="inner")(x))


def _block_called_twice(x: Any) -> Any:
    block = Block()
    return block(block(x))


def _grouped(x: Any) -> Any:
    return K.Add()([x, K.GroupQueryAttention(3, 4, 2)(x, x, use_causal_mask=True)])


def _patches() -> Any:
    image = keras.Input((8, 8, 2))
    return keras.Model(image, K.Dense(3)(ops.image.extract_patches(image, 4)))


MODELS: dict[str, Callable[[], Any]] = {
    "two blocks, one called twice": _of_text(
        lambda x: _block_called_twice(Block()(x)),
        lambda ids: TokensAndPositions()(ids),
    ),
    "nested, implicit masks": _of_text(lambda x: _nested(ImplicitBlock()(ImplicitBlock()(x)))),
    "another mask, and its end": _of_text(lambda x: Pooling()(Block()(Inverted()(x)))[:, None]),
    "grouped queries": _of_text(_grouped),
    "translator": _translator,
    "vector quantizer": _of_series(lambda x: Rotary()(Quantizer()(x))),
    "patches": _patches,
}
KEPT_MODELS: dict[str, Callable[[], Any]] = {
    "class token": _of_series(lambda x: ClassToken()(x)),
    "tied": lambda: keras.Model(ids := keras.Input((STEPS,), dtype="int32"), Tied()(ids)),
}
NOTE_BY_KEPT_MODEL = {
    "class token": "(ClassToken) stays a Keras 3 layer",
    "tied": "is used outside the layer too: the twin has a copy of it there",
}


def _samples(model: Any) -> Any:
    generator, is_real = np.random.default_rng(0), np.arange(STEPS) < np.array([[3], [STEPS], [1]])
    arrays = [
        (generator.integers(1, VOCABULARY, is_real.shape) * is_real).astype("int32")
        if tensor.dtype == "int32"
        else generator.normal(size=(3, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer '.*' .* was passed an input with a mask")
@pytest.mark.parametrize("name", MODELS)
def test_custom_layers_are_traced(name: str) -> None:
    keras.utils.set_random_seed(1)
    model = MODELS[name]()
    bridged = bridge(model)
    assert not bridged.keras3_notes
    assert not bridged.weight_notes
    samples = _samples(model)
    expected = model(samples)
    assert relative_difference(expected, bridged.model(samples)) < STRICT
    lowered_model = lower_model(bridged.model, lambda layer: False).model
    assert relative_difference(expected, lowered_model(samples)) < STRICT
    stored_model = tf_keras.Model.from_config(bridged.model.get_config())
    stored_model.set_weights(bridged.model.get_weights())
    assert relative_difference(expected, tf.nest.flatten(stored_model(samples))[0]) < STRICT


@pytest.mark.parametrize("name", KEPT_MODELS)
def test_what_is_not_traced_or_copied_is_said(name: str) -> None:
    model = KEPT_MODELS[name]()
    bridged = bridge(model)
    samples = _samples(model)
    assert relative_difference(model(samples), bridged.model(samples)) < STRICT
    assert any(NOTE_BY_KEPT_MODEL[name] in note for note in bridged.notes)


def test_refuses_randomness_at_inference() -> None:
    with pytest.raises(InputError, match=r"layer 'sampling' of '.*' is random at inference"):
        bridge(_of_series(lambda x: Sampling()(x))())


def test_keras_3_has_no_layer_that_attaches_masks() -> None:
    twin = bridge(_of_text(lambda x: Block()(Block()(x)))()).model
    with pytest.raises(InputError, match="Keras 3 has no layer that gives a tensor a mask"):
        to_keras(twin)
