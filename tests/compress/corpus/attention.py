"""Attention: transformers, masks of every kind, positions, cheaper attention, the normalizations around it."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from .corpus_model import Training, corpus_model, trained_model
from .samples import (
    grating_task,
    images,
    marked_so_far_task,
    marked_step_task,
    marked_token_task,
    named,
    padding_mask,
    series,
    tokens,
    topic_task,
)

FLOAT_MIN = float(np.finfo("float32").min)
WIDTH = 16
QUICK = Training(epochs=12, learning_rate=0.02)


class LearnedPositions(layers.Layer):
    """Adds one learned vector per position."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        """One vector for each step of the input."""
        self.embeddings = self.add_weight(shape=input_shape[1:], initializer="random_normal", name="embeddings")

    def call(self, inputs: Any) -> Any:
        """The inputs with the vectors added."""
        return inputs + self.embeddings


def attend(query: Any, key: Any, value: Any, bias: Any = None) -> Any:
    """Scaled dot-product attention of one head; `bias` is added to the scores."""
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / float(query.shape[-1]) ** 0.5
    return ops.matmul(ops.softmax(scores if bias is None else scores + bias, axis=-1), value)


def self_attention(x: Any, bias: Any = None, width: int = WIDTH) -> Any:
    """One head of self-attention with dense projections."""
    return attend(layers.Dense(width)(x), layers.Dense(width)(x), layers.Dense(width)(x), bias)


def feed_forward(x: Any, activation: str = "gelu") -> Any:
    """Pre-norm feed-forward block with its residual sum."""
    hidden = layers.Dense(2 * x.shape[-1], activation=activation)(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(x.shape[-1])(hidden)])


def encoder_block(x: Any, activation: str = "gelu", **options: Any) -> Any:
    """Pre-norm transformer block with two heads; `options` go to the attention's call."""
    normal = layers.LayerNormalization()(x)
    attended = layers.MultiHeadAttention(2, x.shape[-1] // 2)(normal, normal, **options)
    return feed_forward(layers.Add()([x, attended]), activation)


def averaged(inputs: Any, x: Any, outputs: int = 6) -> keras.Model:
    """The model that averages over the steps."""
    return keras.Model(inputs, layers.Dense(outputs)(layers.GlobalAveragePooling1D()(x)))


def marked_value_classifier(fill: float, is_replaced: bool = False) -> keras.Model:
    """Attention that must find the marked step; masked scores get `fill`, added or in their place."""
    steps, mask = keras.Input((12, 5), name="steps"), keras.Input((12,), name="mask")
    query, key, value = (layers.Dense(WIDTH)(steps) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / WIDTH**0.5
    row_mask = ops.expand_dims(mask, 1)
    scores = ops.where(row_mask > 0.5, scores, fill) if is_replaced else scores + (1.0 - row_mask) * fill
    x = layers.GlobalAveragePooling1D()(ops.matmul(ops.softmax(scores, axis=-1), value))
    return keras.Model([steps, mask], layers.Dense(4, activation="softmax")(x))


@trained_model(marked_step_task(), kinds="B", training=QUICK, in_ci=True)
def masked_attention_minus_1e9() -> keras.Model:
    """Padding masked by adding -1e9 to the scores, trained."""
    return marked_value_classifier(-1e9)


@trained_model(marked_step_task(), kinds="B", training=QUICK)
def masked_attention_float_min() -> keras.Model:
    """Padding masked by putting the lowest float32 in the place of the scores, trained."""
    return marked_value_classifier(FLOAT_MIN, is_replaced=True)


@trained_model(marked_step_task(), kinds="B", training=QUICK)
def masked_attention_minus_infinity() -> keras.Model:
    """Padding masked by putting minus infinity in the place of the scores, trained."""
    return marked_value_classifier(float("-inf"), is_replaced=True)


@trained_model(marked_step_task(), kinds="B", training=QUICK)
def masked_attention_minus_1e4() -> keras.Model:
    """Padding masked by adding -1e4, as for half precision, trained."""
    return marked_value_classifier(-1e4)


@trained_model(marked_token_task(), kinds="B", training=QUICK, in_ci=True)
def masked_attention_mask_zero() -> keras.Model:
    """An embedding with mask_zero: Keras hands the mask to MultiHeadAttention and to the average, trained."""
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(9, WIDTH, mask_zero=True)(inputs)
    x = layers.MultiHeadAttention(2, 8)(x, x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


@trained_model(marked_step_task(), kinds="B", training=QUICK)
def attention_mask_argument() -> keras.Model:
    """MultiHeadAttention with an explicit attention_mask made of a padding mask, trained."""
    steps, mask = keras.Input((12, 5), name="steps"), keras.Input((12,), name="mask")
    x = layers.Dense(WIDTH)(steps)
    x = layers.MultiHeadAttention(1, WIDTH)(x, x, attention_mask=ops.expand_dims(mask, 1) > 0.5)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model([steps, mask], layers.Dense(4, activation="softmax")(x))


@trained_model(marked_so_far_task(), kinds="B", training=QUICK, in_ci=True)
def transformer_decoder_causal() -> keras.Model:
    """A decoder with use_causal_mask that labels every step, trained."""
    inputs = keras.Input((10,), dtype="int32")
    x = LearnedPositions()(layers.Embedding(7, WIDTH)(inputs))
    attended = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Dense(24, activation="relu")(x)))


@trained_model(marked_so_far_task(), kinds="B", training=QUICK)
def causal_mask_constant() -> keras.Model:
    """A decoder with a hand-made triangle of -1e9, trained."""
    inputs = keras.Input((10,), dtype="int32")
    x = LearnedPositions()(layers.Embedding(7, WIDTH)(inputs))
    triangle = ((1 - np.tri(10)) * -1e9)[None].astype("float32")
    x = layers.Add()([x, self_attention(x, triangle)])
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Dense(24, activation="relu")(x)))


