"""The domain of a fit: a model with other operators, or far larger amounts, is outside of it.

That is said beside the estimate; the width of the interval follows the distance to the fitted layers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgepipe.core.units import Dimension, show
from edgepipe.devices.latency.feature_names import FeatureAmounts
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.layer_shapes import FittedLayers

EXTRAPOLATION_FACTOR = 2.0  # times the largest fitted amount from which a model is outside
NOTABLE_SHARE = 0.05  # share of the latency below which a feature's amount does not matter


@dataclass(frozen=True)
class FitDomain:
    """The extent of the fitted models."""

    operator_names: frozenset[str]
    largest_amounts: Mapping[str, float]  # of each feature, over the fitted models
    latency_range: tuple[float, float]  # shortest and longest measured latency, in seconds
    layers: FittedLayers

    def extrapolation_reasons(
        self, feature_amounts: FeatureAmounts, rate_by_feature: Mapping[str, float], operator_names: Collection[str]
    ) -> tuple[str, ...]:
        """Why a model is outside: unseen operators, far larger amounts, a latency far off; empty: it is inside."""
        predicted_seconds = sum(rate * feature_amounts.get(name, 0.0) for name, rate in rate_by_feature.items())
        return (
            *self._operator_reasons(operator_names),
            *self._amount_reasons(feature_amounts, rate_by_feature, predicted_seconds),
            *self._latency_reasons(predicted_seconds),
        )

    def _operator_reasons(self, operator_names: Collection[str]) -> list[str]:
        return [f"no fitted model has {name}" for name in sorted(set(operator_names) - self.operator_names)]

    def _amount_reasons(
        self, feature_amounts: FeatureAmounts, rate_by_feature: Mapping[str, float], predicted_seconds: float
    ) -> list[str]:
        return [
            f"{amount:,.0f} {name.replace('_', ' ')}, the fitted models have at most {largest_amount:,.0f}"
            for name, rate in rate_by_feature.items()
            if (amount := feature_amounts.get(name, 0.0))
            > EXTRAPOLATION_FACTOR * (largest_amount := self.largest_amounts.get(name, 0.0))
            and amount * rate > NOTABLE_SHARE * predicted_seconds
        ]

    def _latency_reasons(self, predicted_seconds: float) -> list[str]:
        min_seconds, max_seconds = self.latency_range
        if min_seconds / EXTRAPOLATION_FACTOR <= predicted_seconds <= max_seconds * EXTRAPOLATION_FACTOR:
            return []
        range_text = f"{show(min_seconds, Dimension.SECONDS)} to {show(max_seconds, Dimension.SECONDS)}"
        return [f"{show(predicted_seconds, Dimension.SECONDS)}, the fitted models took {range_text}"]


def build_domain(fit_rows: Sequence[FitRow], feature_names: Sequence[str]) -> FitDomain:
    """The extent of `rows`."""
    return FitDomain(
        frozenset().union(*(row.operator_names for row in fit_rows)),
        {
            name: largest_amount
            for name in feature_names
            if (largest_amount := max(row.features.get(name, 0.0) for row in fit_rows)) > 0
        },
        (min(row.seconds for row in fit_rows), max(row.seconds for row in fit_rows)),
        FittedLayers.from_layers(layer for row in fit_rows for layer in row.layers),
    )
