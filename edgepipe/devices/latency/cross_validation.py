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
from edgepipe.devices.latency.latency_fit import Row
from edgepipe.devices.latency.processor_kinds import Kind

RATE = 0.9
NORMAL = 1.645  # deviations that hold 90 % of a normal distribution
FEW = 8  # held-out rows below which their errors say little about the width


@dataclass(frozen=True)
class HeldOut:
    """A row, and what a fit without its family predicted."""

    row: Row
    seconds: float
    deviation: float  # of the logarithm; twice as large where the model lies outside of what the fit had seen
    outside: tuple[str, ...]

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.seconds / self.row.seconds - 1

    @property
    def deviations(self) -> float:
        """The error of the logarithm in standard deviations."""
        return abs(math.log(self.seconds / self.row.seconds)) / self.deviation


@dataclass(frozen=True)
class Errors:
    """Absolute relative errors over some rows."""

    points: int
    median: float
    p90: float
    worst: float


def leave_families_out(kind: Kind, clocks: Mapping[str, float], rows: Sequence[Row]) -> list[HeldOut]:
    """Every row predicted by a fit without any row of its family, whichever the group.

    A group that holds a single family cannot be held out: its rows are not in the result.
    """
    found: list[HeldOut] = []
    for family in sorted({row.family for row in rows}):
        rest = [row for row in rows if row.family != family]
        if rest:
            rates = fits.fit(kind, clocks, rest)
            found += [_held_out(row, rates[row.group], rest) for row in rows
                      if row.family == family and row.group in rates]  # fmt: skip
    return found


def _held_out(row: Row, rates: fits.Rates, rest: Sequence[Row]) -> HeldOut:
    seconds, deviation = rates.predict(row.features)
    seen = fit_domain.of_rows([other for other in rest if other.group == row.group], rates.features)
    prices = dict(zip(rates.features, rates.seconds.tolist(), strict=True))
    outside = seen.outside(row.features, prices, row.operators)
    return HeldOut(row, seconds, deviation * (fit_domain.WIDER if outside else 1.0), outside)


def errors(held_out: Sequence[HeldOut]) -> Errors:
    """Median, 90th percentile and worst of the absolute relative errors."""
    sizes = np.array([abs(one.error) for one in held_out])
    return Errors(len(sizes), float(np.median(sizes)), float(np.quantile(sizes, 0.9)), float(sizes.max()))


def factor(held_out: Sequence[HeldOut]) -> float:
    """How many standard deviations hold `RATE` of the held-out rows, with the finite-sample correction.

    Of few rows the worst counts, and never less than for a normal distribution.
    """
    sizes = np.sort([one.deviations for one in held_out])
    if len(sizes) < FEW:
        return float(max(NORMAL, *sizes)) if len(sizes) else NORMAL
    place = min(math.ceil(RATE * (len(sizes) + 1)), len(sizes)) - 1
    return float(max(1.0, sizes[place]))


def factors(held_out: Sequence[HeldOut]) -> dict[str, float]:
    """By family: the factor that the rows of the other families give."""
    families = {one.row.family for one in held_out}
    return {family: factor([one for one in held_out if one.row.family != family]) for family in families}