@trained_model(topic_task(), training=Training(epochs=5))
def transformer_classifier() -> keras.Model:
    """A text classifier with one transformer block, trained."""
    inputs = keras.Input((16,), dtype="int32")
    x = encoder_block(LearnedPositions()(layers.Embedding(40, WIDTH)(inputs)))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


@corpus_model(series(16, 8), in_ci=True)
def transformer_encoder() -> keras.Model:
    """Two pre-norm blocks on a series of vectors."""
    inputs = keras.Input((16, 8))
    x = LearnedPositions()(layers.Dense(WIDTH)(inputs))
    return averaged(inputs, encoder_block(encoder_block(x)))


@corpus_model(series(16, 8))
def transformer_encoder_post_norm() -> keras.Model:
    """The original arrangement: normalization after each sum, ReLU inside."""
    inputs = keras.Input((16, 8))
    x = layers.Dense(WIDTH)(inputs)
    attended = layers.MultiHeadAttention(4, 4)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    hidden = layers.Dense(WIDTH)(layers.Dense(32, activation="relu")(x))
    return averaged(inputs, layers.LayerNormalization()(layers.Add()([x, hidden])))


@corpus_model(named(source=series(12, 8), target=series(8, 8)), kinds="B")
def cross_attention() -> keras.Model:
    """Encoder and decoder: the decoder is causal and attends to the encoder's steps."""
    source, target = keras.Input((12, 8), name="source"), keras.Input((8, 8), name="target")
    memory = encoder_block(layers.Dense(WIDTH)(source))
    x = layers.Dense(WIDTH)(target)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)])
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(layers.LayerNormalization()(x), memory)])
    return keras.Model([source, target], layers.Dense(5)(feed_forward(x)))


@corpus_model(named(source=tokens(12, 20), target=tokens(8, 20)), kinds="BH")
def sequence_to_sequence_transformer() -> keras.Model:
    """Translation: two token inputs with mask_zero embeddings, causal and cross attention, logits per step."""
    source, target = keras.Input((12,), dtype="int32", name="source"), keras.Input((8,), dtype="int32", name="target")
    memory = encoder_block(layers.Embedding(20, WIDTH, mask_zero=True)(source))
    x = layers.Embedding(20, WIDTH, mask_zero=True)(target)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)])
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, memory)])
    return keras.Model([source, target], layers.Dense(20, name="logits")(layers.LayerNormalization()(x)))


@corpus_model(series(12, 8))
def relative_position_bias() -> keras.Model:
    """Attention with a bias that depends on the distance of two steps."""
    inputs = keras.Input((12, 8))
    distances = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    bias = (-0.25 * distances + np.sin(distances))[None].astype("float32")
    return averaged(inputs, feed_forward(self_attention(layers.Dense(WIDTH)(inputs), bias)))


