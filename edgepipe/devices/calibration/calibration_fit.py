"""Fits the seconds of each term to measured models, and finds out how well that predicts what it has not seen.

Non-negative least squares on relative errors: each row is divided by its measured time, and rows far off are weighted
down (Huber's weights), so that neither large models nor disturbed measurements rule the fit. Composites weigh more
than single operators, for they are what networks look like.
"""

import math
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.calibration.calibration_record import Errors
from edgepipe.devices.calibration.cost_terms import Part, total

COMPOSITE_WEIGHT = 2.0
FLOOR = 1e-6  # seconds: below it errors count absolutely, because clocks and calls blur them
ROUNDS = 12  # of reweighting
HUBER = 1.5  # medians of the absolute error
LEAST_SCALE = 0.01  # a relative error below it is as good as none
FOLDS = 5
RATE = 0.90


@dataclass(frozen=True)
class Sample:
    """One measured model of the suite."""

    name: str
    group: str
    composite: bool
    parts: tuple[Part, ...]
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """The seconds of each term, in the order of `names`."""

    names: tuple[str, ...]
    seconds: Array

    def predict(self, rows: Array) -> Array:
        """Seconds of each row of a design matrix (models, terms)."""
        return np.asarray(rows @ self.seconds)


@dataclass(frozen=True)
class Held:
    """Predictions, in seconds, of samples that the fit had not seen."""

    within: Array  # every fifth held out
    across: Array  # the whole group held out


def design(samples: list[Sample], names: tuple[str, ...] | None = None) -> tuple[tuple[str, ...], Array]:
    """The terms that occur, sorted, and the matrix (samples, terms)."""
    totals = [total(list(sample.parts)) for sample in samples]
    names = names or tuple(sorted({name for terms in totals for name in terms}))
    return names, np.array([[terms.get(name, 0.0) for name in names] for terms in totals])


def fit(samples: list[Sample]) -> Fitted:
    """Fit all of `samples`."""
    names, rows = design(samples)
    return Fitted(names, _solve(rows, _times(samples), _weights(samples)))


def held_out(samples: list[Sample], seed: int) -> Held:
    """Predict each sample by a fit without it: 5-fold at random, and with its whole group left out."""
    _, rows = design(samples)
    folds = np.random.default_rng(seed).permutation(len(samples)) % FOLDS
    groups = np.array([sample.group for sample in samples])
    return Held(_without(samples, rows, folds), _without(samples, rows, groups))


def _without(samples: list[Sample], rows: Array, labels: Array) -> Array:
    times, weights, predicted = _times(samples), _weights(samples), np.zeros(len(samples))
    for label in np.unique(labels):
        out = labels == label
        predicted[out] = rows[out] @ _solve(rows[~out], times[~out], weights[~out])
    return predicted


def _times(samples: list[Sample]) -> Array:
    return np.array([sample.seconds for sample in samples])


def _weights(samples: list[Sample]) -> Array:
    return np.array([COMPOSITE_WEIGHT if sample.composite else 1.0 for sample in samples])


def _solve(rows: Array, times: Array, weights: Array) -> Array:
    """Iteratively reweighted non-negative least squares on relative errors."""
    from scipy.optimize import nnls

    base = weights / (times + FLOOR)
    current = base
    seconds = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        weighted = rows * current[:, None]
        lengths = np.linalg.norm(weighted, axis=0)
        lengths[lengths == 0] = 1.0
        found, _residual = nnls(weighted / lengths, times * current, maxiter=100 * rows.shape[1])
        seconds = found / lengths
        off = np.abs(rows @ seconds - times) / (times + FLOOR)
        scale = max(HUBER * float(np.median(off)), LEAST_SCALE)
        current = base / np.sqrt(np.maximum(1.0, off / scale))
    return seconds


def errors(predicted: Array, measured: Array) -> Errors:
    """Median, 90th percentile and worst of |predicted / measured - 1|."""
    off = np.abs(predicted / measured - 1)
    median, p90, worst = (_short(value) for value in np.quantile(off, (0.5, 0.9, 1.0)).tolist())
    return Errors(models=len(off), median=median, p90=p90, worst=worst)


def interval(predicted: Array, measured: Array, rate: float = RATE) -> tuple[float, float]:
    """Bounds of measured / predicted that a new model lies between at `rate`: conformal quantiles of both tails.

    Source: split conformal prediction, Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005.
    """
    ratios = np.sort(measured / predicted)
    tail = (1 - rate) / 2
    low = max(math.floor(tail * (len(ratios) + 1)) - 1, 0)
    high = min(math.ceil((1 - tail) * (len(ratios) + 1)) - 1, len(ratios) - 1)
    return _short(float(ratios[low])), _short(float(ratios[high]))


def _short(value: float) -> float:
    """Four digits: what is stored in a profile for people to read."""
    return float(f"{value:.4g}")
