"""Networks and data that the benchmarks train."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from edgepipe.core.arrays import Array

L = keras.layers


@dataclass(frozen=True)
class Data:
    """A split into training, validation and test samples with their labels."""

    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]


def digits() -> Data:
    """scikit-learn's digits, 8 x 8, in [0, 1]: 1,078, 359 and 360."""
    from edgepipe.data import digits as read

    x, y = read()
    x = (x / max(float(x.max()), 1.0)).astype("float32").reshape(-1, 8, 8, 1)
    chosen = np.random.default_rng(0).permutation(len(x))
    parts = np.split(chosen, [1078, 1437])
    return Data(*((x[part], y[part]) for part in parts))


def fashion(size: int, train: int, validation: int = 2000) -> Data:
    """Fashion-MNIST in [0, 1], padded to `size`; so many samples to train and to validate, all 10,000 to test."""
    from edgepipe.data import fashion_mnist

    read = fashion_mnist()
    edge = (size - 28) // 2
    (x, y), (tx, ty) = (
        (np.pad(x.reshape(-1, 28, 28, 1), ((0, 0), (edge, edge), (edge, edge), (0, 0))), y)
        for x, y in (read["train"], read["test"])
    )
    chosen = np.random.default_rng(0).permutation(len(x))
    fit, held = chosen[:train], chosen[train : train + validation]
    return Data((x[fit], y[fit]), (x[held], y[held]), (tx, ty))


def fashion_splits(train: int, validation: int) -> dict[str, tuple[Array, Array]]:
    """`fashion` as the `data:` of a pipeline."""
    data = fashion(28, train, validation)
    return {"train": data.train, "validation": data.validation, "test": data.test}


def depthwise(shape: tuple[int, ...], limit: float | None = 6.0) -> Any:
    """Six depthwise-separable blocks (Howard et al. 2017, arXiv 1704.04861), 17,000 parameters; ReLUs up to `limit`."""
    x = inputs = keras.Input(shape, name="image")
    x = _block(L.Conv2D(16, 3, strides=2, padding="same", use_bias=False), x, limit)
    for filters, stride in ((24, 1), (32, 2), (32, 1), (48, 1), (64, 2), (64, 1)):
        x = _block(L.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False), x, limit)
        x = _block(L.Conv2D(filters, 1, use_bias=False), x, limit)
    x = L.Dense(10, name="scores")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Softmax(name="probabilities")(x), name="depthwise")


def _block(layer: Any, x: Any, limit: float | None) -> Any:
    return L.ReLU(limit)(L.BatchNormalization(momentum=0.9)(layer(x)))


def resnet8(shape: tuple[int, ...]) -> Any:
    """The ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597)."""
    x = inputs = keras.Input(shape, name="image")
    x = L.ReLU()(L.BatchNormalization(momentum=0.9)(L.Conv2D(16, 3, padding="same")(x)))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = L.ReLU()(L.BatchNormalization(momentum=0.9)(L.Conv2D(filters, 3, strides=stride, padding="same")(x)))
        y = L.BatchNormalization(momentum=0.9)(L.Conv2D(filters, 3, padding="same")(y))
        if stride > 1:
            x = L.Conv2D(filters, 1, strides=stride, padding="same")(x)
        x = L.ReLU()(L.Add()([x, y]))
    x = L.Dense(10, name="scores")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.Softmax(name="probabilities")(x), name="resnet8")


def small(shape: tuple[int, ...]) -> Any:
    """The network of `make demo`."""
    from edgepipe.zoo import small_cnn

    return small_cnn(input_shape=shape, classes=10)


def mobilenet_v2(shape: tuple[int, ...]) -> Any:
    """Sandler et al. 2018 (arXiv 1801.04381), width 0.35; the momentum of its batch norms suits a short training."""
    model = keras.applications.MobileNetV2(weights=None, input_shape=shape, classes=10, alpha=0.35)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.momentum = 0.9
    return model
