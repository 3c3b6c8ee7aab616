"""MobileNet V1 and V2 with a width multiplier, layer by layer as in the papers."""

from typing import TYPE_CHECKING, Any

from edgepipe.zoo import arguments
from edgepipe.zoo.layer_blocks import batch_norm_relu, classifier_head

if TYPE_CHECKING:
    import keras

BATCH_NORM_MOMENTUM = 0.9  # of batch norms: 0.999, as published, needs tens of thousands of steps to settle
MAX_ALPHA = 4.0  # largest width multiplier: 16 times the MACs
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v1(
    *, input_shape: tuple[int, ...], classes: int, alpha: float = 0.25, dropout: float = 0.001
) -> "keras.Model":
    """MobileNet V1: depthwise-separable convolutions with ReLU6.

    Source: A. Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
    arXiv 1704.04861, 2017, table 1: 4.2 M parameters and 569 M MACs with alpha 1, 224x224x3 and 1000 classes.

    Args:
        input_shape: (height, width, channels). Five strides of 2 as in the paper: below 32 pixels the last maps are
            one pixel wide.
        classes: outputs, at least 2.
        alpha: the width multiplier, of the channels of every layer; up to 4.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: no image, fewer than two classes, or an argument out of its range.
    """
    _check_arguments(input_shape, classes, alpha, dropout)
    import keras

    x = inputs = keras.Input(tuple(input_shape), name="image")
    x = _add_convolution(x, max(1, int(32 * alpha)), "conv0", 3, 2)
    for number, (filters, strides) in enumerate(V1_BLOCKS, 1):
        x = _add_depthwise(x, f"depthwise{number}", strides)
        x = _add_convolution(x, max(1, int(filters * alpha)), f"pointwise{number}", 1, 1)
    return keras.Model(inputs, classifier_head(x, classes, dropout), name="mobilenet_v1")


def mobilenet_v2(
    *, input_shape: tuple[int, ...], classes: int, alpha: float = 0.35, dropout: float = 0.0
) -> "keras.Model":
    """MobileNet V2: inverted residuals with linear bottlenecks.

    Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381, 2018, table
    2: 3.4 M parameters and 300 M MACs with alpha 1, 224x224x3 and 1000 classes. Channels are multiples of 8.

    Args:
        input_shape: (height, width, channels); strides as in the paper.
        classes: outputs, at least 2.
        alpha: the width multiplier, up to 4; the last convolution never has less than 1280 channels.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: no image, fewer than two classes, or an argument out of its range.
    """
    _check_arguments(input_shape, classes, alpha, dropout)
    import keras

    x = inputs = keras.Input(tuple(input_shape), name="image")
    x = _add_convolution(x, _round_channels(32 * alpha), "conv0", 3, 2)
    block_number = 0
    for expansion, filters, repeats, strides in V2_BLOCKS:
        for repeat in range(repeats):
            block_number += 1
            x = _add_inverted_residual(
                x, f"block{block_number}", expansion, _round_channels(filters * alpha), strides if repeat == 0 else 1
            )
    x = _add_convolution(x, _round_channels(1280 * alpha) if alpha > 1 else 1280, "conv_last", 1, 1)
    return keras.Model(inputs, classifier_head(x, classes, dropout), name="mobilenet_v2")


def _check_arguments(input_shape: tuple[int, ...], classes: int, alpha: float, dropout: float) -> None:
    arguments.check_image_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_multiplier("alpha", alpha, MAX_ALPHA)
    arguments.check_fraction("dropout", dropout)


def _round_channels(channels: float) -> int:
    """To the nearest multiple of 8, but never below nine tenths."""
    rounded_channels = max(8, int(channels + 4) // 8 * 8)
    return rounded_channels + 8 if rounded_channels < 0.9 * channels else rounded_channels


def _add_convolution(x: Any, filters: int, name: str, kernel_size: int, strides: int) -> Any:
    import keras

    x = keras.layers.Conv2D(filters, kernel_size, strides=strides, padding="same", use_bias=False, name=name)(x)
    return batch_norm_relu(x, name, 6.0, BATCH_NORM_MOMENTUM)


def _add_depthwise(x: Any, name: str, strides: int) -> Any:
    import keras

    x = keras.layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False, name=name)(x)
    return batch_norm_relu(x, name, 6.0, BATCH_NORM_MOMENTUM)


def _add_inverted_residual(x: Any, name: str, expansion: int, filters: int, strides: int) -> Any:
    import keras

    block_input, input_channels = x, int(x.shape[-1])
    if expansion > 1:
        x = _add_convolution(x, expansion * input_channels, f"{name}_expand", 1, 1)
    x = _add_depthwise(x, f"{name}_depthwise", strides)
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project")(x)
    x = keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_project_bn")(x)
    if strides > 1 or input_channels != filters:
        return x
    return keras.layers.Add(name=f"{name}_add")([block_input, x])
