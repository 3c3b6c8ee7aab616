"""A dense autoencoder for reconstruction: what it cannot rebuild, it has not seen."""

import math
from typing import TYPE_CHECKING

from edgepipe.errors import InputError

if TYPE_CHECKING:
    import keras


def autoencoder(
    *, input_shape: tuple[int, ...], widths: tuple[int, ...] = (128, 128), code: int = 8, batch_norm: bool = False
) -> "keras.Model":
    """Dense layers with ReLU down to `code` values and back up; the output is linear.

    Source: the anomaly-detection model of MLPerf Tiny: C. Banbury et al., "MLPerf Tiny Benchmark", arXiv 2106.07597,
    2021, which is `widths: [128, 128, 128, 128], batch_norm: true` for 640 values, 267,928 parameters (269,992 counted
    with those that it does not train); with fewer layers and no BatchNormalization by default.

    Args:
        input_shape: of one sample; it is flattened inside and restored at the end.
        widths: units of the encoder's layers; the decoder mirrors them.
        code: units of the bottleneck.
        batch_norm: whether each layer but the last is normalized before its ReLU.

    Raises:
        InputError: the samples are empty.
    """
    import keras

    size = math.prod(input_shape)
    if size < 1:
        raise InputError(f"an autoencoder needs samples with at least one value, found shape {tuple(input_shape)}")
    inputs = keras.Input(input_shape, name="sample")
    x = keras.layers.Flatten(name="flatten")(inputs)
    units = [*widths, code, *reversed(widths)]
    numbers = range(1, len(widths) + 1)
    names = [*(f"encoder{number}" for number in numbers), "code", *(f"decoder{number}" for number in numbers)]
    for width, name in zip(units, names, strict=True):
        x = keras.layers.Dense(width, name=name)(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    x = keras.layers.Dense(size, name="values")(x)
    return keras.Model(inputs, keras.layers.Reshape(tuple(input_shape), name="reconstruction")(x), name="autoencoder")
