"""Activations: each in a small convolutional network whose pre-activations span a realistic range."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers, ops

from .corpus_model import Training, corpus_model, trained_model
from .samples import grating_task, images, series, table

Activation = Callable[[Any], Any]


def _activated(activation: Activation, filters: int = 12, gain: float = 1.0) -> keras.Model:
    """Three convolutions, each followed by the activation; `gain` widens what it reads."""
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for strides in (1, 2, 2):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = activation(layers.BatchNormalization(momentum=0.9)(x) * gain)
    return keras.Model(inputs, layers.Dense(6)(layers.GlobalAveragePooling2D()(x)))


def _classifier(activation: Activation, gain: float = 1.0) -> keras.Model:
    """A classifier of gratings with the activation after each convolution."""
    inputs = keras.Input((12, 12, 1))
    x = inputs
    for strides in (1, 2, 2):
        x = layers.Conv2D(12, 3, strides=strides, padding="same")(x)
        x = activation(layers.BatchNormalization(momentum=0.9)(x) * gain)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


@corpus_model(images())
def prelu() -> keras.Model:
    """PReLU with slopes per channel; it makes its layer anew for each convolution."""
    return _activated(lambda x: layers.PReLU(shared_axes=(1, 2))(x))


@corpus_model(images())
def prelu_per_pixel() -> keras.Model:
    """PReLU with a slope for each pixel and channel, Keras' default."""
    return _activated(lambda x: layers.PReLU()(x), filters=6)


@corpus_model(images())
def leaky_relu() -> keras.Model:
    """LeakyReLU."""
    return _activated(layers.LeakyReLU(negative_slope=0.2))


@corpus_model(images(), kinds="K")
def elu() -> keras.Model:
    """ELU."""
    return _activated(layers.ELU())


@corpus_model(images(), kinds="DK")
def celu() -> keras.Model:
    """CELU: an exponential below zero."""
    return _activated(layers.Activation("celu"))


@corpus_model(images(), kinds="DK", in_ci=True)
def selu() -> keras.Model:
    """SELU: a choice between an exponential and a line."""
    return _activated(layers.Activation("selu"), gain=2.0)


@trained_model(grating_task(), kinds="DK", training=Training(epochs=10, learning_rate=0.005))
def selu_classifier() -> keras.Model:
    """A self-normalizing classifier with LeCun initialization, trained."""
    inputs = keras.Input((12, 12, 1))
    x = layers.Rescaling(4.0, offset=-2.0)(inputs)
    for strides in (1, 2, 2):
        x = layers.Conv2D(12, 3, strides=strides, activation="selu", kernel_initializer="lecun_normal")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


@corpus_model(images())
def gelu_tanh() -> keras.Model:
    """GELU in the approximation by tanh."""
    return _activated(lambda x: keras.activations.gelu(x, approximate=True))


@corpus_model(images(), kinds="K")
def gelu_erf() -> keras.Model:
    """GELU, exact."""
    return _activated(layers.Activation("gelu"))


@corpus_model(images())
def swish() -> keras.Model:
    """Swish, also named SiLU."""
    return _activated(layers.Activation("swish"))


@corpus_model(images(), kinds="D")
def mish() -> keras.Model:
    """Mish of wide pre-activations, untrained."""
    return _activated(layers.Activation("mish"), gain=4.0)


@trained_model(grating_task(), kinds="D", in_ci=True)
def mish_classifier() -> keras.Model:
    """A trained classifier with Mish."""
    return _classifier(layers.Activation("mish"))


@trained_model(grating_task(), kinds="D")
def mish_residual_classifier() -> keras.Model:
    """YOLOv4's backbone: residual blocks with Mish, trained."""
    inputs = keras.Input((12, 12, 1))
    x = layers.Conv2D(12, 3, strides=2, padding="same")(inputs)
    for _ in range(2):
        branch = layers.Conv2D(12, 3, padding="same")(layers.Activation("mish")(x))
        x = layers.Add()([x, layers.BatchNormalization(momentum=0.9)(branch)])
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(layers.Activation("mish")(x))))


@corpus_model(images(), kinds="D")
def softplus() -> keras.Model:
    """Softplus of wide pre-activations."""
    return _activated(layers.Activation("softplus"), gain=4.0)


@trained_model(grating_task(), kinds="D")
def softplus_classifier() -> keras.Model:
    """A trained classifier with softplus."""
    return _classifier(layers.Activation("softplus"), gain=2.0)


