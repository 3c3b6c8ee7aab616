"""Mean and deviation of the data that a model was trained on, from its first batch normalization.

Directly behind the input it has kept both. Behind a linear first layer with kernel w it has kept those of w * x: the
means solve mean_k = sum_c m_c W_ck with W_ck the sum of the kernel over its window. The variance of a window lies
between that of equal values, (sum W)^2 var, and of independent ones, sum(w^2) var: both shares are fitted.
"""

from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.models.leading_operators import LeadingOperators, PlacedLayer
from edgepipe.tflite.input_expectation import InputExpectation

_LINEAR_CLASSES = {"Conv1D", "Conv2D"}
_MIN_EXPLAINED = 0.8  # share of the means' variance that the fit must explain to count
_MIN_OUTPUTS = 8


def estimate_training_statistics(path: Path, operators: LeadingOperators) -> InputExpectation | None:
    """What the first batch normalization of one input tells; None if there is none, or it tells too little."""
    if len(operators.next_layers) != 1:
        return None
    first = operators.next_layers[0]
    if first.layer.class_name == "BatchNormalization":
        statistics = _read_statistics(path, first)
        origin = f"begins with BatchNormalization '{first.layer.name}'"
    else:
        statistics = _solve_statistics(path, first)
        origin = f"has a first layer '{first.layer.name}' with batch normalization"
    if statistics is None or not all(np.isfinite(part).all() for part in statistics) or not np.all(statistics[1] > 0):
        return None
    mean, deviation = statistics
    return InputExpectation(operators.input_name, origin, mean, deviation, is_statistics=True)


def _read_statistics(path: Path, placed: PlacedLayer) -> tuple[Array, Array] | None:
    """The moving mean and deviation of a batch normalization; None if they are as they were initialized."""
    config = placed.layer.config
    weights = placed.read_weights(path)
    trained_count = int(config.get("scale", True)) + int(config.get("center", True))
    if len(weights) != trained_count + 2:
        return None
    mean, variance = weights[trained_count].astype(np.float64), weights[trained_count + 1].astype(np.float64)
    is_initial = not mean.any() and np.all(variance == 1)
    return None if is_initial else (mean, np.sqrt(np.maximum(variance, 0)))


def _solve_statistics(path: Path, placed: PlacedLayer) -> tuple[Array, Array] | None:
    """Mean for each input channel and one deviation, from the statistics behind a linear first layer."""
    config = placed.layer.config
    readers = placed.readers
    is_linear = placed.layer.class_name in _LINEAR_CLASSES and config.get("activation", "linear") == "linear"
    if not is_linear or len(readers) != 1 or readers[0].layer.class_name != "BatchNormalization":
        return None
    statistics, weights = _read_statistics(path, readers[0]), placed.read_weights(path)
    if statistics is None or not weights or weights[0].shape[-1] != len(statistics[0]) or config.get("groups", 1) != 1:
        return None
    kernel = weights[0].astype(np.float64).reshape(-1, *weights[0].shape[-2:])  # (window, channels in, outputs)
    bias = weights[1].astype(np.float64) if len(weights) > 1 else np.zeros(kernel.shape[-1])
    return _solve(kernel, statistics[0] - bias, statistics[1] ** 2)


def _solve(kernel: Array, means: Array, variances: Array) -> tuple[Array, Array] | None:
    from scipy.optimize import nnls

    if kernel.shape[-1] < max(_MIN_OUTPUTS, 2 * kernel.shape[1]):
        return None
    window_sums = kernel.sum(axis=0).T  # (outputs, channels in)
    input_means, *_ = np.linalg.lstsq(window_sums, means, rcond=None)
    residual = means - window_sums @ input_means
    if np.sum(np.square(residual)) > (1 - _MIN_EXPLAINED) * np.sum(np.square(means)):
        return None
    shares = np.stack([np.square(window_sums.sum(axis=1)), np.square(kernel).sum(axis=(0, 1))], axis=1)
    (equal_variance, independent_variance), _ = nnls(shares, variances)
    deviation = np.sqrt(equal_variance + independent_variance)
    return input_means, np.full(1, deviation)
