"""Activations of Keras 3 that tf_keras lacks or defines differently, as functions that tf_keras can store by name."""

import keras
import tensorflow as tf
import tf_keras

from edgepipe.models.keras_types import KerasActivation

REGISTRATION_PACKAGE = "edgepipe"
_KERAS3_ACTIVATION_NAMES = (
    "celu", "glu", "hard_shrink", "hard_tanh", "log_sigmoid", "soft_shrink", "sparse_plus", "sparse_sigmoid",
    "sparsemax", "squareplus", "tanh_shrink",
)  # fmt: skip


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)  # type: ignore[untyped-decorator]
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """relu6(x + 3) / 6, as Keras 3 defines it; tf_keras's hard_sigmoid is clip(0.2 x + 0.5, 0, 1)."""
    return tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)  # type: ignore[untyped-decorator]
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """x relu6(x + 3) / 6 (Howard et al. 2019, arXiv 1905.02244); becomes TFLite's HARD_SWISH."""
    return x * tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)  # type: ignore[untyped-decorator]
def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """max(x, 0.2 x), with the slope of Keras 3's leaky_relu."""
    return tf.nn.leaky_relu(x, alpha=0.2)


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)  # type: ignore[untyped-decorator]
def log_softmax(x: tf.Tensor) -> tf.Tensor:
    """x - log(sum(exp(x))) over the last axis."""
    return tf.nn.log_softmax(x)


def _register_activation(name: str) -> KerasActivation:
    """The activation `name`, computed by Keras 3 itself and registered under a name that tf_keras can store."""
    keras_activation = getattr(keras.activations, name)

    def activation(x: tf.Tensor) -> tf.Tensor:
        return keras_activation(x)

    activation.__name__ = name
    activation.__doc__ = keras_activation.__doc__
    return tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE, name=name)(activation)


ACTIVATION_BY_NAME = {
    "hard_sigmoid": hard_sigmoid,
    "hard_silu": hard_silu,
    "leaky_relu": leaky_relu,
    "log_softmax": log_softmax,
    **{name: _register_activation(name) for name in _KERAS3_ACTIVATION_NAMES},
}
