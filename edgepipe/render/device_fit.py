"""The result of `edgepipe device fit` as tables: the fitted rates, and the errors on unseen model families."""

import math

from edgepipe.core import units
from edgepipe.core.escape import json_text
from edgepipe.core.units import Dimension
from edgepipe.devices.latency.feature_names import FEATURE_DESCRIPTIONS
from edgepipe.devices.latency.latency_record import HeldOutError
from edgepipe.devices.latency.profile_fragment import DeviceFit
from edgepipe.render.report_tables import TextTable


def tables(device_fit: DeviceFit) -> list[TextTable]:
    """The fitted rates, the held-out errors by family, and each held-out prediction."""
    fit = device_fit.fit
    spread_factors = [math.exp(math.sqrt(row[-1])) for row in fit.covariance]
    rate_rows = tuple(
        (
            name.replace("_", " "),
            f"{rate * fit.clock:.3g}",
            f"{rate * 1e9:.3g}",
            f"x/÷ {spread_factor:.2f}",
            FEATURE_DESCRIPTIONS[name],
        )
        for (name, rate), spread_factor in zip(fit.rates.items(), spread_factors, strict=True)
    )
    title = f"{units.plural(fit.points, 'measurement')}, {fit.kind}"
    rates_table = TextTable(title, ("feature", "cycles", "ns", "spread", "counts"), rate_rows, frozenset({1, 2, 3}))
    return [rates_table, *([_families_table(fit.error), _predictions_table(device_fit)] if fit.error else [])]


def document(device_fit: DeviceFit) -> str:
    """The fit as one JSON document."""
    return json_text(device_fit.fit.model_dump(mode="json"))


def _families_table(held_out_error: HeldOutError) -> TextTable:
    family_rows = tuple(
        (name, str(family_error.points), _format_share(family_error.median), _format_share(family_error.worst))
        for name, family_error in held_out_error.families.items()
    )
    median_text, p90_text = _format_share(held_out_error.median), _format_share(held_out_error.p90)
    title = f"Unseen model families: median error {median_text}, 90 % within {p90_text}"
    return TextTable(title, ("family", "models", "median", "worst"), family_rows, frozenset({1, 2, 3}))


def _predictions_table(device_fit: DeviceFit) -> TextTable:
    rows = tuple(
        (
            prediction.fit_row.model_name,
            units.show(prediction.fit_row.seconds, Dimension.SECONDS),
            units.show(prediction.predicted_seconds, Dimension.SECONDS),
            f"{100 * prediction.relative_error:+.1f} %",
            "; ".join(prediction.extrapolation_reasons),
        )
        for prediction in device_fit.held_out_predictions
    )
    columns = ("model", "measured", "predicted", "error", "extrapolates")
    return TextTable("Each model, predicted by a fit without its family", columns, rows, frozenset({1, 2, 3}))


def _format_share(share: float) -> str:
    return units.show(share, Dimension.FRACTION)
