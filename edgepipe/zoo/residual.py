"""ResNet-8, the image classifier of MLPerf Tiny."""

from typing import TYPE_CHECKING, Any

from edgepipe.zoo import arguments
from edgepipe.zoo.layer_blocks import batch_norm_relu, classifier_head

if TYPE_CHECKING:
    import keras

BATCH_NORM_MOMENTUM = 0.9


def resnet8(*, input_shape: tuple[int, ...], classes: int, filters: int = 16) -> "keras.Model":
    """Three residual blocks, each with twice the channels of the last.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, 2015; in this size by
    C. Banbury et al., "MLPerf Tiny Benchmark", arXiv 2106.07597, 2021: 78,666 parameters, 12.5 M MACs for 32x32x3 and
    10 classes.

    Args:
        input_shape: (height, width, channels) of one image.
        classes: outputs, at least 2.
        filters: channels of the first block.

    Raises:
        InputError: no image, fewer than two classes, or an argument out of its range.
    """
    arguments.check_image_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_count(filters=filters)
    import keras

    inputs = keras.Input(tuple(input_shape), name="image")
    x = batch_norm_relu(_add_convolution(inputs, filters, "conv0"), "conv0", momentum=BATCH_NORM_MOMENTUM)
    for number, strides in ((1, 1), (2, 2), (3, 2)):
        x = _add_residual_block(x, f"block{number}", filters * 2 ** (number - 1), strides)
    return keras.Model(inputs, classifier_head(x, classes), name="resnet8")


def _add_convolution(x: Any, filters: int, name: str, kernel_size: int = 3, strides: int = 1) -> Any:
    import keras

    return keras.layers.Conv2D(filters, kernel_size, strides=strides, padding="same", name=name)(x)


def _add_residual_block(x: Any, name: str, filters: int, strides: int) -> Any:
    import keras

    y = batch_norm_relu(
        _add_convolution(x, filters, f"{name}_conv1", 3, strides), f"{name}_conv1", momentum=BATCH_NORM_MOMENTUM
    )
    y = _add_convolution(y, filters, f"{name}_conv2")
    y = keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_conv2_bn")(y)
    if strides > 1:
        x = _add_convolution(x, filters, f"{name}_shortcut", 1, strides)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))
