"""The ranking of layers against brute force by another quantizer, and each error against NumPy."""

from pathlib import Path
from typing import Any

import hard_models as hm
import keras
import numpy as np
import pytest
import tensorflow as tf
from benches import bench
from scipy.stats import spearmanr
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

from edgepipe.compress.quantizer import tensorflow_quantizer
from edgepipe.compress.quantizer.layer_sensitivity import fake_quantize, rank_layers, rounding_error
from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
from edgepipe.tflite.interpreter import Runtime, predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


def test_layers_are_those_of_the_keras_model(folder: Path) -> None:
    names = [layer.name for layer in bench("soft", folder).layers]
    assert names == ["c0", "d1", "p1", "d2", "p2", "d3", "p3", "scores"]
    assert [layer.name for layer in bench("residual", folder).layers] == ["a", "b", "sum", "c", "out"]


def _by_tensorflow(made: LayerwiseQuantizer, samples: Any, left: list[str]) -> bytes:
    """The model by TensorFlow's quantizer alone, the operators that make `left` in float."""
    known = Calibrator(add_intermediate_tensors(made.scores_model)).calibrate(
        lambda: tensorflow_quantizer._iterate_samples(samples)
    )
    ranged = tensorflow_quantizer._override_ranges(known, made.ranges)
    types = {"input_data_type": tf.float32, "output_data_type": tf.float32}
    return bytes(mlir_quantize(ranged, denylisted_nodes=left, **types))


def brute_force(made: LayerwiseQuantizer, x: Any, wanted: Any, layer: Any) -> float:
    """Squared error of the scores, TensorFlow's quantizer, reference kernels, this layer alone."""
    others = [
        t.name for op in made.float_model.operators if op not in layer.operators for t in op.outputs if t is not None
    ]
    path = made.float_model.path.with_name("alone.tflite")
    calibrating = [hm.data()[0][:200]]
    path.write_bytes(_by_tensorflow(made, calibrating, others))
    return float(np.square(np.asarray(predict(path, x, Runtime.REFERENCE).real_values) - wanted).sum(axis=1).mean())


def _logits(model: Any, x: Any) -> Any:
    """The scores of a dense layer whose softmax is its own activation."""
    last = model.layers[-1]
    before = keras.Model(model.input, last.input).predict(x, verbose=0)
    return before @ last.kernel.numpy() + last.bias.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["hard", "soft", "residual"])
def test_the_ranking_agrees_with_brute_force(which: str, folder: Path) -> None:
    """Another quantizer, other kernels, Keras for the float model: rank correlation of at least 0.9."""
    made = bench(which, folder)
    x = hm.data()[2]
    scores = keras.Model(getattr(hm, which)().input, getattr(hm, which)().layers[-1].input)
    wanted = scores.predict(x, verbose=0) if which != "residual" else _logits(getattr(hm, which)(), x)
    forced = {layer.name: brute_force(made, x, wanted, layer) for layer in made.layers}
    found = {entry.layer: entry.alone for entry in rank_layers(made).layers}
    agreed = spearmanr([found[name] for name in forced], list(forced.values())).statistic
    assert agreed >= 0.9, (found, forced)


@pytest.mark.slow
def test_the_ranking_holds_for_accuracy_on_other_samples(folder: Path) -> None:
    """Where quantization costs labels: layers by the accuracy that each alone leaves, on samples never looked at."""
    made, (x, y, _, _) = bench("hard", folder), hm.data()
    found = {entry.layer: entry.alone for entry in rank_layers(made).layers}
    left = []
    for name in found:
        path = folder / "alone.tflite"
        path.write_bytes(made.quantize({name: "int8"}, "float32"))
        left.append(hm.accuracy(predict(path, x[200:]).real_values, y[200:]))
    assert spearmanr(list(found.values()), left).statistic <= -0.9


def test_quality_is_that_of_real_models(folder: Path) -> None:
    made, (_, _, x, y) = bench("hard", folder), hm.data()

    def quality(content: bytes) -> float:
        path = folder / "quality.tflite"
        path.write_bytes(content)
        return hm.accuracy(predict(path, x).real_values, y)

    found = rank_layers(made, "int8", quality)
    assert found.quality_float is not None
    assert found.quality_whole is not None
    assert found.quality_float == quality(made.float_model.content)
    assert found.quality_float - found.quality_whole > 0.1  # int8 loses more than ten points
    worst = found.layers[0]
    assert found.quality_whole < (worst.quality_alone or 0) < found.quality_float
    assert {found.layers[0].layer, found.layers[1].layer} in ({"p1", "d2"}, {"c0", "d1"}, {"p2", "d3"})


def test_errors_are_those_of_numpy(folder: Path) -> None:
    made = bench("soft", folder)
    found = {entry.layer: entry for entry in rank_layers(made).layers}
    kernel = hm.soft().get_layer("scores").kernel.numpy()
    by_channel = np.rint(kernel / (np.abs(kernel).max(axis=0) / 127)) * (np.abs(kernel).max(axis=0) / 127)
    noise = np.square(by_channel - kernel)
    weights = found["scores"].weights
    assert weights is not None
    assert weights.mse == pytest.approx(noise.mean(), rel=1e-4)
    assert weights.snr == pytest.approx(10 * np.log10(np.square(kernel).sum() / noise.sum()), abs=1e-3)
    worst = (10 * np.log10(np.square(kernel).sum(axis=0) / noise.sum(axis=0))).min()
    assert weights.worst_channel == pytest.approx(worst, abs=1e-3)
    flat = kernel.ravel() @ by_channel.ravel() / np.linalg.norm(kernel) / np.linalg.norm(by_channel)
    assert weights.cosine == pytest.approx(flat, abs=1e-6)


def test_per_tensor_is_worse_than_per_channel(folder: Path) -> None:
    for entry in rank_layers(bench("hard", folder)).layers:
        assert entry.weights is not None
        assert entry.weights_per_tensor is not None
        assert entry.weights_per_tensor.snr <= entry.weights.snr + 1e-9


def test_sixteen_bits_mind_less(folder: Path) -> None:
    made = bench("hard", folder)
    eight, sixteen = rank_layers(made), rank_layers(made, "int16")
    assert sixteen.whole < 0.01 * eight.whole
    assert {e.layer: e for e in sixteen.layers}["d2"].alone < 0.01 * {e.layer: e for e in eight.layers}["d2"].alone


def test_a_tensor_without_error_and_one_that_is_zero() -> None:
    values = np.array([[1.0, 0.0], [2.0, 0.0]])
    same = rounding_error(values, values, axis=1)
    assert (same.mse, same.snr, same.worst_channel) == (0, 200, 200)
    assert same.cosine == pytest.approx(1)
    assert rounding_error(values * 0, values * 0, axis=1).cosine == 1


def test_rounding_has_the_steps_of_the_range() -> None:
    values = np.linspace(-1, 3, 1001)
    for level, steps in (("int8", 256), ("int16", 65536)):
        found = fake_quantize(values, (-1.0, 3.0), level)  # type: ignore[arg-type]
        reach = 4 / 255 if level == "int8" else 3 / 32767
        assert np.abs(found - values).max() <= 0.51 * reach
        assert len(np.unique(found)) <= steps
