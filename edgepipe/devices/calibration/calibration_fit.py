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
FOLD_COUNT = 5
INTERVAL_COVERAGE = 0.90


@dataclass(frozen=True)
class FitSample:
    """One measured model of the suite."""

    name: str
    group: str
    is_composite: bool
    operator_costs: tuple[OperatorCost, ...]
    seconds: float


@dataclass(frozen=True)
class FittedTerms:
    """The seconds per unit of each term, in the order of `term_names`."""

    term_names: tuple[str, ...]
    seconds_per_unit: Array

    def predict(self, term_amounts: Array) -> Array:
        """Seconds of each row of a design matrix (models, terms)."""
        return np.asarray(term_amounts @ self.seconds_per_unit)


@dataclass(frozen=True)
class HeldOutTimes:
    """Predictions, in seconds, for samples held out of the fit."""

    random_fold_times: Array  # 5-fold, at random
    unseen_group_times: Array  # leave one group out


def design_matrix(samples: list[FitSample], term_names: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Array]:
    """The term names and the matrix (samples, terms); without `term_names`, all that occur, sorted."""
    sample_terms = [sum_terms(list(sample.operator_costs)) for sample in samples]
    term_names = term_names or tuple(sorted({name for terms in sample_terms for name in terms}))
    return term_names, np.array([[terms.get(name, 0.0) for name in term_names] for terms in sample_terms])


def fit(samples: list[FitSample]) -> FittedTerms:
    """Fit all of `samples`."""
    term_names, term_amounts = design_matrix(samples)
    return FittedTerms(
        term_names, _fit_seconds_per_unit(term_amounts, _measured_times(samples), _sample_weights(samples))
    )


def predict_held_out(samples: list[FitSample], seed: int) -> HeldOutTimes:
    """Predict each sample by a fit without it: 5-fold at random, and leaving its group out."""
    _, term_amounts = design_matrix(samples)
    fold_indices = np.random.default_rng(seed).permutation(len(samples)) % FOLD_COUNT
    group_names = np.array([sample.group for sample in samples])
    return HeldOutTimes(
        _predict_without(samples, term_amounts, fold_indices), _predict_without(samples, term_amounts, group_names)
    )


def _predict_without(samples: list[FitSample], term_amounts: Array, fold_labels: Array) -> Array:
    measured_times, sample_weights, predicted_times = (
        _measured_times(samples),
        _sample_weights(samples),
        np.zeros(len(samples)),
    )
    for held_out_label in np.unique(fold_labels):
        held_out_mask = fold_labels == held_out_label
        predicted_times[held_out_mask] = term_amounts[held_out_mask] @ _fit_seconds_per_unit(
            term_amounts[~held_out_mask], measured_times[~held_out_mask], sample_weights[~held_out_mask]
        )
    return predicted_times


def _measured_times(samples: list[FitSample]) -> Array:
    return np.array([sample.seconds for sample in samples])


def _sample_weights(samples: list[FitSample]) -> Array:
    return np.array([COMPOSITE_WEIGHT if sample.is_composite else 1.0 for sample in samples])


def _fit_seconds_per_unit(term_amounts: Array, measured_times: Array, sample_weights: Array) -> Array:
    """Iteratively reweighted non-negative least squares on relative errors."""
    from scipy.optimize import nnls

    base_weights = sample_weights / (measured_times + TIME_FLOOR)
    row_weights = base_weights
    seconds_per_unit = np.zeros(term_amounts.shape[1])
    for _ in range(REWEIGHTING_ROUNDS):
        weighted_rows = term_amounts * row_weights[:, None]
        column_norms = np.linalg.norm(weighted_rows, axis=0)
        column_norms[column_norms == 0] = 1.0
        scaled_seconds, _residual = nnls(
            weighted_rows / column_norms, measured_times * row_weights, maxiter=100 * term_amounts.shape[1]
        )
        seconds_per_unit = scaled_seconds / column_norms
        relative_errors = np.abs(term_amounts @ seconds_per_unit - measured_times) / (measured_times + TIME_FLOOR)
        error_scale = max(HUBER_THRESHOLD * float(np.median(relative_errors)), MIN_ERROR_SCALE)
        row_weights = base_weights / np.sqrt(np.maximum(1.0, relative_errors / error_scale))
    return seconds_per_unit


def summarize_errors(predicted_times: Array, measured_times: Array) -> PredictionErrors:
    """Median, 90th percentile and worst of |predicted / measured - 1|."""
    relative_errors = np.abs(predicted_times / measured_times - 1)
    median, p90, worst = (
        _round_digits(quantile) for quantile in np.quantile(relative_errors, (0.5, 0.9, 1.0)).tolist()
    )
    return PredictionErrors(models=len(relative_errors), median=median, p90=p90, worst=worst)


def conformal_interval(
    predicted_times: Array, measured_times: Array, coverage: float = INTERVAL_COVERAGE
) -> tuple[float, float]:
    """Bounds that contain measured / predicted of a new model at rate `coverage`: conformal quantiles of both tails.

    Source: split conformal prediction, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
    """
    measured_ratios = np.sort(measured_times / predicted_times)
    tail_share = (1 - coverage) / 2
    low_index = max(math.floor(tail_share * (len(measured_ratios) + 1)) - 1, 0)
    high_index = min(math.ceil((1 - tail_share) * (len(measured_ratios) + 1)) - 1, len(measured_ratios) - 1)
    return _round_digits(float(measured_ratios[low_index])), _round_digits(float(measured_ratios[high_index]))


def _round_digits(number: float) -> float:
    """Four significant digits, for readable profiles."""
    return float(f"{number:.4g}")