@corpus_model(series(12, 8), kinds="A")
def rotary_positions() -> keras.Model:
    """Rotary embeddings: halves of query and key are rotated by constants and joined."""
    inputs = keras.Input((12, 8))
    angles = np.outer(np.arange(12), 1.0 / 50 ** (np.arange(8) / 8))
    cosine, sine = np.cos(angles)[None].astype("float32"), np.sin(angles)[None].astype("float32")

    def rotated(x: Any) -> Any:
        first, second = ops.split(x, 2, axis=-1)
        return ops.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)

    query, key, value = (layers.Dense(WIDTH)(inputs) for _ in range(3))
    return averaged(inputs, attend(rotated(query), rotated(key), value))


@corpus_model(images(), kinds="A")
def vision_transformer() -> keras.Model:
    """ViT: patches, a class token, positions, two blocks, and the class token read out."""
    inputs = keras.Input((16, 16, 3))
    patches = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 4, strides=4)(inputs))
    class_token = layers.Dense(WIDTH)(ops.zeros_like(patches[:, :1]))
    x = LearnedPositions()(layers.Concatenate(axis=1)([class_token, patches]))
    x = layers.LayerNormalization()(encoder_block(encoder_block(x)))
    return keras.Model(inputs, layers.Dense(6)(x[:, 0]))


@trained_model(grating_task(), training=Training(epochs=10, learning_rate=0.005))
def vision_transformer_classifier() -> keras.Model:
    """A small ViT without class token, trained."""
    inputs = keras.Input((12, 12, 1))
    patches = layers.Reshape((9, WIDTH))(layers.Conv2D(WIDTH, 4, strides=4)(inputs))
    x = encoder_block(LearnedPositions()(patches))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


@corpus_model(images(), kinds="B")
def window_attention() -> keras.Model:
    """Swin: attention inside windows of a shifted map, -100 between parts that were not neighbours."""
    inputs = keras.Input((16, 16, 3))
    x = ops.roll(layers.Conv2D(WIDTH, 4, strides=4)(inputs), (-1, -1), axis=(1, 2))
    windows = ops.transpose(ops.reshape(x, (-1, 2, 2, 2, 2, WIDTH)), (0, 1, 3, 2, 4, 5))
    windows = ops.reshape(windows, (-1, 4, 4, WIDTH))
    regions = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 2, 3]])
    bias = np.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)[None].astype("float32")
    query, key, value = (layers.Dense(WIDTH)(windows) for _ in range(3))
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / WIDTH**0.5 + bias
    x = layers.Reshape((16, WIDTH))(ops.matmul(ops.softmax(scores, axis=-1), value))
    return averaged(inputs, x)


@corpus_model(series(16, 8), kinds="K", in_ci=True)
def linear_attention() -> keras.Model:
    """Linear attention: features elu(x) + 1, keys times values first, and a division by the sum of the weights."""
    inputs = keras.Input((16, 8))
    query, key = (ops.elu(layers.Dense(WIDTH)(inputs)) + 1.0 for _ in range(2))
    memory = ops.matmul(ops.transpose(key, (0, 2, 1)), layers.Dense(WIDTH)(inputs))
    totals = ops.matmul(query, ops.expand_dims(ops.sum(key, axis=1), -1))
    return averaged(inputs, ops.matmul(query, memory) / totals)


@corpus_model(series(12, 8))
def grouped_query_attention() -> keras.Model:
    """GroupQueryAttention: four query heads share two heads of keys and values."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(WIDTH)(inputs)
    attended = layers.GroupQueryAttention(head_dim=4, num_query_heads=4, num_key_value_heads=2)(x, x)
    return averaged(inputs, layers.LayerNormalization()(layers.Add()([x, attended])))


@corpus_model(series(12, 8), kinds="B")
def grouped_query_attention_causal() -> keras.Model:
    """GroupQueryAttention with a causal mask, RMS normalization and a SwiGLU block: a language model's layer."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(WIDTH)(inputs)
    normal = layers.RMSNormalization()(x)
    attention = layers.GroupQueryAttention(head_dim=4, num_query_heads=4, num_key_value_heads=2)
    x = layers.Add()([x, attention(normal, normal, use_causal_mask=True)])
    normal = layers.RMSNormalization()(x)
    hidden = layers.Dense(32, activation="swish", use_bias=False)(normal) * layers.Dense(32, use_bias=False)(normal)
    return keras.Model(inputs, layers.Dense(5)(layers.Add()([x, layers.Dense(WIDTH)(hidden)])))


