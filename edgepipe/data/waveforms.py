"""Waveforms kept besides their features, for `augment:` to change."""

from dataclasses import dataclass
from typing import final

from edgepipe.core.arrays import Array
from edgepipe.data.sound_features import SoundFeatures
from edgepipe.data.standardization import Scaling


@final
@dataclass(frozen=True)
class TrainingWaveforms:
    """The waveforms (n, samples) of the training samples, in their order, float32 in [-1, 1]."""

    waveforms: Array
    features: SoundFeatures
    noises: tuple[Array, ...] = ()  # waveforms (samples,) of any length, at the rate of the features
    scaling: Scaling | None = None  # fitted to the unaugmented training split

    def compute_inputs(self, waveforms: Array) -> Array:
        """The model's input for waveforms (b, samples): their features, standardized if the data is."""
        features = self.features.compute(waveforms)
        return features if self.scaling is None else self.scaling.scale_array(features)
