"""Ranges of activations against independent computation, and what is told of too few samples."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer.activation_calibration import (
    BINS,
    MOMENTUM,
    _min_error_range,
    _percentile_range,
    calibrate,
)
from edgepipe.compress.schemes import ActivationCalibration
from edgepipe.core.errors import InputError
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

RANDOM = np.random.RandomState(3)
X = RANDOM.standard_t(3, (400, 16)).astype("float32")  # with outliers


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One dense layer with ReLU: its output is known."""
    inputs = keras.Input((16,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(8, activation="relu", name="d")(inputs))
    model.get_layer("d").set_weights([np.eye(16, 8, dtype="float32"), np.zeros(8, "float32")])
    path = tmp_path_factory.mktemp("calibration") / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    return read(path)


def span(lite: Model, how: ActivationCalibration) -> tuple[float, float]:
    """Of the input, whose values are X."""
    return calibrate(lite, X, how).by_tensor[lite.inputs[0].name]


def test_min_max(lite: Model) -> None:
    found = calibrate(lite, X, ActivationCalibration())
    assert found.by_tensor[lite.inputs[0].name] == pytest.approx((X.min(), X.max()))
    assert found.by_tensor[lite.outputs[0].name] == pytest.approx((0, X[:, :8].max()))


def test_moving_average(lite: Model) -> None:
    low, high = X[0].min(), X[0].max()
    for row in X[1:]:
        low = MOMENTUM * low + (1 - MOMENTUM) * row.min()
        high = MOMENTUM * high + (1 - MOMENTUM) * row.max()
    assert span(lite, ActivationCalibration("moving_average")) == pytest.approx((low, high), rel=1e-5)


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9])
def test_percentile(lite: Model, share: float) -> None:
    ends = ((100 - share) / 2, "lower"), ((100 + share) / 2, "higher")
    wanted = [float(np.percentile(X, end, method=way)) for end, way in ends]  # type: ignore[call-overload]
    width = float(X.max() - X.min()) / BINS
    assert span(lite, ActivationCalibration("percentile", share)) == pytest.approx(tuple(wanted), abs=1.01 * width)


def stored(values: Any, low: float, high: float) -> Any:
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


def test_mse_is_no_worse_than_min_max_and_near_a_search_of_every_pair(lite: Model) -> None:
    low, high = span(lite, ActivationCalibration("mse"))
    found = np.square(stored(X, low, high) - X).mean()
    plain = np.square(stored(X, float(X.min()), float(X.max())) - X).mean()
    grid = [
        np.square(stored(X, a, b) - X).mean()
        for a in np.linspace(0.2, 1, 25) * X.min()
        for b in np.linspace(0.2, 1, 25) * X.max()
    ]
    assert found < plain
    assert found < 1.1 * min(grid)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(-10, 0), st.floats(0.1, 10))
@example(470, 0.0, 1.0)  # no value at all
def test_ranges_stay_within_what_was_seen(seed: int, low: float, high: float) -> None:
    random = np.random.RandomState(seed)
    histogram = random.poisson(10 ** random.uniform(-3, 3), BINS)
    edges = np.linspace(low, high, BINS + 1)
    for found in (_percentile_range(histogram, edges, 99.9), _min_error_range(histogram, edges)):
        assert low - 1e-6 <= found[0] <= found[1] <= high + 1e-6


def test_all_of_the_values_are_the_extremes() -> None:
    counts, edges = np.ones(BINS, np.int64), np.linspace(-1, 1, BINS + 1)
    assert _percentile_range(counts, edges, 100.0) == (-1, 1)


def test_samples_that_still_move_a_range_are_told(lite: Model) -> None:
    growing = X * np.linspace(0.1, 1, len(X), dtype="float32")[:, None] ** 3
    (note,) = calibrate(lite, growing, ActivationCalibration()).notes()
    assert "the second half of the 400 representative samples still moved 2 of 2 ranges by more than 5%" in note
    assert "give more samples (800, say; in a pipeline: `representative`)" in note
    settled = np.concatenate([X[:200], X[:200]])
    assert calibrate(lite, settled, ActivationCalibration()).notes() == []


def test_what_is_always_zero_is_told_and_runs(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(3, activation="relu", name="dead")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(hidden))
    model.get_layer("dead").set_weights([np.zeros((4, 3), "f4"), np.full(3, -1, "f4")])
    model.get_layer("out").bias.assign([0.5, -0.5])
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    found = calibrate(read(path), X[:20, :4], ActivationCalibration())
    assert len(found.dead_tensors) == 1
    assert any("always zero on the 20 representative samples" in note for note in found.notes())
    assert all(high > low for low, high in found.by_tensor.values())


def test_a_sum_does_not_widen_the_range_of_its_operand(tmp_path: Path) -> None:
    """As TensorFlow's own calibration does, whose interpreter computes a sum in place of what it adds to."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray
    from tensorflow.lite.python.optimize.calibrator import Calibrator

    inputs = keras.Input((4, 4, 2), name="x")
    first = keras.layers.Conv2D(2, 1, name="first")(inputs)
    second = keras.layers.Conv2D(2, 1, name="second")(first)
    third = keras.layers.Conv2D(2, 1, name="third")(second)
    model = keras.Model(inputs, keras.layers.ReLU()(keras.layers.Add(name="sum")([third, second])))
    x = RANDOM.normal(size=(20, 4, 4, 2)).astype("float32")
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    lite = read(path)
    wanted = np.asarray(keras.Model(inputs, third).predict(x, verbose=0))
    name = next(op.outputs[0].name for op in lite.operators if op.outputs[0] and "third" in op.outputs[0].name)
    ours = calibrate(lite, x, ActivationCalibration()).by_tensor[name]
    assert ours == pytest.approx((min(wanted.min(), 0), max(wanted.max(), 0)), rel=1e-5)
    stock = Calibrator(lite.content).calibrate(lambda: ([x[i : i + 1]] for i in range(len(x))))
    theirs = next(
        t for t in read_model_from_bytearray(bytearray(stock)).subgraphs[0].tensors if t.name.decode() == name
    )
    assert theirs.quantization.max[0] >= ours[1] - 1e-5  # wider or the same, depending on what runs in place


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(keras.Model(inputs, keras.layers.Multiply(name="square")([inputs, inputs])), "float32"))
    x = np.ones((3, 4), "float32")
    x[1] = 1e30
    with pytest.raises(InputError, match=r"'.*' is not finite on the representative samples, and 0 more"):
        calibrate(read(path), x, ActivationCalibration())
