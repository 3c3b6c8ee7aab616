"""MACs and parameters of whole networks against counts made from the Keras layers, which know nothing of TFLite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_conversion import convert, nothing

from edgepipe.tflite import reader

PUBLISHED = {
    "mobilenet_v1": 568_740_352,  # arXiv 1704.04861, table 4: 569 million
    "resnet": 12_501_632,
    "ds_cnn": 2_656_768,
    "autoencoder": 264_192,  # MLPerf Tiny, arXiv 2106.07597
}


def _macs(layer: Any) -> int:
    """Products of one layer, from its kernel and its output: every output of a layer sums one kernel."""
    shape = layer.output.shape[1:] if hasattr(layer, "output") else ()
    kind = type(layer).__name__
    if kind == "Dense":
        return math.prod(layer.kernel.shape) * math.prod(shape[:-1])
    if kind in ("Conv2D", "DepthwiseConv2D"):
        return math.prod(shape[:2]) * math.prod(layer.kernel.shape)
    return 0


def _parameters(model: Any) -> int:
    """Kernels, and one bias for each of their filters: batch normalization is folded into them."""
    found = 0
    for layer in model.layers:
        kernels = [w for w in layer.weights if w.path.endswith("kernel")]
        found += sum(math.prod(kernel.shape) for kernel in kernels)
        if kernels:
            found += layer.output.shape[-1]
    return found


def _mobilenet_v1() -> Any:
    from keras.applications import MobileNet

    return MobileNet(weights=None)


def _mobilenet_v2() -> Any:
    from keras.applications import MobileNetV2

    return MobileNetV2(alpha=0.35, input_shape=(96, 96, 3), weights=None)


def _resnet() -> Any:
    """MLPerf Tiny's image classification, ResNet-8: shortcuts with 1x1 convolutions where the width changes."""
    import keras
    from keras import layers

    x = inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(x)))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(width, 3, strides=stride, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(y))
        x = x if stride == 1 else layers.Conv2D(width, 1, strides=stride)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _squeeze() -> Any:
    """Fire modules of SqueezeNet: branches that are concatenated."""
    import keras
    from keras import layers

    x = inputs = keras.Input((56, 56, 3))
    x = layers.Conv2D(32, 3, strides=2, activation="relu")(x)
    for squeezed, expanded in ((8, 32), (16, 48)):
        s = layers.Conv2D(squeezed, 1, activation="relu")(x)
        sides = [layers.Conv2D(expanded, size, padding="same", activation="relu")(s) for size in (1, 3)]
        x = layers.MaxPooling2D(2)(layers.Concatenate()(sides))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(10, 1)(x))
    return keras.Model(inputs, x)


def _ds_cnn() -> Any:
    """MLPerf Tiny's keyword spotting: a wide first kernel, four separable blocks."""
    import keras
    from keras import layers

    x = inputs = keras.Input((49, 10, 1))
    x = layers.Conv2D(64, (10, 4), strides=2, padding="same", use_bias=False)(x)
    for _ in range(4):
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(x))
        x = layers.Conv2D(64, 1, use_bias=False)(x)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(x))


def _autoencoder() -> Any:
    """MLPerf Tiny's anomaly detection: ten dense layers around a bottleneck of eight."""
    import keras
    from keras import layers

    hidden = [layers.Dense(width, activation="relu") for width in (*[128] * 4, 8, *[128] * 4)]
    return keras.Sequential([keras.Input((640,)), *hidden, layers.Dense(640)])


def _perturbed(model: Any) -> Any:
    """Weights all different from zero and from each other, for the converter drops and merges constants."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


NETWORKS = [_mobilenet_v1, _mobilenet_v2, _resnet, _squeeze, _ds_cnn, _autoencoder]


@pytest.mark.slow
@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__[1:])
def test_counts_of_whole_networks(build: Callable[[], Any], tmp_path: Path) -> None:
    keras_model = _perturbed(build())
    model = reader.read(convert(keras_model, tmp_path / "m.tflite", nothing))
    counted = sum(_macs(layer) for layer in keras_model.layers)
    assert model.macs == counted
    assert model.parameters == _parameters(keras_model)
    assert model.uncounted_operator_names == ()
    assert model.macs == PUBLISHED.get(build.__name__[1:], counted)
