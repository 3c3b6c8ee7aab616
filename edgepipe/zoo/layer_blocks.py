"""Blocks of layers that the architectures share."""

from typing import Any


def batch_norm_relu(x: Any, name: str, relu_limit: float | None = None, momentum: float = 0.9) -> Any:
    """BatchNormalization and ReLU.

    Args:
        x: the Keras tensor.
        name: prefix of the layers' names.
        relu_limit: where ReLU clips, such as 6; None for no limit.
        momentum: of the moving averages; 0.9 follows a short training too.
    """
    import keras

    x = keras.layers.BatchNormalization(momentum=momentum, name=f"{name}_bn")(x)
    return keras.layers.ReLU(relu_limit, name=f"{name}_relu")(x)


def classifier_head(x: Any, class_count: int, dropout: float = 0.0) -> Any:
    """Global average, dropout, a dense softmax."""
    import keras

    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(class_count, activation="softmax", name="probabilities")(x)


def window_input(time: int, channels: int) -> tuple[Any, Any]:
    """An input of windows (time, channels), and its map (time, 1, channels): 2-D operators run on every device."""
    import keras

    inputs = keras.Input((time, channels), name="window")
    return inputs, keras.layers.Reshape((time, 1, channels), name="map")(inputs)
