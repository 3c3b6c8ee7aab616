"""Masks in quantization-aware training: explicit, causal and implicit ones are carried, and stretch no range."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgepipe.compress.keras_to_tflite import convert_keras
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import FakeQuantModel, QatRecipe, activation_quantize_layers, build_fake_quant
from edgepipe.compress.quantizer.activation_calibration import MASKED_MAGNITUDE
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.perturb import perturb
from edgepipe.tflite.integer_check import check_integer_only
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
STEPS, FEATURES, VOCABULARY = 8, 8, 20
CAUSAL_FILL = (np.triu(np.ones((STEPS, STEPS)), 1) * -1e9).tolist()


def _op(operator: str, tensors: Any, *constants: Any) -> Any:
    args = [*({"tensor": index} for index in range(len(tf.nest.flatten(tensors)))), *constants]
    return OperatorLayer(operator, json.dumps({"args": args, "kwargs": {}}))(tensors)


def _out(x: Any) -> Any:
    return K.Dense(3, name="out")(K.Flatten()(x))


def _features(build: Callable[[Any], Any]) -> Callable[[], Any]:
    def build_model() -> Any:
        x = tf_keras.Input((STEPS, FEATURES), name="x")
        return tf_keras.Model(x, _out(build(x)))

    return build_model


def _tokens(build: Callable[[Any], Any]) -> Callable[[], Any]:
    def build_model() -> Any:
        ids = tf_keras.Input((STEPS,), name="ids")
        return tf_keras.Model(ids, _out(build(K.Embedding(VOCABULARY, FEATURES, mask_zero=True)(ids))))

    return build_model


def _explicit(dtype: str, rank: int) -> Callable[[], Any]:
    def build_model() -> Any:
        x = tf_keras.Input((STEPS, FEATURES), name="x")
        mask = tf_keras.Input((2, STEPS, STEPS)[3 - rank :], dtype=dtype, name="mask")
        return tf_keras.Model([x, mask], _out(K.MultiHeadAttention(2, 4)(x, x, attention_mask=mask)))

    return build_model


def _softmax_with_a_mask() -> Any:
    x, mask = tf_keras.Input((STEPS, 6), name="x"), tf_keras.Input((STEPS, 6), dtype="bool", name="mask")
    return tf_keras.Model([x, mask], _out(K.Softmax()(K.Dense(6)(x), mask)))


def _scores(x: Any) -> Any:
    return K.Dense(STEPS, name="scores")(x)


def _attend(scores: Any, x: Any) -> Any:
    return _op("Matmul", [K.Softmax()(scores), x])


def _selected(x: Any) -> Any:
    mask = {"array": np.tri(STEPS, dtype=bool).tolist(), "dtype": "bool"}
    arguments = {"args": [mask, {"tensor": 0}, -1e9], "kwargs": {}}
    return _attend(OperatorLayer("Where", json.dumps(arguments))(_scores(x)), x)


def _added(x: Any) -> Any:
    return _attend(_op("Add", _scores(x), {"array": CAUSAL_FILL, "dtype": "float32"}), x)


def _average_by_hand(x: Any) -> Any:
    is_real = _op(
        "Cast",
        _op("NotEqual", _op("ExpandDims", _op("GetItem", x, {"tuple": [{"ellipsis": True}, 0]}), -1), 0.0),
        "float32",
    )
    total = _op("Sum", K.Multiply()([K.Dense(4)(x), is_real]), 1)
    return _op("Divide", [total, _op("Sum", is_real, 1)])


def _encoder(x: Any) -> Any:
    x = K.LayerNormalization()(K.Add()([x, K.MultiHeadAttention(2, 4)(x, x)]))
    return K.GlobalAveragePooling1D()(x)


def _nested(x: Any) -> Any:
    inner = tf_keras.Sequential([tf_keras.Input((STEPS, FEATURES)), K.Dense(4), K.GlobalAveragePooling1D()])
    return inner(x)


MODELS: dict[str, Callable[[], Any]] = {
    "causal": _features(lambda x: K.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)),
    "causal dot product": _features(lambda x: K.Attention()([x, x], use_causal_mask=True)),
    "bool mask": _explicit("bool", 2),
    "integer mask of heads": _explicit("int32", 3),
    "float mask": _explicit("float32", 2),
    "softmax with a mask": _softmax_with_a_mask,
    "selection": _features(_selected),
    "sum": _features(_added),
    "encoder of tokens": _tokens(_encoder),
    "causal, of tokens": _tokens(lambda x: K.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)),
    "additive, of tokens": _tokens(lambda x: K.AdditiveAttention()([K.Dense(FEATURES)(x), x])),
    "concatenated scores, of tokens": _tokens(lambda x: K.Attention(score_mode="concat")([x, x, K.Dense(8)(x)])),
    "two masks joined": _tokens(lambda x: K.GlobalAveragePooling1D()(K.Concatenate()([x, K.Dense(3)(x)]))),
    "sequences joined": _tokens(lambda x: K.GlobalAveragePooling1D()(K.Concatenate(axis=1)([x, K.Dropout(0.1)(x)]))),
    "average by hand": _features(lambda x: _average_by_hand(K.ReLU()(x))),
    "nested": _tokens(_nested),
    "Masking": _features(lambda x: _encoder(K.Masking(-2.0)(x))),
}


CONVERTED_MODELS = ("causal", "float mask", "selection", "Masking")


def _inputs(model: Any) -> Any:
    generator, inputs = np.random.default_rng(3), {}
    is_real = np.arange(STEPS) < generator.integers(2, STEPS + 1, (64, 1))
    for tensor in model.inputs:
        if tensor.name == "ids":
            inputs[tensor.name] = (generator.integers(1, VOCABULARY, is_real.shape) * is_real).astype("float32")
        elif tensor.name == "mask":
            inputs[tensor.name] = (generator.random((64, *tensor.shape[1:])) < 0.7).astype(tensor.dtype.name)
        else:
            array = generator.normal(0, 1, (64, *tensor.shape[1:])).astype("float32")
            inputs[tensor.name] = np.where(is_real[..., None], array, np.float32(-2))
    return inputs if len(inputs) > 1 else next(iter(inputs.values()))


def _build(build_model: Callable[[], Any], recipe: QatRecipe = QatRecipe()) -> tuple[FakeQuantModel, Any]:  # noqa: B008 - frozen
    set_seeds(1)
    base = build_model()
    perturb(base)
    x = _inputs(base)
    fake_quant = build_fake_quant(base, recipe, x)
    range_initialization.initialize_ranges(fake_quant.model, x, seed=0, use_batch_statistics=False)
    return fake_quant, x


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in CONVERTED_MODELS])
def test_masks_are_carried(name: str) -> None:
    _check_coverage(_build(MODELS[name])[0])


def _check_coverage(fake_quant: FakeQuantModel) -> None:
    assert fake_quant.difference is not None
    assert fake_quant.difference < 1e-5
    assert {entry.quantized_by for entry in fake_quant.layer_coverages} == {"training"}, fake_quant.layer_coverages
    assert _largest_range(fake_quant) < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTED_MODELS)
def test_masked_models_become_integer_models(name: str, tmp_path: Path) -> None:
    fake_quant, x = _build(MODELS[name])
    _check_coverage(fake_quant)
    (tmp_path / "m.tflite").write_bytes(convert_keras(fake_quant.model, QuantizationRequest(), x).content)
    assert check_integer_only(read(tmp_path / "m.tflite")) == []
    wanted, outputs = fake_quant.model.predict(x, verbose=0), predict(tmp_path / "m.tflite", x).real_values
    assert _decibels(wanted, outputs) > 20


def _largest_range(fake_quant: FakeQuantModel) -> float:
    limits = [layer.quantizer_vars for layer in activation_quantize_layers(fake_quant.model) if layer.quantizer_vars]
    return max(float(abs(variables[key])) for variables in limits for key in ("min_var", "max_var"))


def _decibels(wanted: Any, outputs: Any) -> float:
    return float(10 * np.log10(np.square(wanted - wanted.mean(0)).sum() / np.square(outputs - wanted).sum()))


@pytest.mark.slow
def test_a_mask_that_the_first_samples_do_not_show_stretches_no_range() -> None:
    fake_quant, x = _build(MODELS["bool mask"])
    everything = {**x, "mask": np.ones_like(x["mask"])}
    range_initialization.initialize_ranges(fake_quant.model, everything, seed=0, use_batch_statistics=False)
    fake_quant.model.compile("adam", "mse")
    loss = fake_quant.model.fit(x, np.ones((64, 3)), epochs=2, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert _largest_range(fake_quant) < 100


def test_a_large_number_that_is_no_fill_keeps_its_fake_quant() -> None:
    fake_quant, _ = _build(_features(lambda x: _op("Add", K.Dense(4)(x), 2 * MASKED_MAGNITUDE)))
    assert _largest_range(fake_quant) > MASKED_MAGNITUDE


@pytest.mark.slow
def test_a_variance_that_rounds_to_zero_does_not_end_training() -> None:
    fake_quant, x = _build(_features(K.LayerNormalization()))
    x = x * np.where(np.arange(STEPS) < 4, 1e-4, 1)[:, None].astype("float32")
    fake_quant.model.compile("adam", "mse")
    assert np.isfinite(fake_quant.model.fit(x, np.ones((64, 3)), epochs=2, verbose=0).history["loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("build_layer", [K.GRU, lambda units: K.Bidirectional(K.LSTM(units, return_sequences=True))])
def test_unrolled_layers_get_their_mask(build_layer: Callable[[int], Any]) -> None:
    fake_quant, _ = _build(_tokens(lambda embedded: build_layer(3)(embedded)))
    assert fake_quant.difference is not None
    assert fake_quant.difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer_class"),
    [("encoder of tokens", "Embedding"), ("encoder of tokens", "MultiHeadAttention"), ("Masking", "Masking")],
)
def test_excluded_layers_keep_their_masks(name: str, layer_class: str) -> None:
    fake_quant, _ = _build(MODELS[name], QatRecipe(excluded_types=(layer_class,)))
    assert fake_quant.difference is not None
    assert fake_quant.difference < 1e-5
    reasons = {entry.reason for entry in fake_quant.layer_coverages if entry.cls == layer_class}
    assert reasons == {"excluded by the pipeline"}


@tf_keras.utils.register_keras_serializable("test_qat_masks")
class Halved(K.Layer):  # type: ignore[misc]
    """A custom layer with a mask of its own."""

    def call(self, x: Any) -> Any:
        return x[:, ::2]

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        return mask[:, ::2]


def test_a_mask_that_cannot_be_carried_is_named() -> None:
    message = "'it', of class Halved, computes a mask of its own"
    with pytest.raises(InputError, match=message):
        _build(_tokens(lambda x: K.GlobalAveragePooling1D()(Halved(name="it")(x))))


@pytest.mark.slow
def test_a_trained_classifier_of_tokens_keeps_its_accuracy(tmp_path: Path) -> None:
    """Majority of three kinds of tokens in sequences of any length."""
    set_seeds(1)
    generator = np.random.default_rng(0)
    is_real = np.arange(STEPS) < generator.integers(1, STEPS + 1, (1200, 1))
    ids = generator.integers(1, VOCABULARY, is_real.shape) * is_real
    labels = np.stack([((ids % 3 == kind) & is_real).sum(axis=1) for kind in range(3)], axis=1).argmax(axis=1)
    base = _tokens(_encoder)()
    base.compile(tf_keras.optimizers.Adam(0.02), _classification_loss())
    base.fit(ids[:1000], labels[:1000], epochs=15, batch_size=100, verbose=0)
    model = build_fake_quant(base, QatRecipe(), ids[:32]).model
    range_initialization.initialize_ranges(model, ids[:1000], seed=0, use_batch_statistics=False)
    model.compile(tf_keras.optimizers.Adam(0.001), _classification_loss())
    model.fit(ids[:1000], labels[:1000], epochs=2, batch_size=100, verbose=0)
    (tmp_path / "m.tflite").write_bytes(convert_keras(model, QuantizationRequest(), ids[:200]).content)
    wanted, outputs = model.predict(ids[1000:], verbose=0), predict(tmp_path / "m.tflite", ids[1000:]).real_values
    float_accuracy = (base.predict(ids[1000:], verbose=0).argmax(axis=1) == labels[1000:]).mean()
    assert float_accuracy > 0.9
    assert (outputs.argmax(axis=1) == labels[1000:]).mean() >= float_accuracy - 0.02
    assert _decibels(wanted, outputs) > 20


def _classification_loss() -> Any:
    return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
