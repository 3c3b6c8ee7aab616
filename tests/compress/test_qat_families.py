"""One model family per mechanism, from plain Keras 3 to full int8; `make families` runs all fourteen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant, freeze_batch_norms
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.models.bridge import bridge
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

pytestmark = pytest.mark.slow
APPLICATIONS = keras.applications
SMALL_OPTIONS = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}


def _convnext() -> Any:
    from keras.src.applications.convnext import ConvNeXt  # the sizes of the public ones are fixed

    return ConvNeXt([1, 1, 1, 1], [24, 48, 96, 192], name="convnext", weights=None, input_shape=(32, 32, 3), classes=10)


def _cut(model: Any, layer: str) -> Any:
    """The blocks of `model` up to `layer`: those that follow repeat them."""
    return keras.Model(model.input, model.get_layer(layer).output, name=model.name)


def _squeeze_excite() -> Any:
    """The first blocks have ReLU, with and without squeeze-excite; hard-swish starts at the fourth."""
    trunk = _cut(APPLICATIONS.MobileNetV3Small(**SMALL_OPTIONS), "expanded_conv_4_add")
    x = keras.layers.GlobalAveragePooling2D(name="average")(trunk.output)
    return keras.Model(trunk.input, keras.layers.Dense(10, "softmax", name="out")(x), name="mobilenet_v3")


def _nested() -> Any:
    inputs = keras.Input((32, 32, 3), name="image")
    mobilenet = APPLICATIONS.MobileNet(weights=None, input_shape=(32, 32, 3), alpha=0.25, include_top=False)
    backbone = _cut(mobilenet, "conv_pw_3_relu")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(inputs)
    head = keras.Sequential([keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")], name="head")
    return keras.Model(inputs, head(backbone(x)), name="nested")


def _densenet() -> Any:
    from keras.src.applications.densenet import DenseNet  # the blocks of the public ones are fixed

    return DenseNet([2, 1, 1, 2], name="densenet", weights=None, input_shape=(32, 32, 3), classes=10)


FAMILIES: dict[str, Callable[[], Any]] = {
    "squeeze-excite, hard-swish": _squeeze_excite,
    "dense blocks, standing batch norms": _densenet,
    "layer norm, GELU, layer scale": _convnext,
    "nested, rescaling": _nested,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    set_seeds(0)
    model = FAMILIES[name]()
    perturb(model)
    x = np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 3)).astype("float32")
    bridged = bridge(model)
    assert bridged.difference.worst_difference.relative_error < 1e-4
    fake_quant = build_fake_quant(bridged.model, QatRecipe(), x[:2])
    range_initialization.initialize_ranges(fake_quant.model, x, 0, use_batch_statistics=False)
    freeze_batch_norms(fake_quant.model)
    fake_quant.model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    fake_quant.model.optimizer.learning_rate = 1e-5
    fake_quant.model.fit(x, np.arange(16) % 10, batch_size=16, epochs=1, verbose=0)
    assert {entry.quantized_by for entry in fake_quant.layer_coverages} == {"training"}
    quantized_model = convert_keras(fake_quant.model, QuantizationRequest(), x, x[:2])
    (tmp_path / "m.tflite").write_bytes(quantized_model.content)
    lite = read(tmp_path / "m.tflite")
    assert check_integer_only(lite) == []
    assert quantized_model.agreement is not None
    assert [entry for entry in quantized_model.agreement.tensors if entry.missing_reason] == []