@corpus_model(series(12, 8))
def layer_normalization() -> keras.Model:
    """LayerNormalization over the features and over steps and features, without scale or centre too."""
    inputs = keras.Input((12, 8))
    x = layers.LayerNormalization()(layers.Dense(WIDTH, activation="relu")(inputs))
    x = layers.LayerNormalization(axis=(1, 2))(layers.Dense(WIDTH, activation="relu")(x))
    return averaged(inputs, layers.LayerNormalization(center=False, scale=False)(layers.Dense(WIDTH)(x)))


@corpus_model(series(12, 8))
def rms_normalization() -> keras.Model:
    """RMSNormalization around a residual block."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(WIDTH)(inputs)
    branch = layers.Dense(WIDTH)(layers.Dense(32, activation="relu")(layers.RMSNormalization()(x)))
    return averaged(inputs, layers.RMSNormalization()(layers.Add()([x, branch])))


@corpus_model(images())
def group_normalization() -> keras.Model:
    """GroupNormalization with groups, and as instance and layer normalization."""
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for groups in (4, -1, 1):
        x = layers.Conv2D(12, 3, strides=2, padding="same")(x)
        x = layers.ReLU()(layers.GroupNormalization(groups)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


@corpus_model(images())
def unit_normalization() -> keras.Model:
    """Face embeddings: the output has length one."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(inputs)
    x = layers.Dense(12)(layers.Flatten()(layers.MaxPooling2D(3)(x)))
    return keras.Model(inputs, layers.UnitNormalization()(x))


@corpus_model(images())
def mlp_mixer() -> keras.Model:
    """MLP-Mixer: dense layers over the patches and over the channels in turn."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, WIDTH))(layers.Conv2D(WIDTH, 4, strides=4)(inputs))
    for _ in range(2):
        mixed = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        mixed = layers.Dense(16)(layers.Dense(24, activation="gelu")(mixed))
        x = feed_forward(layers.Add()([x, layers.Permute((2, 1))(mixed)]))
    return averaged(inputs, layers.LayerNormalization()(x))


@corpus_model(series(12, 8), kinds="A")
def spatial_gating_unit() -> keras.Model:
    """gMLP: one half of the features, mixed over the steps, gates the other."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(WIDTH)(inputs)
    value, gate = ops.split(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)), 2, axis=-1)
    gate = layers.Permute((2, 1))(layers.LayerNormalization()(gate))
    gate = layers.Permute((2, 1))(layers.Dense(12)(gate))
    return averaged(inputs, layers.Add()([x, layers.Dense(WIDTH)(value * gate)]))


@corpus_model(named(query=series(6, 8), memory=series(10, 8)))
def additive_attention() -> keras.Model:
    """Bahdanau: keras.layers.AdditiveAttention between two sequences."""
    query, memory = keras.Input((6, 8), name="query"), keras.Input((10, 8), name="memory")
    attended = layers.AdditiveAttention()([layers.Dense(WIDTH)(query), layers.Dense(WIDTH)(memory)])
    return averaged([query, memory], layers.Dense(WIDTH, activation="tanh")(attended))


@corpus_model(named(query=series(6, 8), memory=series(10, 8)))
def dot_attention() -> keras.Model:
    """Luong: keras.layers.Attention between two sequences, joined with the query."""
    query, memory = keras.Input((6, 8), name="query"), keras.Input((10, 8), name="memory")
    projected = layers.Dense(WIDTH)(query)
    attended = layers.Attention(use_scale=True)([projected, layers.Dense(WIDTH)(memory)])
    return averaged([query, memory], layers.Concatenate()([projected, attended]))


@corpus_model(series(16, 8))
def attention_pooling() -> keras.Model:
    """A softmax over the steps weights their sum."""
    inputs = keras.Input((16, 8))
    x = layers.Conv1D(WIDTH, 3, padding="same", activation="relu")(inputs)
    weights = layers.Softmax(axis=1)(layers.Dense(1)(layers.Dense(8, activation="tanh")(x)))
    return keras.Model(inputs, layers.Dense(5)(ops.sum(weights * x, axis=1)))


@trained_model(marked_step_task(), kinds="B", training=QUICK)
def masked_attention_pooling() -> keras.Model:
    """Attention pooling over padded steps with -1e9 on the padding, trained."""
    steps, mask = keras.Input((12, 5), name="steps"), keras.Input((12,), name="mask")
    scores = layers.Reshape((12,))(layers.Dense(1)(layers.Dense(8, activation="tanh")(steps)))
    weights = layers.Softmax()(scores + (mask - 1.0) * 1e9)
    pooled = ops.sum(ops.expand_dims(weights, -1) * layers.Dense(8)(steps), axis=1)
    return keras.Model([steps, mask], layers.Dense(4, activation="softmax")(pooled))


