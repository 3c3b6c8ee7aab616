"""What the architectures are put together from."""

from typing import Any


def batch_norm_relu(x: Any, name: str, limit: float | None = None, momentum: float = 0.9) -> Any:
    """BatchNormalization, whose averages follow a short training too, and ReLU, up to `limit` if there is one."""
    import keras

    x = keras.layers.BatchNormalization(momentum=momentum, name=f"{name}_bn")(x)
    return keras.layers.ReLU(limit, name=f"{name}_relu")(x)


def classifier_head(x: Any, classes: int, dropout: float = 0.0) -> Any:
    """Global average, dropout, a dense softmax."""
    import keras

    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)


def window_input(time: int, channels: int) -> tuple[Any, Any]:
    """An input of windows (time, channels), and it as a map (time, 1, channels): 2-D operators run on every device."""
    import keras

    inputs = keras.Input((time, channels), name="window")
    return inputs, keras.layers.Reshape((time, 1, channels), name="map")(inputs)
