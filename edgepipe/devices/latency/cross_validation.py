"""How well a fit predicts models of a family that it has not seen, in any group: leave one family out.

The width of an interval comes from the same held-out errors: a prediction is given so many of its own standard
deviations as `RATE` of the held-out predictions needed. For the held-out rows themselves the factor is taken from the
other families' rows, so that the coverage that is told is that of models never seen (cross-conformal prediction, Vovk
2015).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.devices.latency import fit_domain
from edgepipe.devices.latency import latency_fit as fits
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.processor_kinds import ProcessorKind

COVERAGE = 0.9
NORMAL_QUANTILE = 1.645  # deviations that hold 90 % of a normal distribution
MIN_ROWS = 8  # held-out rows below which their errors say little about the width


@dataclass(frozen=True)
class HeldOutPrediction:
    """A row, and what a fit without its family predicted."""

    row: FitRow
    predicted_seconds: float
    deviation: float  # of the logarithm; twice as large where the model lies outside of what the fit had seen
    extrapolation_reasons: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_seconds / self.row.seconds - 1

    @property
    def standardized_error(self) -> float:
        """The error of the logarithm in standard deviations."""
        return abs(math.log(self.predicted_seconds / self.row.seconds)) / self.deviation


@dataclass(frozen=True)
class ErrorSummary:
    """Absolute relative errors over some rows."""

    points: int
    median: float
    p90: float
    worst: float


def leave_families_out(
    kind: ProcessorKind, clocks: Mapping[str, float], rows: Sequence[FitRow]
) -> list[HeldOutPrediction]:
    """Every row predicted by a fit without any row of its family, whichever the group.

    A group that holds a single family cannot be held out: its rows are not in the result.
    """
    predictions: list[HeldOutPrediction] = []
    for family in sorted({row.family for row in rows}):
        training_rows = [row for row in rows if row.family != family]
        if training_rows:
            rates = fits.fit(kind, clocks, training_rows)
            predictions += [_predict_row(row, rates[row.group], training_rows) for row in rows
                      if row.family == family and row.group in rates]  # fmt: skip
    return predictions


def _predict_row(row: FitRow, rates: fits.Rates, training_rows: Sequence[FitRow]) -> HeldOutPrediction:
    predicted_seconds, deviation = rates.predict(row.features)
    domain = fit_domain.build_domain(
        [training_row for training_row in training_rows if training_row.group == row.group], rates.feature_names
    )
    prices = dict(zip(rates.feature_names, rates.seconds.tolist(), strict=True))
    extrapolation_reasons = domain.extrapolation_reasons(row.features, prices, row.operators)
    return HeldOutPrediction(
        row,
        predicted_seconds,
        deviation * (fit_domain.WIDENING_FACTOR if extrapolation_reasons else 1.0),
        extrapolation_reasons,
    )


def summarize_errors(predictions: Sequence[HeldOutPrediction]) -> ErrorSummary:
    """Median, 90th percentile and worst of the absolute relative errors."""
    error_sizes = np.array([abs(prediction.relative_error) for prediction in predictions])
    return ErrorSummary(
        len(error_sizes), float(np.median(error_sizes)), float(np.quantile(error_sizes, 0.9)), float(error_sizes.max())
    )


def interval_factor(predictions: Sequence[HeldOutPrediction]) -> float:
    """How many standard deviations hold `RATE` of the held-out rows, with the finite-sample correction.

    Of few rows the worst counts, and never less than for a normal distribution.
    """
    error_sizes = np.sort([prediction.standardized_error for prediction in predictions])
    if len(error_sizes) < MIN_ROWS:
        return float(max(NORMAL_QUANTILE, *error_sizes)) if len(error_sizes) else NORMAL_QUANTILE
    index = min(math.ceil(COVERAGE * (len(error_sizes) + 1)), len(error_sizes)) - 1
    return float(max(1.0, error_sizes[index]))


def interval_factors(predictions: Sequence[HeldOutPrediction]) -> dict[str, float]:
    """By family: the factor that the rows of the other families give."""
    families = {prediction.row.family for prediction in predictions}
    return {
        family: interval_factor([prediction for prediction in predictions if prediction.row.family != family])
        for family in families
    }