@corpus_model(named(steps=series(12, 8), mask=padding_mask(12)), kinds="AB")
def masked_max_pooling() -> keras.Model:
    """The maximum over valid steps: the padding is set to -1e9 before."""
    steps, mask = keras.Input((12, 8), name="steps"), keras.Input((12,), name="mask")
    x = layers.Conv1D(WIDTH, 3, padding="same")(steps)
    x = ops.where(ops.expand_dims(mask, -1) > 0.5, x, -1e9)
    return keras.Model([steps, mask], layers.Dense(5)(ops.max(x, axis=1)))


@corpus_model(named(steps=series(12, 8), mask=padding_mask(12)))
def masked_average_pooling() -> keras.Model:
    """The average over valid steps: a division by how many there are."""
    steps, mask = keras.Input((12, 8), name="steps"), keras.Input((12,), name="mask")
    weights = ops.expand_dims(mask, -1)
    x = layers.Conv1D(WIDTH, 3, padding="same", activation="relu")(steps) * weights
    return keras.Model([steps, mask], layers.Dense(5)(ops.sum(x, axis=1) / ops.sum(weights, axis=1)))


@corpus_model(named(steps=series(10, 8), mask=padding_mask(10)), kinds="B")
def softmax_layer_with_mask() -> keras.Model:
    """keras.layers.Softmax with its mask argument."""
    steps, mask = keras.Input((10, 8), name="steps"), keras.Input((10,), name="mask")
    scores = layers.Reshape((10,))(layers.Dense(1)(layers.Dense(8, activation="tanh")(steps)))
    weights = layers.Softmax()(scores, mask=mask > 0.5)
    return keras.Model([steps, mask], layers.Dense(5)(ops.sum(ops.expand_dims(weights, -1) * steps, axis=1)))


@corpus_model(series(16, 8), kinds="A")
def conformer_block() -> keras.Model:
    """Conformer: half feed-forward steps around attention and a gated depthwise convolution."""
    inputs = keras.Input((16, 8))
    x = layers.Dense(WIDTH)(inputs)
    x = x + 0.5 * layers.Dense(WIDTH)(layers.Dense(32, activation="swish")(layers.LayerNormalization()(x)))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)])
    value, gate = ops.split(layers.Conv1D(32, 1)(layers.LayerNormalization()(x)), 2, axis=-1)
    branch = layers.DepthwiseConv1D(5, padding="same")(value * ops.sigmoid(gate))
    branch = layers.BatchNormalization()(branch)
    x = layers.Add()([x, layers.Conv1D(WIDTH, 1)(layers.Activation("swish")(branch))])
    return averaged(inputs, layers.LayerNormalization()(x))


@corpus_model(series(20, 8))
def latent_cross_attention() -> keras.Model:
    """Perceiver: a few learned latents attend to a long input."""
    inputs = keras.Input((20, 8))
    latents = LearnedPositions()(ops.zeros_like(layers.Dense(WIDTH)(inputs))[:, :4])
    attended = layers.MultiHeadAttention(2, 8)(latents, layers.Dense(WIDTH)(inputs))
    return averaged(inputs, encoder_block(layers.Add()([latents, attended])))


@corpus_model(images(), kinds="D")
def log_sum_exp_pooling() -> keras.Model:
    """Log-sum-exp pooling over a map: a smooth maximum."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(5)(ops.logsumexp(4.0 * x, axis=(1, 2))))


@corpus_model(images())
def non_local_block() -> keras.Model:
    """Non-local network: self-attention over the pixels of a map, added to it."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu")(inputs)
    attended = self_attention(layers.Reshape((64, 12))(x), width=12)
    x = layers.Add()([x, layers.Conv2D(12, 1)(layers.Reshape((8, 8, 12))(attended))])
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


@corpus_model(series(12, 8))
def cosine_attention() -> keras.Model:
    """Attention by cosine similarity with a learned temperature: queries and keys have length one."""
    inputs = keras.Input((12, 8))
    query, key = (layers.UnitNormalization()(layers.Dense(WIDTH)(inputs)) for _ in range(2))
    scores = 8.0 * ops.einsum("bqd,bkd->bqk", query, key)
    return averaged(inputs, ops.einsum("bqk,bkd->bqd", ops.softmax(scores), layers.Dense(WIDTH)(inputs)))
