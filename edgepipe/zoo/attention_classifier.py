"""A small attention model, built only of operators that integer runtimes have."""

import math
from typing import TYPE_CHECKING, Any

from edgepipe.core.errors import InputError
from edgepipe.zoo import arguments
from edgepipe.zoo.layer_blocks import batch_norm_relu, window_input

if TYPE_CHECKING:
    import keras

BATCH_NORM_MOMENTUM = 0.9
MAX_TOKENS = 64  # the stem halves the map until there are no more tokens


def attention(
    *, input_shape: tuple[int, ...], classes: int, width: int = 32, heads: int = 2, blocks: int = 2,
    dropout: float = 0.1,
) -> "keras.Model":  # fmt: skip
    """A convolutional stem that makes tokens, then transformer blocks, for images, spectrograms and windows.

    After A. Hassani et al., "Escaping the Big Data Paradigm with Compact Transformers", arXiv 2104.05704, 2021, and
    A. Berg et al., "Keyword Transformer", arXiv 2104.00769, 2021. For int8: BatchNormalization instead of
    LayerNormalization, whose squares have a wide range, and which cannot be folded; ReLU instead of GELU; a
    depthwise convolution (X. Chu et al., "Conditional Positional Encodings", arXiv 2102.10882, 2021) for positions.

    Args:
        input_shape: (height, width, channels), or (time, channels) of a window.
        classes: outputs, at least 2.
        width: values of a token, a multiple of `heads`.
        heads: of each attention.
        blocks: of attention and two dense layers.
        dropout: share dropped before the dense softmax.

    Raises:
        InputError: no image and no window, fewer than two classes, or an argument out of its range.
    """
    arguments.check_image_or_window_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_count(width=width, heads=heads)
    arguments.check_count(arguments.MAX_BLOCKS, blocks=blocks)
    arguments.check_fraction("dropout", dropout)
    if width % heads:
        nearest_width = math.ceil(width / heads) * heads
        raise InputError(
            f"width is a multiple of heads, found width {width} and heads {heads}; try width {nearest_width}"
        )
    import keras

    inputs, x = _build_input(tuple(input_shape))
    x = _add_stem(x, width)
    x = keras.layers.Reshape((x.shape[1] * x.shape[2], width), name="tokens")(x)
    for number in range(1, blocks + 1):
        x = _add_attention_block(x, f"block{number}", width, heads)
    x = keras.layers.GlobalAveragePooling1D(name="average")(_batch_norm(x, "last"))
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(
        inputs, keras.layers.Dense(classes, activation="softmax", name="probabilities")(x), name="attention"
    )


def _build_input(input_shape: tuple[int, ...]) -> tuple[Any, Any]:
    import keras

    if len(input_shape) == 2:
        return window_input(*input_shape)
    inputs = keras.Input(input_shape, name="image")
    return inputs, inputs


def _add_stem(x: Any, width: int) -> Any:
    """Convolutions, with stride 2 while there are too many tokens, then a position encoding."""
    import keras

    stem_number = 0
    while stem_number < 2 or x.shape[1] * x.shape[2] > MAX_TOKENS:
        stem_number += 1
        strides = tuple(2 if side > 1 and x.shape[1] * x.shape[2] > MAX_TOKENS else 1 for side in x.shape[1:3])
        kernel_size = tuple(min(3, side) for side in x.shape[1:3])
        name = f"stem{stem_number}"
        x = keras.layers.Conv2D(width, kernel_size, strides=strides, padding="same", use_bias=False, name=name)(x)
        x = batch_norm_relu(x, name, momentum=BATCH_NORM_MOMENTUM)
    position_encoding = keras.layers.DepthwiseConv2D(
        tuple(min(3, s) for s in x.shape[1:3]), padding="same", name="place"
    )(x)
    return keras.layers.Add(name="placed")([x, position_encoding])


def _batch_norm(x: Any, name: str) -> Any:
    import keras

    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_bn")(x)


def _add_attention_block(x: Any, name: str, width: int, head_count: int) -> Any:
    import keras

    y = _batch_norm(x, f"{name}_attention")
    y = keras.layers.MultiHeadAttention(head_count, width // head_count, name=f"{name}_attention")(y, y)
    x = keras.layers.Add(name=f"{name}_attended")([x, y])
    y = keras.layers.Dense(2 * width, activation="relu", name=f"{name}_dense1")(_batch_norm(x, f"{name}_dense"))
    y = keras.layers.Dense(width, name=f"{name}_dense2")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])
