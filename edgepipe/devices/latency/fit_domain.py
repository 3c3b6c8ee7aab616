"""What a fit has seen: a model with other operators, or far more of something, lies outside of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgepipe.core.units import Dimension, show
from edgepipe.devices.latency.feature_names import Features
from edgepipe.devices.latency.latency_fit import Row

BEYOND = 2.0  # how many times the largest fitted amount a model may have before it lies outside
NOTABLE = 0.05  # share of the latency below which a feature's amount does not matter
WIDER = 2.0  # the interval of a model outside is so much wider, in deviations


@dataclass(frozen=True)
class Known:
    """The extent of the fitted models."""

    operators: frozenset[str]
    largest: Mapping[str, float]  # the most of each feature that a fitted model has
    seconds: tuple[float, float]  # the shortest and the longest measured latency

    def outside(self, amounts: Features, rates: Mapping[str, float], used: Collection[str]) -> tuple[str, ...]:
        """Why a model lies outside: operators never seen, amounts far above, a latency far off; empty: it does not."""
        predicted = sum(rate * amounts.get(name, 0.0) for name, rate in rates.items())
        return (*self._operators(used), *self._amounts(amounts, rates, predicted), *self._latency(predicted))

    def _operators(self, used: Collection[str]) -> list[str]:
        return [f"no fitted model has {name}" for name in sorted(set(used) - self.operators)]

    def _amounts(self, amounts: Features, rates: Mapping[str, float], predicted: float) -> list[str]:
        return [
            f"{amount:,.0f} {name.replace('_', ' ')}, the fitted models have at most {most:,.0f}"
            for name, rate in rates.items()
            if (amount := amounts.get(name, 0.0)) > BEYOND * (most := self.largest.get(name, 0.0))
            and amount * rate > NOTABLE * predicted
        ]

    def _latency(self, predicted: float) -> list[str]:
        shortest, longest = self.seconds
        if shortest / BEYOND <= predicted <= longest * BEYOND:
            return []
        span = f"{show(shortest, Dimension.SECONDS)} to {show(longest, Dimension.SECONDS)}"
        return [f"{show(predicted, Dimension.SECONDS)}, the fitted models took {span}"]


def of_rows(rows: Sequence[Row], features: Sequence[str]) -> Known:
    """The extent of `rows`."""
    return Known(
        frozenset().union(*(row.operators for row in rows)),
        {name: most for name in features if (most := max(row.features.get(name, 0.0) for row in rows)) > 0},
        (min(row.seconds for row in rows), max(row.seconds for row in rows)),
    )
