"""A temporal CNN for windows of sensors: depthwise-separable convolutions along time."""

from typing import TYPE_CHECKING, Any

from edgepipe.zoo.parts import check_positive, head, normal_relu, timeline

if TYPE_CHECKING:
    import keras

MOMENTUM = 0.9


def temporal_cnn(
    *, input_shape: tuple[int, ...], classes: int, filters: int = 32, blocks: int = 3, kernel: int = 5,
    dropout: float = 0.1,
) -> "keras.Model":  # fmt: skip
    """A convolution over all channels, then residual blocks of a depthwise and a 1x1 convolution along time.

    The DS-CNN of Zhang et al. ("Hello Edge", arXiv 1711.07128, 2017) in one dimension, with the residual connections
    of S. Bai, J. Kolter, V. Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
    Sequence Modeling", arXiv 1803.01271, 2018. Instead of dilation, which small runtimes carry out slowly, max pooling
    halves time between blocks as long as 4 steps are left.

    Args:
        input_shape: (time, channels) of one window.
        classes: outputs, at least 2.
        filters: channels of every convolution.
        blocks: after the first convolution.
        kernel: steps of time that a convolution sees.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: the shape is no window, there are no classes, or a number is not above zero.
    """
    import keras

    inputs, x = timeline(input_shape, classes)
    check_positive(filters=filters, blocks=blocks, kernel=kernel)
    x = keras.layers.Conv2D(filters, (kernel, 1), padding="same", use_bias=False, name="conv0")(x)
    x, steps = normal_relu(x, "conv0", momentum=MOMENTUM), input_shape[0]
    for number in range(1, blocks + 1):
        x = _block(x, f"block{number}", filters, kernel)
        if steps >= 8 and number < blocks:
            x, steps = keras.layers.MaxPooling2D((2, 1), name=f"pool{number}")(x), steps // 2
    return keras.Model(inputs, head(x, classes, dropout), name="temporal_cnn")


def _block(x: Any, name: str, filters: int, kernel: int) -> Any:
    import keras

    entered = x
    x = keras.layers.DepthwiseConv2D((kernel, 1), padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = normal_relu(x, f"{name}_depthwise", momentum=MOMENTUM)
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise")(x)
    x = keras.layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_pointwise_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([entered, x]))
