"""Standardization: each channel brought to mean 0 and standard deviation 1, by the training split alone."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np

from edgepipe.arrays import Array, Arrays, each


@final
@dataclass(frozen=True)
class Scaling:
    """What a device must do to a channel first: (value - mean) / deviation, in float32."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, x: Arrays) -> Self:
        """The scaling of training samples (n, ..., channels). A channel that never changes is only moved."""
        array = next(iter(x.values())) if isinstance(x, dict) else x
        flat = array.reshape(-1, array.shape[-1]).astype(np.float64)
        deviation = flat.std(axis=0)
        return cls(tuple(flat.mean(axis=0).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()))

    def apply(self, x: Arrays) -> Arrays:
        """`x` (n, ..., channels) scaled, float32."""
        return each(self._scaled, x)

    def _scaled(self, array: Array) -> Array:
        return np.asarray((array - np.array(self.mean)) / np.array(self.deviation), np.float32)

    def told(self, name: str) -> str:
        """The constants, for the report: a device needs them."""
        shown = [", ".join(f"{value:.9g}" for value in values) for values in (self.mean, self.deviation)]
        return (
            f"{name}: standardized by the training split: mean [{shown[0]}], deviation [{shown[1]}]; a device must too"
        )
