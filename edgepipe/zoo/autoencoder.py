"""A dense autoencoder for reconstruction: samples unlike the training data have a high error."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgepipe.zoo import arguments

if TYPE_CHECKING:
    import keras

MAX_SAMPLE_VALUES = 2**18  # of a sample: a dense layer of 128 units has 128 times as many weights


def autoencoder(
    *, input_shape: tuple[int, ...], widths: Sequence[int] = (128, 128), code: int = 8, batch_norm: bool = False
) -> "keras.Model":
    """Dense layers with ReLU down to `code` values and back up; the output is linear.

    Source: the anomaly-detection model of MLPerf Tiny: C. Banbury et al., "MLPerf Tiny Benchmark", arXiv 2106.07597,
    2021, which is `widths: [128, 128, 128, 128], batch_norm: true` for 640 values, 267,928 parameters (269,992 with
    the non-trainable ones); with fewer layers and no BatchNormalization by default.

    Args:
        input_shape: of one sample; it is flattened inside and restored at the end.
        widths: units of the encoder's layers; the decoder mirrors them.
        code: units of the bottleneck.
        batch_norm: whether each layer but the last is normalized before its ReLU.

    Raises:
        InputError: the samples are empty or too large, or an argument is out of its range.
    """
    value_count = math.prod(arguments.check_any_shape(input_shape, MAX_SAMPLE_VALUES))
    arguments.check_counts(allow_empty=True, widths=widths)
    arguments.check_count(code=code)
    arguments.check_flag("batch_norm", batch_norm)
    import keras

    inputs = keras.Input(tuple(input_shape), name="sample")
    x: Any = keras.layers.Flatten(name="flatten")(inputs)
    layer_widths = [*widths, code, *reversed(widths)]
    layer_numbers = range(1, len(widths) + 1)
    layer_names = [
        *(f"encoder{number}" for number in layer_numbers),
        "code",
        *(f"decoder{number}" for number in layer_numbers),
    ]
    for width, name in zip(layer_widths, layer_names, strict=True):
        x = _add_dense_block(x, width, name, batch_norm)
    x = keras.layers.Dense(value_count, name="values")(x)
    return keras.Model(inputs, keras.layers.Reshape(tuple(input_shape), name="reconstruction")(x), name="autoencoder")


def _add_dense_block(x: Any, width: int, name: str, batch_norm: bool) -> Any:
    import keras

    if not batch_norm:
        return keras.layers.Dense(width, activation="relu", name=name)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(keras.layers.Dense(width, name=name)(x))
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)
