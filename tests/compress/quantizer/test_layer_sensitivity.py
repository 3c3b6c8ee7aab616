"""The ranking of layers compared with brute force by another quantizer, and each error with NumPy."""

from pathlib import Path
from typing import Any

import hard_models as hm
import keras
import numpy as np
import pytest
import tensorflow as tf
from quantizer_cases import trained_quantizer
from reference_quantizers import calibrate_with_tensorflow, override_ranges
from scipy.stats import spearmanr
from tensorflow.lite.python.convert import mlir_quantize

from edgepipe.compress.quantizer.layer_sensitivity import fake_quantize, rank_layers, rounding_error
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
from edgepipe.tflite.interpreter import Runtime, predict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


def test_layers_are_those_of_the_keras_model(folder: Path) -> None:
    names = [layer.name for layer in trained_quantizer("soft", folder).layers]
    assert names == ["c0", "d1", "p1", "d2", "p2", "d3", "p3", "scores"]
    assert [layer.name for layer in trained_quantizer("residual", folder).layers] == ["a", "b", "sum", "c", "out"]


def _by_tensorflow(quantizer: LayerwiseQuantizer, samples: Any, float_names: list[str]) -> bytes:
    """The model by TensorFlow's quantizer alone, with the operators that output `float_names` in float."""
    calibrated_content = calibrate_with_tensorflow(quantizer.scores_model_content, samples)
    ranged_content = override_ranges(calibrated_content, quantizer.range_by_tensor)
    io_types = {"input_data_type": tf.float32, "output_data_type": tf.float32}
    return bytes(mlir_quantize(ranged_content, denylisted_nodes=float_names, **io_types))


def brute_force(quantizer: LayerwiseQuantizer, x: Any, expected: Any, layer: Any) -> float:
    """Squared error of the scores, TensorFlow's quantizer, reference kernels, this layer alone."""
    other_names = [
        t.name
        for op in quantizer.float_model.operators
        if op not in layer.operators
        for t in op.outputs
        if t is not None
    ]
    path = quantizer.float_model.path.with_name("alone.tflite")
    calibrating = [hm.data()[0][:200]]
    path.write_bytes(_by_tensorflow(quantizer, calibrating, other_names))
    return float(np.square(np.asarray(predict(path, x, Runtime.REFERENCE).real_values) - expected).sum(axis=1).mean())


def _logits(model: Any, x: Any) -> Any:
    """The scores of a dense layer whose softmax is its own activation."""
    last_layer = model.layers[-1]
    features = keras.Model(model.input, last_layer.input).predict(x, verbose=0)
    return features @ last_layer.kernel.numpy() + last_layer.bias.numpy()


@pytest.mark.parametrize("network", ["hard", "soft", "residual"])
def test_the_ranking_agrees_with_brute_force(network: str, folder: Path) -> None:
    """Another quantizer, other kernels, Keras for the float model: rank correlation of at least 0.9."""
    quantizer = trained_quantizer(network, folder)
    x = hm.data()[2]
    scores = keras.Model(getattr(hm, network)().input, getattr(hm, network)().layers[-1].input)
    expected = scores.predict(x, verbose=0) if network != "residual" else _logits(getattr(hm, network)(), x)
    brute_force_errors = {layer.name: brute_force(quantizer, x, expected, layer) for layer in quantizer.layers}
    errors = {entry.layer: entry.alone for entry in rank_layers(quantizer).layers}
    correlation = spearmanr([errors[name] for name in brute_force_errors], list(brute_force_errors.values())).statistic
    assert correlation >= 0.9, (errors, brute_force_errors)


def test_the_ranking_holds_for_accuracy_on_other_samples(folder: Path) -> None:
    """Where int8 costs accuracy: layers ranked by accuracy with only that layer in int8, on held-out samples."""
    quantizer, (x, y, _, _) = trained_quantizer("hard", folder), hm.data()
    errors = {entry.layer: entry.alone for entry in rank_layers(quantizer).layers}
    accuracies = []
    for layer in errors:
        path = folder / "alone.tflite"
        path.write_bytes(quantizer.quantize({layer: "int8"}, "float32"))
        accuracies.append(hm.accuracy(predict(path, x[200:]).real_values, y[200:]))
    assert spearmanr(list(errors.values()), accuracies).statistic <= -0.9


