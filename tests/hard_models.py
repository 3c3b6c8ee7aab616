"""Small trained networks for post-training quantization, and what makes one of them hard to quantize."""

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.data import digits
from edgepipe.training.training_loop import set_seeds

L = keras.layers
SPREAD = 1.5  # decades to either side of 1 over which channels are rescaled


@cache
def data() -> tuple[Array, Array, Array, Array]:
    """The digits in [0, 1]: x and y to train with, x and y to validate with."""
    x, y = digits()
    x = (x / x.max()).astype("float32").reshape(-1, 8, 8, 1)
    order = np.random.RandomState(0).permutation(len(x))
    fit, held = order[:1200], order[1200:]
    return x[fit], y[fit], x[held], y[held]


def _block(layer: Any, x: Any, name: str) -> Any:
    return L.ReLU(name=f"{name}_relu")(L.BatchNormalization(momentum=0.9, name=f"{name}_bn")(layer(x)))


def depthwise(blocks: int = 3) -> Any:
    """A convolution and depthwise-separable blocks."""
    x = inputs = keras.Input((8, 8, 1), name="image")
    x = _block(L.Conv2D(12, 3, padding="same", use_bias=False, name="c0"), x, "c0")
    for number in range(1, blocks + 1):
        depth = L.DepthwiseConv2D(3, strides=2 if number == 2 else 1, padding="same", use_bias=False, name=f"d{number}")
        x = _block(depth, x, f"d{number}")
        x = _block(L.Conv2D(12 + 6 * number, 1, use_bias=False, name=f"p{number}"), x, f"p{number}")
    x = L.Dense(10, name="scores")(L.GlobalAveragePooling2D(name="average")(x))
    return keras.Model(inputs, L.Softmax(name="probabilities")(x), name="net")


def plain() -> Any:
    """Convolutions with a residual sum and a dense layer behind Flatten."""
    x = inputs = keras.Input((8, 8, 1), name="image")
    x = _block(L.Conv2D(8, 3, padding="same", use_bias=False, name="a"), x, "a")
    y = _block(L.Conv2D(8, 3, padding="same", use_bias=False, name="b"), x, "b")
    x = L.MaxPooling2D(name="pool")(L.Add(name="sum")([x, y]))
    x = _block(L.Conv2D(12, 3, use_bias=False, name="c"), x, "c")
    return keras.Model(inputs, L.Dense(10, activation="softmax", name="out")(L.Flatten()(x)), name="plain")


def trained(build: Callable[[], Any], epochs: int = 12) -> Any:
    """What `build` gives, trained on the digits: the same weights in whichever order the tests run."""
    set_seeds(0)  # before the first weights are drawn
    model = build()
    x, y, _, _ = data()
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def hardened(model: Any, pairs: tuple[tuple[str, str], ...]) -> Any:
    """Rescale the channels between a batch norm's convolution and the depthwise layer behind it; same function."""
    random = np.random.RandomState(1)
    for first, second in pairs:
        norm, kernel = model.get_layer(f"{first}_bn"), model.get_layer(second).kernel
        scale = 10 ** random.uniform(-SPREAD, SPREAD, norm.gamma.shape[0]).astype("float32")
        norm.gamma.assign(norm.gamma * scale)
        norm.beta.assign(norm.beta * scale)
        kernel.assign(kernel / scale.reshape(1, 1, -1, 1))
    return model


@cache
def hard() -> Any:
    """A trained depthwise network of eight layers that plain int8 ruins."""
    return hardened(trained(depthwise), (("c0", "d1"), ("p1", "d2"), ("p2", "d3")))


@cache
def soft() -> Any:
    """The same without what makes it hard."""
    return trained(depthwise)


@cache
def residual() -> Any:
    """The plain network, trained."""
    return trained(plain)


def accuracy(values: Any, truth: Array) -> float:
    """Share of samples whose largest score is the label's."""
    return float((np.asarray(values).reshape(len(truth), -1).argmax(axis=1) == truth).mean())
