"""Real models for the tests: converted by TensorFlow once for the whole session, or written by hand."""

import os
from pathlib import Path
from typing import Any

import pytest
from tflite_conversion import SAMPLES, convert, float16, integer, nothing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def net() -> Any:
    """A small Keras 3 network with every weight random and half of the first kernel zero."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, padding="same", activation="relu", bias_initializer="random_normal"),
            layers.DepthwiseConv2D(3, bias_initializer="random_normal"),
            layers.Conv2DTranspose(4, 3, strides=2, padding="same", bias_initializer="random_normal"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, bias_initializer="random_normal"),
        ]
    )
    kernel, bias = model.layers[0].get_weights()
    kernel.reshape(-1)[::2] = 0
    model.layers[0].set_weights([kernel, bias])
    return model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tflite")


@pytest.fixture(scope="session")
def int8_net(net: Any, folder: Path) -> Path:
    return convert(net, folder / "int8.tflite", integer(SAMPLES))


@pytest.fixture(scope="session")
def flat_net(folder: Path) -> Path:
    """An int8 network whose operators all follow the batch (a TRANSPOSE_CONV has its output shape in the file)."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, strides=2, activation="relu"),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    return convert(model, folder / "flat.tflite", integer(SAMPLES))


@pytest.fixture(scope="session")
def float_io_net(net: Any, folder: Path) -> Path:
    return convert(net, folder / "float_io.tflite", integer(SAMPLES, "float32"))


@pytest.fixture(scope="session")
def float_net(net: Any, folder: Path) -> Path:
    return convert(net, folder / "float.tflite", nothing)


@pytest.fixture(scope="session")
def float16_net(net: Any, folder: Path) -> Path:
    return convert(net, folder / "float16.tflite", float16)
