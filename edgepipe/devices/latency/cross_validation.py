"""How well a fit predicts models that it has not seen: a whole family held out, or the largest models of each device.

The width of an interval follows from the held-out errors of the families, by one rule for every device: the errors of a
device, in standard deviations, have a scale of their own, which a prior draws to 1 (a scaled inverse chi-squared
distribution), so that the width is a quantile of a t distribution. For a held-out row the scale comes from the other
families of its device, so that the reported coverage is that of unseen models.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.devices.latency import fit_domain
from edgepipe.devices.latency import latency_fit as fits
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.processor_kinds import ProcessorKind

INTERVAL_COVERAGE = 0.9
PRIOR_FAMILIES = 3.0  # the prior of a device's scale weighs as much as so many held-out families
MAX_FAMILY_ERROR = 5.0  # standard deviations at which the error of a family ends to widen the interval
LARGEST_SHARE = 0.25  # of the models of each device, held out for their size
MIN_ROWS_BY_SIZE = 4  # of a device whose largest are held out


@dataclass(frozen=True)
class HeldOutPrediction:
    """A row, and the prediction of a fit without its family."""

    fit_row: FitRow
    predicted_seconds: float
    deviation: float  # standard deviation of the logarithm
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


def leave_largest_out(
    kind: ProcessorKind, clock_by_group: Mapping[str, float], fit_rows: Sequence[FitRow]
) -> list[HeldOutPrediction]:
    """Predict the slowest quarter of each group by a fit without any of them."""
    held_out_rows = [row for group in {row.group for row in fit_rows} for row in _largest_rows(fit_rows, group)]
    training_rows = [row for row in fit_rows if row not in held_out_rows]
    rates_by_group = fits.fit(kind, clock_by_group, training_rows)
    return [_predict_row(row, rates_by_group[row.group], training_rows) for row in held_out_rows]


def _largest_rows(fit_rows: Sequence[FitRow], group: str) -> list[FitRow]:
    group_rows = sorted((row for row in fit_rows if row.group == group), key=lambda row: row.seconds)
    count = max(1, int(LARGEST_SHARE * len(group_rows))) if len(group_rows) >= MIN_ROWS_BY_SIZE else 0
    return group_rows[len(group_rows) - count :]


def _predict_row(fit_row: FitRow, rates: fits.Rates, training_rows: Sequence[FitRow]) -> HeldOutPrediction:
    domain = fit_domain.build_domain(
        [training_row for training_row in training_rows if training_row.group == fit_row.group], rates.feature_names
    )
    novelty = domain.layers.novelty(fit_row.layers, rates.predict_layers(fit_row.layers))
    predicted_seconds, deviation = rates.predict(fit_row.features, novelty)
    seconds_by_feature = dict(zip(rates.feature_names, rates.seconds_per_unit.tolist(), strict=True))
    extrapolation_reasons = domain.extrapolation_reasons(fit_row.features, seconds_by_feature, fit_row.operator_names)
    return HeldOutPrediction(fit_row, predicted_seconds, deviation, extrapolation_reasons)


def summarize_errors(predictions: Sequence[HeldOutPrediction]) -> ErrorSummary:
    """Median, 90th percentile and worst of the absolute relative errors."""
    error_sizes = np.array([abs(prediction.relative_error) for prediction in predictions])
    return ErrorSummary(
        len(error_sizes), float(np.median(error_sizes)), float(np.quantile(error_sizes, 0.9)), float(error_sizes.max())
    )


def interval_factor(predictions: Sequence[HeldOutPrediction]) -> float:
    """Half the width of the interval in standard deviations, from the held-out errors of one device.

    All rows of a family count as one observation: their errors are alike.
    """
    from scipy.stats import t as student_t

    family_squares = _mean_squares_by_family(predictions).values()
    degrees = PRIOR_FAMILIES + len(family_squares)
    scale = math.sqrt((PRIOR_FAMILIES + sum(family_squares)) / degrees)
    return float(scale * student_t.ppf((1 + INTERVAL_COVERAGE) / 2, degrees))


def _mean_squares_by_family(predictions: Sequence[HeldOutPrediction]) -> dict[str, float]:
    errors_by_family: dict[str, list[float]] = {}
    for prediction in predictions:
        errors_by_family.setdefault(prediction.fit_row.family, []).append(prediction.standardized_error)
    return {
        family: min(float(np.mean(np.square(errors))), MAX_FAMILY_ERROR**2)
        for family, errors in errors_by_family.items()
    }


def interval_factors(predictions: Sequence[HeldOutPrediction], families: Collection[str] = ()) -> dict[str, float]:
    """The factor for each family of `predictions` and `families`, from the rows of the other families."""
    family_names = {prediction.fit_row.family for prediction in predictions} | set(families)
    return {
        family: interval_factor([prediction for prediction in predictions if prediction.fit_row.family != family])
        for family in family_names
    }
