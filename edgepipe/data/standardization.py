"""Standardization: each channel, or band of a spectrogram, brought to mean 0 and deviation 1 by the training split."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, each


@final
@dataclass(frozen=True)
class Scaling:
    """What a device must do to a channel first: (value - mean) / deviation, in float32."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    still: tuple[int, ...] = ()  # which never change, and are only moved
    axis: int = -1  # which axis of a sample the constants belong to: -1 channels, -2 bands of (frames, bands, 1)

    @classmethod
    def of(cls, x: Arrays, axis: int = -1) -> Self:
        """The scaling of training samples (n, ..., channels). A channel that never changes is only moved."""
        array = next(iter(x.values())) if isinstance(x, dict) else x
        moved = np.moveaxis(array, axis, -1)
        flat = moved.reshape(-1, moved.shape[-1]).astype(np.float64)
        deviation, still = flat.std(axis=0), np.ptp(flat, axis=0) == 0
        known = flat.mean(axis=0).tolist(), np.where(still, 1.0, deviation).tolist()
        return cls(tuple(known[0]), tuple(known[1]), tuple(np.flatnonzero(still).tolist()), axis)

    def apply(self, x: Arrays) -> Arrays:
        """`x` (n, ..., channels) scaled, float32."""
        return each(self.scaled, x)

    def scaled(self, array: Array) -> Array:
        """One array scaled, float32."""
        mean, deviation = (self._along(values) for values in (self.mean, self.deviation))
        return np.asarray((array - mean) / deviation, np.float32)

    def _along(self, values: tuple[float, ...]) -> Array:
        return np.array(values).reshape(-1, *[1] * (-1 - self.axis))

    def told(self, name: str) -> str:
        """The constants, for the report: a device needs them."""
        shown = [", ".join(f"{value:.9g}" for value in values) for values in (self.mean, self.deviation)]
        what = "channel" if self.axis == -1 else "band"
        still = f"; {what} {', '.join(map(str, self.still))} never changes in training" if self.still else ""
        return (
            f"{name}: standardized by the training split: mean [{shown[0]}], deviation [{shown[1]}]; a device must too"
            f"{still}"
        )
