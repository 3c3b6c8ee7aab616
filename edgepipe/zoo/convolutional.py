"""Convolutional classifiers of Conv2D (or depthwise + pointwise), BatchNormalization and ReLU."""

from typing import TYPE_CHECKING

from edgepipe.zoo.parts import check_image, head, normal_relu

if TYPE_CHECKING:
    import keras


def small_cnn(*, input_shape: tuple[int, ...], classes: int, filters: tuple[int, ...] = (32, 48, 64)) -> "keras.Model":
    """3x3 convolutions, halved by max pooling in between, then global average pooling and a dense softmax.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: outputs, at least 2.
        filters: channels of each convolution. The default has 42 k parameters for 8x8x1 and 10 classes.

    Raises:
        InputError: the shape is no image, or there are no classes.
    """
    import keras

    check_image(input_shape, classes)
    inputs = keras.Input(input_shape, name="image")
    x, side = inputs, min(input_shape[:2])
    for index, width in enumerate(filters, 1):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = normal_relu(x, f"conv{index}")
        if side >= 4 and index < len(filters):  # smaller maps are left to the global pooling
            x = keras.layers.MaxPooling2D(2, name=f"pool{index}")(x)
            side //= 2
    return keras.Model(inputs, head(x, classes), name="small_cnn")


def ds_cnn(
    *, input_shape: tuple[int, ...], classes: int, filters: int = 64, blocks: int = 4, dropout: float = 0.2
) -> "keras.Model":
    """DS-CNN: one convolution with stride 2, then blocks of a 3x3 depthwise and a 1x1 convolution.

    Source: Y. Zhang, N. Suda, L. Lai, V. Chandra, "Hello Edge: Keyword Spotting on Microcontrollers",
    arXiv 1711.07128, 2017. The defaults are the small model there, with a 3x3 first kernel when a side is under 10.

    Args:
        input_shape: (height, width, channels) of one image or spectrogram.
        classes: outputs, at least 2.
        filters: channels of every convolution.
        blocks: depthwise-separable blocks after the first convolution.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: the shape is no image, or there are no classes.
    """
    import keras

    check_image(input_shape, classes)
    kernel = (10, 4) if min(input_shape[:2]) >= 10 else (3, 3)
    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(filters, kernel, strides=2, padding="same", use_bias=False, name="conv0")(inputs)
    x = normal_relu(x, "conv0")
    for index in range(1, blocks + 1):
        x = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"depthwise{index}")(x)
        x = normal_relu(x, f"depthwise{index}")
        x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"pointwise{index}")(x)
        x = normal_relu(x, f"pointwise{index}")
    return keras.Model(inputs, head(x, classes, dropout), name="ds_cnn")
