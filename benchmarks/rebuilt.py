"""Builds again the architectures whose measured files are nowhere published: only their shapes matter to a fit.

Weights are left at their start. Names are those of the table; each model's MACs are held against the table's.
"""

import re
from pathlib import Path
from typing import Any

MOBILE = re.compile(r"mobilenet_v([12])_([\d.]+)_(\d+)")
MOBILE_V3 = re.compile(r"mobilenet_v3_(large|small)_(minimalistic|[\d.]+)_(\d+)")
OTHERS = {
    "mobilenetv2": "MobileNetV2",
    "resnet": "ResNet50",
    "inception_v3_299": "InceptionV3",
    "densenet_224": "DenseNet121",
    "nasnet_mobile_224": "NASNetMobile",
    "inception_resnet_v2_299": "InceptionResNetV2",
}
LITE0 = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4),
         (6, 3, 1, 320, 1))  # fmt: skip
TOLERANCE = 0.02  # of the MACs: tables round, and leave out a last layer here and there


def build(name: str) -> Any:
    """The Keras model of that name, or None where the name is unknown."""
    from keras import applications

    if match := MOBILE.fullmatch(name):
        size = int(match[3])
        make = applications.MobileNet if match[1] == "1" else applications.MobileNetV2
        return make(input_shape=(size, size, 3), alpha=float(match[2]), weights=None)
    if match := MOBILE_V3.fullmatch(name):
        return _mobile_v3(match[1], match[2], int(match[3]))
    if name in ("efficientnet-lite", "efficientnet_lite0"):
        return _efficientnet_lite0()
    return getattr(applications, OTHERS[name])(weights=None) if name in OTHERS else None


def _mobile_v3(size: str, width: str, pixels: int) -> Any:
    from keras import applications

    plain = width == "minimalistic"
    make = applications.MobileNetV3Large if size == "large" else applications.MobileNetV3Small
    return make(input_shape=(pixels, pixels, 3), alpha=1.0 if plain else float(width), minimalistic=plain,
                weights=None, include_preprocessing=False)  # fmt: skip


def _efficientnet_lite0() -> Any:
    """EfficientNet-Lite0: B0 without squeeze-and-excite, ReLU6 instead of swish (Liu 2020, TensorFlow blog)."""
    import keras
    from keras import layers

    def normal(x: Any, activate: bool = True) -> Any:
        x = layers.BatchNormalization()(x)
        return layers.ReLU(6.0)(x) if activate else x

    given = layers.Input((224, 224, 3))
    x, channels = normal(layers.Conv2D(32, 3, 2, "same", use_bias=False)(given)), 32
    for expand, kernel, stride, filters, repeats in LITE0:
        for place in range(repeats):
            step, y = stride if place == 0 else 1, x
            if expand > 1:
                y = normal(layers.Conv2D(channels * expand, 1, use_bias=False)(y))
            y = normal(layers.DepthwiseConv2D(kernel, step, "same", use_bias=False)(y))
            y = normal(layers.Conv2D(filters, 1, use_bias=False)(y), activate=False)
            x = layers.Add()([x, y]) if step == 1 and channels == filters else y
            channels = filters
    x = layers.GlobalAveragePooling2D()(normal(layers.Conv2D(1280, 1, use_bias=False)(x)))
    return keras.Model(given, layers.Dense(1000, activation="softmax")(x))


def write(name: str, macs: int, folder: Path) -> str:
    """Write NAME.tflite into `folder` unless it is there; why not, or nothing."""
    from edgepipe.compress.keras_to_tflite import convert
    from edgepipe.tflite import reader

    target = folder / f"{name}.tflite"
    if not target.exists():
        model = build(name)
        if model is None:
            return f"{name}: no recipe to build it again"
        aside = target.with_suffix(".part")
        aside.write_bytes(convert(model, "float32"))
        aside.rename(target)
    found = reader.read(target).macs
    if abs(found / macs - 1) > TOLERANCE:
        return f"{name}: {found:,} MACs, the table says {macs:,}"
    return ""
