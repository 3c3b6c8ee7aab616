"""Convolutional classifiers of Conv2D (or depthwise + pointwise), BatchNormalization and ReLU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.zoo import arguments
from edgepipe.zoo.layer_blocks import batch_norm_relu, classifier_head

if TYPE_CHECKING:
    import keras


def small_cnn(*, input_shape: tuple[int, ...], classes: int, filters: Sequence[int] = (32, 48, 64)) -> "keras.Model":
    """3x3 convolutions, halved by max pooling in between, then global average pooling and a dense softmax.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: outputs, at least 2.
        filters: channels of each convolution. The default has 42 k parameters for 8x8x1 and 10 classes.

    Raises:
        InputError: no image, fewer than two classes, or an argument out of its range.
    """
    arguments.check_image_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_counts(filters=filters)
    import keras

    inputs = keras.Input(tuple(input_shape), name="image")
    x, map_side = inputs, min(input_shape[:2])
    for index, width in enumerate(filters, 1):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = batch_norm_relu(x, f"conv{index}", momentum=0.99)
        if map_side >= 4 and index < len(filters):  # smaller maps are left to the global pooling
            x = keras.layers.MaxPooling2D(2, name=f"pool{index}")(x)
            map_side //= 2
    return keras.Model(inputs, classifier_head(x, classes), name="small_cnn")


@dataclass(frozen=True)
class _DsCnnSize:
    """One of the paper's sizes: channels, depthwise-separable blocks, strides of the first convolution and block."""

    filters: int
    blocks: int
    strides: tuple[int, int]
    block_stride: int


DS_CNN_SIZES = {
    "small": _DsCnnSize(64, 4, (2, 2), 1),
    "medium": _DsCnnSize(172, 4, (2, 1), 2),
    "large": _DsCnnSize(276, 5, (2, 1), 2),
}


def ds_cnn(
    *, input_shape: tuple[int, ...], classes: int, size: str = "small", filters: int | None = None,
    blocks: int | None = None, dropout: float = 0.2,
) -> "keras.Model":  # fmt: skip
    """DS-CNN: one convolution with stride 2, then blocks of a 3x3 depthwise and a 1x1 convolution.

    Source: Y. Zhang, N. Suda, L. Lai, V. Chandra, "Hello Edge: Keyword Spotting on Microcontrollers",
    arXiv 1711.07128, 2017, for MFCC of 49x10 and 12 keywords; there small, medium and large take 38.6, 189.2 and
    497.6 KB (8-bit weights and the largest activations) and 5.4, 19.8 and 56.9 million operations, two to a MAC. The
    small one is the keyword model of MLPerf Tiny too (arXiv 2106.07597): 24,908 parameters with the biases in front of
    its batch norms, which are left out here. The first kernel is 3x3 when a side is under 10.

    Args:
        input_shape: (height, width, channels) of one image or spectrogram.
        classes: outputs, at least 2.
        size: small, medium or large, as in the paper.
        filters: channels of every convolution; by default the size's.
        blocks: depthwise-separable blocks after the first convolution; by default the size's.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: no image, fewer than two classes, or an argument out of its range.
    """
    arguments.check_image_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_choice("size", size, tuple(DS_CNN_SIZES))
    arguments.check_fraction("dropout", dropout)
    preset = DS_CNN_SIZES[size]
    filter_count = preset.filters if filters is None else filters
    block_count = preset.blocks if blocks is None else blocks
    arguments.check_count(filters=filter_count)
    arguments.check_count(arguments.MAX_BLOCKS, blocks=block_count)
    import keras

    kernel_size = (10, 4) if min(input_shape[:2]) >= 10 else (3, 3)
    inputs = keras.Input(tuple(input_shape), name="image")
    x: Any = _add_convolution(inputs, filter_count, "conv0", kernel_size, preset.strides)
    for index in range(1, block_count + 1):
        stride = preset.block_stride if index == 1 else 1
        x = keras.layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False, name=f"depthwise{index}")(x)
        x = batch_norm_relu(x, f"depthwise{index}")
        x = _add_convolution(x, filter_count, f"pointwise{index}", (1, 1), (1, 1))
    return keras.Model(inputs, classifier_head(x, classes, dropout), name="ds_cnn")


def _add_convolution(x: Any, filters: int, name: str, kernel_size: tuple[int, int], strides: tuple[int, int]) -> Any:
    import keras

    x = keras.layers.Conv2D(filters, kernel_size, strides=strides, padding="same", use_bias=False, name=name)(x)
    return batch_norm_relu(x, name)
