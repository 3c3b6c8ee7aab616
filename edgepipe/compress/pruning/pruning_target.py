"""The target of pruning: a share of zeros, or a number of parameters, MACs, bytes or seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgepipe.core.units import Dimension, show

TargetMetric = Literal["sparsity", "parameters", "macs", "flash", "latency"]
DIMENSION_BY_METRIC: dict[str, Dimension] = {
    "sparsity": Dimension.FRACTION,
    "parameters": Dimension.COUNT,
    "macs": Dimension.COUNT,
    "flash": Dimension.BYTES,
    "latency": Dimension.SECONDS,
}
ConvertedCostFunction = Callable[[Any], float]  # of a converted model: bytes of its .tflite, or seconds on a device


@dataclass(frozen=True)
class PruningTarget:
    """The requested share of zeros (minimum) or cost (maximum), in base units."""

    metric_name: TargetMetric
    value: float

    def text(self) -> str:
        """For example `macs <= 2,000,000`."""
        return f"{self.metric_name} {'>=' if self.metric_name == 'sparsity' else '<='} {self.show(self.value)}"

    def show(self, value: float) -> str:
        """`value` in the target's unit."""
        return show(value, DIMENSION_BY_METRIC[self.metric_name])