@corpus_model(images(), kinds="D")
def squareplus() -> keras.Model:
    """Squareplus: a square root of a square."""
    return _activated(layers.Activation("squareplus"), gain=2.0)


@corpus_model(images(), kinds="D")
def log_sigmoid() -> keras.Model:
    """Logarithm of a sigmoid, of wide pre-activations."""
    return _activated(layers.Activation("log_sigmoid"), gain=4.0)


@corpus_model(images(), kinds="D")
def log_softmax() -> keras.Model:
    """Logarithm of a softmax as output."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(inputs)
    return keras.Model(inputs, layers.Dense(8, activation="log_softmax")(layers.GlobalAveragePooling2D()(x)))


@corpus_model(images(), kinds="D")
def exponential() -> keras.Model:
    """The exponential as activation, once, of pre-activations that go from about -6 to 6."""
    inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(12, 3, padding="same")(inputs))
    x = layers.Activation("exponential")(1.5 * x)
    return keras.Model(inputs, layers.Dense(6)(layers.GlobalAveragePooling2D()(x)))


@corpus_model(images())
def hard_swish() -> keras.Model:
    """Hard swish."""
    return _activated(layers.Activation("hard_swish"))


@corpus_model(images())
def hard_sigmoid() -> keras.Model:
    """Hard sigmoid."""
    return _activated(layers.Activation("hard_sigmoid"))


@corpus_model(images())
def hard_tanh() -> keras.Model:
    """Hard tanh: a clip to [-1, 1]."""
    return _activated(layers.Activation("hard_tanh"))


@corpus_model(images())
def tanh() -> keras.Model:
    """Tanh of wide pre-activations."""
    return _activated(layers.Activation("tanh"), gain=3.0)


@corpus_model(images())
def sigmoid() -> keras.Model:
    """Sigmoid of wide pre-activations."""
    return _activated(layers.Activation("sigmoid"), gain=3.0)


@corpus_model(images())
def tanh_shrink() -> keras.Model:
    """x minus tanh(x)."""
    return _activated(layers.Activation("tanh_shrink"))


@corpus_model(images(), kinds="A")
def hard_shrink() -> keras.Model:
    """Hard shrink: a choice between x and zero."""
    return _activated(layers.Activation("hard_shrink"))


@corpus_model(images(), kinds="A")
def soft_shrink() -> keras.Model:
    """Soft shrink."""
    return _activated(layers.Activation("soft_shrink"))


@corpus_model(images())
def softsign() -> keras.Model:
    """Softsign: a division by one plus the magnitude."""
    return _activated(layers.Activation("softsign"))


@corpus_model(images())
def relu6() -> keras.Model:
    """ReLU6, with pre-activations that pass 6."""
    return _activated(layers.Activation("relu6"), gain=4.0)


@corpus_model(images())
def relu_with_threshold() -> keras.Model:
    """ReLU with a maximum, a slope and a threshold."""
    return _activated(layers.ReLU(max_value=3.0, negative_slope=0.1, threshold=0.5), gain=2.0)


@corpus_model(series(12, 8))
def squared_relu() -> keras.Model:
    """Primer's feed-forward block: the square of a ReLU."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(16)(inputs)
    hidden = ops.square(ops.relu(layers.Dense(32)(layers.LayerNormalization()(x))))
    return keras.Model(inputs, layers.Dense(6)(layers.Add()([x, layers.Dense(16)(hidden)])))


@corpus_model(images(), kinds="K")
def erf_layer() -> keras.Model:
    """The error function as activation."""
    return _activated(ops.erf)


@corpus_model(images())
def snake() -> keras.Model:
    """Snake of audio vocoders: x plus a squared sine."""
    return _activated(lambda x: x + ops.square(ops.sin(x)))


@corpus_model(images())
def channel_softmax() -> keras.Model:
    """A softmax over the channels of a map."""
    return _activated(layers.Softmax(axis=-1), gain=3.0)


@corpus_model(table(), kinds="A")
def gated_linear_unit() -> keras.Model:
    """GLU: one half of the features gates the other."""
    inputs = keras.Input((8,))
    value, gate = ops.split(layers.Dense(32)(inputs), 2, axis=-1)
    value, gate = ops.split(layers.Dense(32)(value * ops.sigmoid(gate)), 2, axis=-1)
    return keras.Model(inputs, layers.Dense(4)(value * ops.gelu(gate)))
