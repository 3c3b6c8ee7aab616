"""How a metric that states its chance compares with it: from its details alone, without samples."""

import math

from edgepipe.core.metric import Metric
from edgepipe.core.units import Dimension

ALPHA = 0.01  # a quality that chance reaches more often is not above chance


def is_above_chance(metric: Metric) -> bool:
    """Whether chance would hardly be as good."""
    return float(metric.details["chance_probability"]) <= ALPHA


def skill_of(metric: Metric) -> tuple[float, float]:
    """What a model is better by than none, higher being better, and its standard error.

    A share is taken as it is; of an error, what is left of that of predicting the mean.

    Args:
        metric: with `chance` and `samples` in its details.
    """
    value, samples = float(metric.value or 0), int(metric.details["samples"])
    if metric.unit is Dimension.FRACTION:
        return value, math.sqrt(max(value * (1 - value), 0) / samples)
    chance_level = float(metric.details["chance"])
    error_share = 1 - value if chance_level == 0 else value / chance_level  # r2 is 0 by chance, errors are not
    return 1 - error_share, error_share * math.sqrt(2 / samples)
