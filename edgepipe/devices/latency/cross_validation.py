"""How well a fit predicts a model family that it has not seen, in any group: leave one family out.

The width of an interval comes from the same held-out errors: it is the number of standard deviations that covers
`COVERAGE` of the held-out predictions. For the held-out rows themselves, the factor comes from the rows of the other
families, so that the reported coverage is that of unseen models (cross-conformal prediction, Vovk 2015).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.devices.latency import fit_domain
from edgepipe.devices.latency import latency_fit as fits
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.processor_kinds import ProcessorKind

INTERVAL_COVERAGE = 0.9
NORMAL_QUANTILE = 1.645  # standard deviations to both sides that cover 90 % of a normal distribution
MIN_HELD_OUT_ROWS = 8  # held-out rows needed for a quantile of their errors


@dataclass(frozen=True)
class HeldOutPrediction:
    """A row, and the prediction of a fit without its family."""

    fit_row: FitRow
    predicted_seconds: float
    deviation: float  # standard deviation of the logarithm; doubled if the model is outside the fitted domain
    extrapolation_reasons: tuple[str, ...]

    @property
    def relative_error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_seconds / self.fit_row.seconds - 1

    @property
    def standardized_error(self) -> float:
        """The absolute log error in standard deviations."""
        return abs(math.log(self.predicted_seconds / self.fit_row.seconds)) / self.deviation


@dataclass(frozen=True)
class ErrorSummary:
    """Absolute relative errors over some rows."""

    point_count: int
    median: float
    p90: float
    worst: float


def leave_families_out(
    kind: ProcessorKind, clock_by_group: Mapping[str, float], fit_rows: Sequence[FitRow]
) -> list[HeldOutPrediction]:
    """Predict every row by a fit without its family, in any group.

    A group with a single family cannot be held out: its rows are not in the list.
    """
    predictions: list[HeldOutPrediction] = []
    for family in sorted({row.family for row in fit_rows}):
        training_rows = [row for row in fit_rows if row.family != family]
        if training_rows:
            rates_by_group = fits.fit(kind, clock_by_group, training_rows)
            predictions += [
                _predict_row(row, rates_by_group[row.group], training_rows)
                for row in fit_rows
                if row.family == family and row.group in rates_by_group
            ]
    return predictions


def _predict_row(fit_row: FitRow, rates: fits.Rates, training_rows: Sequence[FitRow]) -> HeldOutPrediction:
    predicted_seconds, deviation = rates.predict(fit_row.features)
    domain = fit_domain.build_domain(
        [training_row for training_row in training_rows if training_row.group == fit_row.group], rates.feature_names
    )
    seconds_by_feature = dict(zip(rates.feature_names, rates.seconds_per_unit.tolist(), strict=True))
    extrapolation_reasons = domain.extrapolation_reasons(fit_row.features, seconds_by_feature, fit_row.operator_names)
    return HeldOutPrediction(
        fit_row,
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
    """How many standard deviations cover `COVERAGE` of the held-out rows, with the finite-sample correction.

    For few rows it is the worst of them, but at least that of a normal distribution.
    """
    error_sizes = np.sort([prediction.standardized_error for prediction in predictions])
    if len(error_sizes) < MIN_HELD_OUT_ROWS:
        return float(max(NORMAL_QUANTILE, *error_sizes)) if len(error_sizes) else NORMAL_QUANTILE
    index = min(math.ceil(INTERVAL_COVERAGE * (len(error_sizes) + 1)), len(error_sizes)) - 1
    return float(max(1.0, error_sizes[index]))


def interval_factors(predictions: Sequence[HeldOutPrediction]) -> dict[str, float]:
    """By family: the factor from the rows of the other families."""
    family_names = {prediction.fit_row.family for prediction in predictions}
    return {
        family: interval_factor([prediction for prediction in predictions if prediction.fit_row.family != family])
        for family in family_names
    }
