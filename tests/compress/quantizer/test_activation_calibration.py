"""Activation ranges compared with independent computation, and the note on too few samples."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.quantizer.activation_calibration import (
    BIN_COUNT,
    MOMENTUM,
    calibrate,
    min_error_range,
    percentile_range,
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


def input_range(lite: Model, calibration: ActivationCalibration) -> tuple[float, float]:
    """The range of the input, whose values are X."""
    return calibrate(lite, X, calibration).by_tensor[lite.inputs[0].name]


def test_min_max(lite: Model) -> None:
    ranges = calibrate(lite, X, ActivationCalibration())
    assert ranges.by_tensor[lite.inputs[0].name] == pytest.approx((X.min(), X.max()))
    assert ranges.by_tensor[lite.outputs[0].name] == pytest.approx((0, X[:, :8].max()))


def test_moving_average(lite: Model) -> None:
    low, high = X[0].min(), X[0].max()
    for row in X[1:]:
        low = MOMENTUM * low + (1 - MOMENTUM) * row.min()
        high = MOMENTUM * high + (1 - MOMENTUM) * row.max()
    assert input_range(lite, ActivationCalibration("moving_average")) == pytest.approx((low, high), rel=1e-5)


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9])
def test_percentile(lite: Model, share: float) -> None:
    ends = ((100 - share) / 2, "lower"), ((100 + share) / 2, "higher")
    expected = [float(np.percentile(X, end, method=interpolation)) for end, interpolation in ends]  # type: ignore[call-overload]
    width = float(X.max() - X.min()) / BIN_COUNT
    assert input_range(lite, ActivationCalibration("percentile", share)) == pytest.approx(
        tuple(expected), abs=1.01 * width
    )


def int8_round_trip(array: Any, low: float, high: float) -> Any:
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale


def test_mse_is_no_worse_than_min_max_and_near_a_search_of_every_pair(lite: Model) -> None:
    low, high = input_range(lite, ActivationCalibration("mse"))
    mse_error = np.square(int8_round_trip(X, low, high) - X).mean()
    min_max_error = np.square(int8_round_trip(X, float(X.min()), float(X.max())) - X).mean()
    grid_errors = [
        np.square(int8_round_trip(X, a, b) - X).mean()
        for a in np.linspace(0.2, 1, 25) * X.min()
        for b in np.linspace(0.2, 1, 25) * X.max()
    ]
    assert mse_error < min_max_error
    assert mse_error < 1.1 * min(grid_errors)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(-10, 0), st.floats(0.1, 10))
@example(470, 0.0, 1.0)  # no value at all
def test_ranges_stay_within_what_was_seen(seed: int, low: float, high: float) -> None:
    random = np.random.RandomState(seed)
    histogram = random.poisson(10 ** random.uniform(-3, 3), BIN_COUNT)
    edges = np.linspace(low, high, BIN_COUNT + 1)
    for clipped_range in (percentile_range(histogram, edges, 99.9), min_error_range(histogram, edges)):
        assert low - 1e-6 <= clipped_range[0] <= clipped_range[1] <= high + 1e-6


def test_all_of_the_values_are_the_extremes() -> None:
    counts, edges = np.ones(BIN_COUNT, np.int64), np.linspace(-1, 1, BIN_COUNT + 1)
    assert percentile_range(counts, edges, 100.0) == (-1, 1)


def test_samples_that_still_move_a_range_are_reported(lite: Model) -> None:
    growing = X * np.linspace(0.1, 1, len(X), dtype="float32")[:, None] ** 3
    (note,) = calibrate(lite, growing, ActivationCalibration()).notes()
    assert "the second half of the 400 representative samples still moved 2 of 2 ranges by more than 5%" in note
    assert "give more samples (800, say; in a pipeline: `representative`)" in note
    converged = np.concatenate([X[:200], X[:200]])
    assert calibrate(lite, converged, ActivationCalibration()).notes() == []


def test_a_tensor_that_is_always_zero_is_reported_and_runs(tmp_path: Path) -> None:
    inputs = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(3, activation="relu", name="dead")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="out")(hidden))
    model.get_layer("dead").set_weights([np.zeros((4, 3), "f4"), np.full(3, -1, "f4")])
    model.get_layer("out").bias.assign([0.5, -0.5])
    path = tmp_path / "m.tflite"
    path.write_bytes(convert(model, "float32"))
    ranges = calibrate(read(path), X[:20, :4], ActivationCalibration())
    assert len(ranges.dead_tensor_names) == 1
    assert any("always zero on the 20 representative samples" in note for note in ranges.notes())
    assert all(high > low for low, high in ranges.by_tensor.values())


def test_a_sum_does_not_widen_the_range_of_its_operand(tmp_path: Path) -> None:
    """TensorFlow's own calibration does widen it: its interpreter computes the sum in place of its operand."""
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
    expected = np.asarray(keras.Model(inputs, third).predict(x, verbose=0))
    name = next(op.outputs[0].name for op in lite.operators if op.outputs[0] and "third" in op.outputs[0].name)
    ours = calibrate(lite, x, ActivationCalibration()).by_tensor[name]
    assert ours == pytest.approx((min(expected.min(), 0), max(expected.max(), 0)), rel=1e-5)
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
