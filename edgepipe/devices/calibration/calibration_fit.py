"""Fits the seconds of each term to measured models, and cross-validates the fit.

Non-negative least squares on relative errors: each row is divided by its measured time, and outliers are weighted down
(Huber weights), so that neither large models nor disturbed measurements dominate the fit. Composites weigh more than
single operators, because they resemble real networks.
"""

import math
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.calibration.calibration_record import PredictionErrors
from edgepipe.devices.calibration.cost_terms import OperatorCost, sum_terms

COMPOSITE_WEIGHT = 2.0
TIME_FLOOR = 1e-6  # seconds: errors are absolute below it, because of clock resolution and call overhead
REWEIGHTING_ROUNDS = 12
HUBER_THRESHOLD = 1.5  # medians of the absolute error
MIN_ERROR_SCALE = 0.01  # relative errors below it count as none
FOLDS = 5
COVERAGE = 0.90


@dataclass(frozen=True)
class FitSample:
    """One measured model of the suite."""

    name: str
    group: str
    composite: bool
    costs: tuple[OperatorCost, ...]
    seconds: float


@dataclass(frozen=True)
class FittedTerms:
    """The seconds per unit of each term, in the order of `term_names`."""

    term_names: tuple[str, ...]
    seconds: Array

    def predict(self, rows: Array) -> Array:
        """Seconds of each row of a design matrix (models, terms)."""
        return np.asarray(rows @ self.seconds)


@dataclass(frozen=True)
class HeldOutTimes:
    """Predictions, in seconds, for samples held out of the fit."""

    within_groups: Array  # 5-fold, at random
    across_groups: Array  # leave one group out


def design_matrix(samples: list[FitSample], term_names: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Array]:
    """The term names and the matrix (samples, terms); without `term_names`, all that occur, sorted."""
    totals = [sum_terms(list(sample.costs)) for sample in samples]
    term_names = term_names or tuple(sorted({name for terms in totals for name in terms}))
    return term_names, np.array([[terms.get(name, 0.0) for name in term_names] for terms in totals])


def fit(samples: list[FitSample]) -> FittedTerms:
    """Fit all of `samples`."""
    term_names, rows = design_matrix(samples)
    return FittedTerms(term_names, _solve(rows, _times(samples), _weights(samples)))


def predict_held_out(samples: list[FitSample], seed: int) -> HeldOutTimes:
    """Predict each sample by a fit without it: 5-fold at random, and leaving its group out."""
    _, rows = design_matrix(samples)
    folds = np.random.default_rng(seed).permutation(len(samples)) % FOLDS
    groups = np.array([sample.group for sample in samples])
    return HeldOutTimes(_predict_without(samples, rows, folds), _predict_without(samples, rows, groups))


def _predict_without(samples: list[FitSample], rows: Array, labels: Array) -> Array:
    times, weights, predicted_times = _times(samples), _weights(samples), np.zeros(len(samples))
    for label in np.unique(labels):
        is_held_out = labels == label
        predicted_times[is_held_out] = rows[is_held_out] @ _solve(
            rows[~is_held_out], times[~is_held_out], weights[~is_held_out]
        )
    return predicted_times


def _times(samples: list[FitSample]) -> Array:
    return np.array([sample.seconds for sample in samples])


def _weights(samples: list[FitSample]) -> Array:
    return np.array([COMPOSITE_WEIGHT if sample.composite else 1.0 for sample in samples])


def _solve(rows: Array, times: Array, weights: Array) -> Array:
    """Iteratively reweighted non-negative least squares on relative errors."""
    from scipy.optimize import nnls

    base_weights = weights / (times + TIME_FLOOR)
    row_weights = base_weights
    seconds = np.zeros(rows.shape[1])
    for _ in range(REWEIGHTING_ROUNDS):
        weighted_rows = rows * row_weights[:, None]
        column_norms = np.linalg.norm(weighted_rows, axis=0)
        column_norms[column_norms == 0] = 1.0
        scaled_seconds, _residual = nnls(weighted_rows / column_norms, times * row_weights, maxiter=100 * rows.shape[1])
        seconds = scaled_seconds / column_norms
        relative_errors = np.abs(rows @ seconds - times) / (times + TIME_FLOOR)
        scale = max(HUBER_THRESHOLD * float(np.median(relative_errors)), MIN_ERROR_SCALE)
        row_weights = base_weights / np.sqrt(np.maximum(1.0, relative_errors / scale))
    return seconds


def summarize_errors(predicted_times: Array, measured_times: Array) -> PredictionErrors:
    """Median, 90th percentile and worst of |predicted / measured - 1|."""
    relative_errors = np.abs(predicted_times / measured_times - 1)
    median, p90, worst = (
        _round_digits(quantile) for quantile in np.quantile(relative_errors, (0.5, 0.9, 1.0)).tolist()
    )
    return PredictionErrors(models=len(relative_errors), median=median, p90=p90, worst=worst)


def conformal_interval(
    predicted_times: Array, measured_times: Array, coverage: float = COVERAGE
) -> tuple[float, float]:
    """Bounds that contain measured / predicted of a new model at rate `coverage`: conformal quantiles of both tails.

    Source: split conformal prediction, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
    """
    ratios = np.sort(measured_times / predicted_times)
    tail_share = (1 - coverage) / 2
    low_index = max(math.floor(tail_share * (len(ratios) + 1)) - 1, 0)
    high_index = min(math.ceil((1 - tail_share) * (len(ratios) + 1)) - 1, len(ratios) - 1)
    return _round_digits(float(ratios[low_index])), _round_digits(float(ratios[high_index]))


def _round_digits(number: float) -> float:
    """Four significant digits, for readable profiles."""
    return float(f"{number:.4g}")