def test_quality_is_that_of_real_models(folder: Path) -> None:
    quantizer, (_, _, x, y) = trained_quantizer("hard", folder), hm.data()

    def quality(content: bytes) -> float:
        path = folder / "quality.tflite"
        path.write_bytes(content)
        return hm.accuracy(predict(path, x).real_values, y)

    ranking = rank_layers(quantizer, "int8", quality)
    assert ranking.quality_float is not None
    assert ranking.quality_whole is not None
    assert ranking.quality_float == quality(quantizer.float_model.content)
    assert ranking.quality_float - ranking.quality_whole > 0.1  # int8 loses more than ten points
    worst = ranking.layers[0]
    assert ranking.quality_whole < (worst.quality_alone or 0) < ranking.quality_float
    assert {ranking.layers[0].layer, ranking.layers[1].layer} in ({"p1", "d2"}, {"c0", "d1"}, {"p2", "d3"})


def test_errors_are_those_of_numpy(folder: Path) -> None:
    quantizer = trained_quantizer("soft", folder)
    sensitivities = {entry.layer: entry for entry in rank_layers(quantizer).layers}
    kernel = hm.soft().get_layer("scores").kernel.numpy()
    by_channel = np.rint(kernel / (np.abs(kernel).max(axis=0) / 127)) * (np.abs(kernel).max(axis=0) / 127)
    noise = np.square(by_channel - kernel)
    weights = sensitivities["scores"].weights
    assert weights is not None
    assert weights.mse == pytest.approx(noise.mean(), rel=1e-4)
    assert weights.snr == pytest.approx(10 * np.log10(np.square(kernel).sum() / noise.sum()), abs=1e-3)
    worst = (10 * np.log10(np.square(kernel).sum(axis=0) / noise.sum(axis=0))).min()
    assert weights.worst_channel == pytest.approx(worst, abs=1e-3)
    flat = kernel.ravel() @ by_channel.ravel() / np.linalg.norm(kernel) / np.linalg.norm(by_channel)
    assert weights.cosine == pytest.approx(flat, abs=1e-6)


def test_per_tensor_is_worse_than_per_channel(folder: Path) -> None:
    for entry in rank_layers(trained_quantizer("hard", folder)).layers:
        assert entry.weights is not None
        assert entry.weights_per_tensor is not None
        assert entry.weights_per_tensor.snr <= entry.weights.snr + 1e-9


def test_int16_is_less_sensitive(folder: Path) -> None:
    quantizer = trained_quantizer("hard", folder)
    eight, sixteen = rank_layers(quantizer), rank_layers(quantizer, "int16")
    assert sixteen.whole < 0.01 * eight.whole
    assert {e.layer: e for e in sixteen.layers}["d2"].alone < 0.01 * {e.layer: e for e in eight.layers}["d2"].alone


def test_a_tensor_without_error_and_one_that_is_zero() -> None:
    array = np.array([[1.0, 0.0], [2.0, 0.0]])
    same = rounding_error(array, array, axis=1)
    assert (same.mse, same.snr, same.worst_channel) == (0, 200, 200)
    assert same.cosine == pytest.approx(1)
    assert rounding_error(array * 0, array * 0, axis=1).cosine == 1


def test_rounding_has_the_steps_of_the_range() -> None:
    array = np.linspace(-1, 3, 1001)
    for level, steps in (("int8", 256), ("int16", 65536)):
        rounded = fake_quantize(array, (-1.0, 3.0), level)  # type: ignore[arg-type]
        step = 4 / 255 if level == "int8" else 3 / 32767
        assert np.abs(rounded - array).max() <= 0.51 * step
        assert len(np.unique(rounded)) <= steps
