"""What the architectures are put together from."""

from collections.abc import Sequence
from typing import Any

from edgepipe.errors import InputError


def check_image(input_shape: tuple[int, ...], classes: int) -> None:
    """Raise an `InputError` unless it is (height, width, channels) and there are classes to tell apart."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise InputError(
            f"this architecture takes images (height, width, channels), found samples of shape {tuple(input_shape)}; "
            "add the channel axis to the data"
        )
    check_classes(classes)


def check_classes(classes: int) -> None:
    """Raise an `InputError` unless there are at least two."""
    if classes < 2:
        raise InputError(f"a classifier needs at least 2 classes, found {classes}")


def check_positive(**options: float | Sequence[int]) -> None:
    """Raise an `InputError` for the first option that is zero, negative or empty."""
    for name, value in options.items():
        listed = list(value) if isinstance(value, Sequence) else [value]
        if not listed or min(listed) <= 0:
            raise InputError(f"{name} must be above zero, found {value}")


def normal_relu(x: Any, name: str, limit: float | None = None, momentum: float = 0.99) -> Any:
    """BatchNormalization and ReLU, up to `limit` if there is one."""
    import keras

    x = keras.layers.BatchNormalization(momentum=momentum, name=f"{name}_bn")(x)
    return keras.layers.ReLU(limit, name=f"{name}_relu")(x)


def head(x: Any, classes: int, dropout: float = 0.0) -> Any:
    """Global average, dropout, a dense softmax."""
    import keras

    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)


def timeline(input_shape: tuple[int, ...], classes: int) -> tuple[Any, Any]:
    """An input of windows (time, channels), and it as a map (time, 1, channels): 2-D operators run on every device.

    Raises:
        InputError: the shape is no window, or there are no classes.
    """
    import keras

    if len(input_shape) != 2 or min(input_shape) < 1:
        raise InputError(f"this architecture takes windows (time, channels), found samples of shape "
                         f"{tuple(input_shape)}")  # fmt: skip
    check_classes(classes)
    inputs = keras.Input(input_shape, name="window")
    return inputs, keras.layers.Reshape((input_shape[0], 1, input_shape[1]), name="map")(inputs)
