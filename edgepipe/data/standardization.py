"""Standardization: each channel, or spectrogram band, scaled to mean 0 and deviation 1 on the training split."""

from dataclasses import dataclass
from typing import Self, final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, map_arrays


@final
@dataclass(frozen=True)
class Scaling:
    """Per-channel scaling that a device must repeat: (value - mean) / deviation, in float32."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    constant_channels: tuple[int, ...] = ()  # only the mean is subtracted
    axis: int = -1  # the axis that the constants belong to: -1 channels, -2 bands of (frames, bands, 1)

    @classmethod
    def fit(cls, x: Arrays, axis: int = -1) -> Self:
        """Fit to training samples (n, ..., channels). A constant channel gets deviation 1."""
        array = next(iter(x.values())) if isinstance(x, dict) else x
        channels_last = np.moveaxis(array, axis, -1)
        flat_samples = channels_last.reshape(-1, channels_last.shape[-1]).astype(np.float64)
        deviation, is_constant = flat_samples.std(axis=0), np.ptp(flat_samples, axis=0) == 0
        means_and_deviations = flat_samples.mean(axis=0).tolist(), np.where(is_constant, 1.0, deviation).tolist()
        return cls(
            tuple(means_and_deviations[0]),
            tuple(means_and_deviations[1]),
            tuple(np.flatnonzero(is_constant).tolist()),
            axis,
        )

    def apply(self, x: Arrays) -> Arrays:
        """`x` (n, ..., channels) scaled, float32."""
        return map_arrays(self.scale_array, x)

    def scale_array(self, array: Array) -> Array:
        """One array scaled, float32."""
        mean, deviation = (self._broadcast(constants) for constants in (self.mean, self.deviation))
        return np.asarray((array - mean) / deviation, np.float32)

    def undo_array(self, array: Array) -> Array:
        """One scaled array as it was before, float32."""
        mean, deviation = (self._broadcast(constants) for constants in (self.mean, self.deviation))
        return np.asarray(array * deviation + mean, np.float32)

    def _broadcast(self, constants: tuple[float, ...]) -> Array:
        return np.array(constants).reshape(-1, *[1] * (-1 - self.axis))

    def describe(self, name: str) -> str:
        """The constants, for the report: a device needs them."""
        constant_texts = [
            ", ".join(f"{constant:.9g}" for constant in constants) for constants in (self.mean, self.deviation)
        ]
        axis_name = "channel" if self.axis == -1 else "band"
        constant_note = (
            f"; {axis_name} {', '.join(map(str, self.constant_channels))} never changes in training"
            if self.constant_channels
            else ""
        )
        return (
            f"{name}: standardized by the training split: mean [{constant_texts[0]}], deviation [{constant_texts[1]}]; "
            f"a device must too{constant_note}"
        )
