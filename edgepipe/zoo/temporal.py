"""A temporal CNN for windows of sensors: depthwise-separable convolutions along time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.zoo import arguments
from edgepipe.zoo.layer_blocks import batch_norm_relu, classifier_head, window_input

if TYPE_CHECKING:
    import keras

BATCH_NORM_MOMENTUM = 0.9


def temporal_cnn(
    *, input_shape: tuple[int, ...], classes: int, filters: int = 32, blocks: int = 3, kernel: int = 5,
    dilated: bool = False, causal: bool = False, dropout: float = 0.1,
) -> "keras.Model":  # fmt: skip
    """A convolution over all channels, then residual blocks of a depthwise and a 1x1 convolution along time.

    The DS-CNN of Zhang et al. ("Hello Edge", arXiv 1711.07128, 2017) in one dimension, with the residual connections
    of S. Bai, J. Kolter, V. Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for
    Sequence Modeling", arXiv 1803.01271, 2018. Instead of dilation, which small runtimes run slowly, max pooling
    halves time between blocks as long as 4 steps are left; `dilated` and `causal` are as in the paper.

    Args:
        input_shape: (time, channels) of one window.
        classes: outputs, at least 2.
        filters: channels of every convolution.
        blocks: after the first convolution.
        kernel: steps of time that a convolution sees.
        dilated: block n looks at every 2^(n-1)th step, as far as the window has them, and nothing is pooled.
        causal: each step sees itself and earlier ones, as on a stream; the window is padded with zeros in front.
        dropout: share dropped before the dense layer.

    Raises:
        InputError: no window, fewer than two classes, or an argument out of its range.
    """
    time, channels = arguments.check_window_shape(input_shape)
    arguments.check_class_count(classes)
    arguments.check_count(filters=filters, kernel=kernel)
    arguments.check_count(arguments.MAX_BLOCKS, blocks=blocks)
    arguments.check_flag("dilated", dilated)
    arguments.check_flag("causal", causal)
    arguments.check_fraction("dropout", dropout)
    import keras

    inputs, x = window_input(time, channels)
    x, layer_options = _TimeConvolution(kernel, 1, causal).prepare_layer(x, "conv0")
    x = batch_norm_relu(
        keras.layers.Conv2D(filters, (kernel, 1), **layer_options)(x), "conv0", momentum=BATCH_NORM_MOMENTUM
    )
    for number in range(1, blocks + 1):
        dilation = min(2 ** (number - 1), max(time - 1, 1)) if dilated else 1
        x = _add_temporal_block(x, f"block{number}", _TimeConvolution(kernel, dilation, causal))
        if not dilated and x.shape[1] >= 8 and number < blocks:
            x = keras.layers.MaxPooling2D((2, 1), name=f"pool{number}")(x)
    return keras.Model(inputs, classifier_head(x, classes, dropout), name="temporal_cnn")


@dataclass(frozen=True)
class _TimeConvolution:
    """Kernel, dilation and padding of a convolution along time, the first axis of a map of width 1."""

    kernel: int
    dilation: int
    causal: bool

    def prepare_layer(self, x: Any, name: str) -> tuple[Any, dict[str, Any]]:
        """`x`, padded with zeros in front if causal, and the Keras options of its convolution `name`."""
        import keras

        if self.causal:
            padding_steps = self.dilation * (self.kernel - 1)
            x = keras.layers.ZeroPadding2D(((padding_steps, 0), (0, 0)), name=f"{name}_past")(x)
        padding_mode = "valid" if self.causal else "same"
        return x, {"padding": padding_mode, "dilation_rate": (self.dilation, 1), "use_bias": False, "name": name}


def _add_temporal_block(x: Any, name: str, time_convolution: _TimeConvolution) -> Any:
    import keras

    block_input = x
    x, layer_options = time_convolution.prepare_layer(x, f"{name}_depthwise")
    x = keras.layers.DepthwiseConv2D((time_convolution.kernel, 1), **layer_options)(x)
    x = batch_norm_relu(x, f"{name}_depthwise", momentum=BATCH_NORM_MOMENTUM)
    x = keras.layers.Conv2D(int(block_input.shape[-1]), 1, use_bias=False, name=f"{name}_pointwise")(x)
    x = keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_pointwise_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([block_input, x]))
