"""Every layer class and every activation of Keras 3: verified under perturbed weights, or refused by name."""

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from layer_table import LAYERS, WITHOUT_CASE, Case, model_of

from edgepipe.core.errors import InputError
from edgepipe.models.bridge import BridgedModel, bridge

STRICT = 1e-5
K = keras.layers
# classes that tf_keras lacks or computes differently: they run as Keras 3 layers inside the twin
WRAPPED_CLASSES = {
    "AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D", "AdaptiveMaxPooling1D",
    "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D", "AugMix", "AutoContrast",
    "ContrastLimitedAdaptiveHistogramEqualization", "CutMix", "IntegerLookup", "MaxNumBoundingBoxes", "MelSpectrogram",
    "MixUp", "RMSNormalization", "RandAugment", "RandomColorDegeneration", "RandomColorJitter", "RandomCrop",
    "RandomElasticTransform", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert",
    "RandomPerspective", "RandomPosterization", "RandomSaturation", "RandomSharpness", "RandomShear",
    "ReversibleEmbedding", "STFTSpectrogram", "Solarization", "SpectralNormalization",
}  # fmt: skip


def _agrees(model: Any) -> BridgedModel:
    bridged = bridge(model)
    assert bridged.difference.worst_difference.relative_error < STRICT, bridged.difference.text()
    assert bridged.difference.tensor_differences
    return bridged


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    bridged = _agrees(model_of(LAYERS[name]))
    assert bool(bridged.keras3_notes) == (name in WRAPPED_CLASSES), bridged.keras3_notes
    if bridged.keras3_notes:
        assert f"({name}) stays a Keras 3 layer" in bridged.keras3_notes[0]


def test_the_table_has_every_layer_class() -> None:
    public = {
        name
        for name, value in vars(keras.layers).items()
        if isinstance(value, type) and issubclass(value, K.Layer) and value.__name__ in (name, "GroupedQueryAttention")
    }
    assert public - set(LAYERS) == WITHOUT_CASE
    assert set(LAYERS) <= public


ACTIVATIONS = [
    name for name, value in vars(keras.activations).items()
    if callable(value) and name not in ("deserialize", "get", "serialize", "threshold")
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    x = keras.Input((6, 4), name="x")
    y = K.Activation(name, name="alone")(x)
    if name != "glu":  # Keras itself does not see that glu halves the units of the layer it is part of
        y = K.Dense(4, activation=name, name="within")(y)
    bridged = _agrees(keras.Model(x, y, name="activation"))
    assert not bridged.keras3_notes


@pytest.mark.parametrize(
    "activation", [K.LeakyReLU(0.3), K.ReLU(6.0), K.Softmax(axis=1)], ids=lambda layer: type(layer).__name__
)
def test_a_layer_as_activation(activation: Any) -> None:
    x = keras.Input((6, 6, 3), name="x")
    model = keras.Model(x, K.SeparableConv2D(3, 2, activation=activation, name="s")(x), name="layered")
    assert [layer.name for layer in _agrees(model).model.layers] == [
        "x", "s_depthwise", "s_pointwise", "s_pointwise_activation"
    ]  # fmt: skip


VARIANTS = {
    "channels before batch": Case(lambda: K.BatchNormalization(axis=1, scale=False), ((5, 3),)),
    "depthwise as groups": Case(lambda: K.Conv2D(8, 3, groups=4, padding="same", use_bias=False), ((6, 6, 4),)),
    "conv1d causal": Case(lambda: K.Conv1D(3, 3, padding="causal", dilation_rate=2), ((9, 2),)),
    "dense on five dimensions": Case(lambda: K.Dense(3), ((2, 3, 2, 4),)),
    "gru reset before": Case(lambda: K.GRU(3, reset_after=False, unroll=True), ((4, 2),)),
    "lstm states": Case(lambda: K.LSTM(3, return_state=True, return_sequences=True), ((4, 2),)),
    "attention per axis": Case(
        lambda: K.MultiHeadAttention(2, 3, attention_axes=(1, 2)), ((3, 4, 5), (3, 4, 5)), separate_inputs=True
    ),
    "attention scores": Case(lambda: K.Attention(score_mode="concat"), ((5, 4), (7, 4))),
    "group norm by instance": Case(lambda: K.GroupNormalization(-1), ((5, 5, 4),)),
    "resize nearest": Case(lambda: K.Resizing(5, 3, interpolation="nearest"), ((8, 8, 3),)),
    "resize crop": Case(lambda: K.Resizing(5, 3, crop_to_aspect_ratio=True), ((8, 8, 3),)),
    "resize pad": Case(lambda: K.Resizing(5, 3, pad_to_aspect_ratio=True), ((8, 8, 3),)),
    "upsampling by cubic": Case(lambda: K.UpSampling2D(3, interpolation="bicubic"), ((4, 4, 2),)),
    "frozen": Case(lambda: K.Dense(3, trainable=False)),
    "regularized": Case(lambda: K.Dense(3, kernel_regularizer="l2", kernel_constraint="max_norm")),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name: str) -> None:
    bridged = _agrees(model_of(VARIANTS[name]))
    assert bool(bridged.keras3_notes) == (name == "resize pad")


def test_an_activation_with_weights_that_keras_never_built() -> None:
    x = keras.Input((6, 6, 3), name="x")
    with pytest.raises(InputError, match="'s', of class SeparableConv2D: its activation is a layer that Keras has not"):
        bridge(keras.Model(x, K.SeparableConv2D(3, 2, activation=K.PReLU(), name="s")(x), name="layered"))


def test_convnext_layers_are_recognizable() -> None:
    model = keras.applications.ConvNeXtTiny(weights=None, input_shape=(32, 32, 3), classes=3)
    block = keras.Model(model.inputs, model.get_layer("convnext_tiny_stage_0_block_1_identity").output, name="cut")
    twin = _agrees(block).model
    classes = {type(layer).__name__ for layer in twin.layers}
    assert {"LayerScale", "LayerNormalization", "Normalization"} <= classes
    assert "Keras3Layer" not in classes


def test_stochastic_depth_drops_whole_samples_in_training() -> None:
    x = keras.Input((4, 4, 2), name="x")
    depth_output = keras.src.applications.convnext.StochasticDepth(0.5, name="depth")(x)
    twin = _agrees(keras.Model(x, depth_output, name="stochastic")).model
    ones = np.ones((64, 4, 4, 2), "float32")
    outputs = np.asarray(twin(ones, training=True)).reshape(64, -1)
    assert set(np.unique(outputs)) == {0.0, 2.0}
    assert (outputs == outputs[:, :1]).all()
    assert isinstance(twin.get_layer("depth"), tf_keras.layers.Dropout)


def test_a_layer_that_cannot_run_is_an_input_error() -> None:
    x = keras.Input((4,), name="x")
    with pytest.raises(InputError, match="'t', of class Activation"):
        bridge(keras.Model(x, K.Activation("threshold", name="t")(x), name="bad"))
