"""What pruning is to reach: a share of zeros, or a number of parameters, MACs, bytes or seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgepipe.core.units import Dimension, show

What = Literal["sparsity", "parameters", "macs", "flash", "latency"]
UNITS: dict[str, Dimension] = {
    "sparsity": Dimension.FRACTION,
    "parameters": Dimension.COUNT,
    "macs": Dimension.COUNT,
    "flash": Dimension.BYTES,
    "latency": Dimension.SECONDS,
}
Built = Callable[[Any], float]  # what a model costs when it is converted: bytes of its .tflite, or seconds on a device


@dataclass(frozen=True)
class Target:
    """The share of zeros (at least) or the cost (at most) that is asked for, in base units."""

    what: What
    value: float

    def text(self) -> str:
        """For example `macs <= 2,000,000`."""
        return f"{self.what} {'>=' if self.what == 'sparsity' else '<='} {self.show(self.value)}"

    def show(self, value: float) -> str:
        """`value` in the target's unit."""
        return show(value, UNITS[self.what])
