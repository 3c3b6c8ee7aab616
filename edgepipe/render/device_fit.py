"""Renders what `edgepipe device fit` found: the prices, and how well unseen families are predicted."""

import math

from edgepipe.core import units
from edgepipe.core.units import Dimension
from edgepipe.devices.latency.feature_names import FEATURES
from edgepipe.devices.latency.latency_record import HeldOutError
from edgepipe.devices.latency.profile_fragment import Built
from edgepipe.render.report_tables import Rows


def tables(built: Built) -> list[Rows]:
    """The rates, the held-out errors by family, and each held-out prediction."""
    fit = built.fit
    spread = [math.exp(math.sqrt(row[-1])) for row in fit.covariance]
    rates = tuple(
        (name.replace("_", " "), f"{rate * fit.clock:.3g}", f"{rate * 1e9:.3g}", f"x/÷ {wide:.2f}", FEATURES[name])
        for (name, rate), wide in zip(fit.rates.items(), spread, strict=True)
    )
    found = [Rows(f"{fit.points} measurements, {fit.kind}", ("feature", "cycles", "ns", "spread", "of"), rates,
                  frozenset({1, 2, 3}))]  # fmt: skip
    return [*found, *([_families(fit.error), _rows(built)] if fit.error else [])]


def _families(error: HeldOutError) -> Rows:
    families = tuple(
        (name, str(one.points), _share(one.median), _share(one.worst)) for name, one in error.families.items()
    )
    title = f"Families held out: median error {_share(error.median)}, 90 % within {_share(error.p90)}"
    return Rows(title, ("family", "models", "median", "worst"), families, frozenset({1, 2, 3}))


def _rows(built: Built) -> Rows:
    rows = tuple(
        (
            one.row.model,
            units.show(one.row.seconds, Dimension.SECONDS),
            units.show(one.seconds, Dimension.SECONDS),
            f"{100 * one.error:+.1f} %",
            "; ".join(one.outside),
        )
        for one in built.held_out
    )
    columns = ("model", "measured", "predicted", "error", "extrapolates")
    return Rows("Each model, predicted without its family", columns, rows, frozenset({1, 2, 3}))


def _share(value: float) -> str:
    return units.show(value, Dimension.FRACTION)
