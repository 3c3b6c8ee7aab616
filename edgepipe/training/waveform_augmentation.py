"""Random augmentation of waveforms (b, samples), in NumPy.

audiomentations has these too, and the tests compare with it; but it draws from the global generators of `random` and
NumPy, and here a batch must depend only on its samples and the generator passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.data.augmentation_options import Augment, Noise
from edgepipe.data.waveforms import TrainingWaveforms

SPECTRAL_SLOPE_BY_COLOR = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # the power spectrum falls as 1 / f ** slope
MIN_NOISE_HZ = 50.0  # Hz; synthetic noise is flat below it, or most of its power would be inaudible
WaveformChangeFn = Callable[[Array, np.random.Generator], Array]


@final
@dataclass(frozen=True)
class WaveformAugmenter:
    """Augments the waveforms of training samples and computes their features."""

    waves: TrainingWaveforms
    change_fns: tuple[WaveformChangeFn, ...]

    def __call__(self, indices: Array, random: np.random.Generator) -> Array:
        """The training samples `indices` (b,), augmented: (b, frames, bands, 1), or (b, samples, 1) without features.

        Waveforms are clipped to [-1, 1], as by an ADC.
        """
        waveforms = self.waves.waveforms[indices]
        for change_fn in self.change_fns:
            waveforms = change_fn(waveforms, random)
        return self.waves.compute_inputs(np.clip(waveforms, -1, 1))


def build_waveform_augmenter(options: Augment, waves: TrainingWaveforms) -> WaveformAugmenter:
    """The augmenter for the waveform changes of `options`, in their order."""
    sampling_rate, change_fns = waves.features.rate, list[WaveformChangeFn]()
    if (max_seconds := options.shift) is not None:
        change_fns.append(lambda x, random: shift_waveforms(x, round(max_seconds * sampling_rate), random))
    if (decibel_range := options.gain) is not None:
        change_fns.append(lambda x, random: change_volume(x, decibel_range, random))
    if (noise_options := options.noise) is not None:
        change_fns.append(lambda x, random: add_noise(x, noise_options, waves.noises, sampling_rate, random))
    return WaveformAugmenter(waves, tuple(change_fns))


def shift_waveforms(x: Array, max_shift: int, random: np.random.Generator) -> Array:
    """Shift each waveform by up to `max_shift` samples to either side, filled with silence."""
    source_positions = np.arange(x.shape[1]) - random.integers(-max_shift, max_shift + 1, (len(x), 1))
    is_inside = (source_positions >= 0) & (source_positions < x.shape[1])
    return np.where(is_inside, np.take_along_axis(x, np.where(is_inside, source_positions, 0), axis=1), np.float32(0))


def change_volume(x: Array, decibel_range: tuple[float, float], random: np.random.Generator) -> Array:
    """Change the volume of each waveform by a random number of dB in `decibel`, [min, max]."""
    factors = 10 ** (random.uniform(*decibel_range, (len(x), 1)) / 20)
    return np.asarray(x * factors, np.float32)


def add_noise(
    x: Array, options: Noise, noise_recordings: Sequence[Array], sampling_rate: int, random: np.random.Generator
) -> Array:
    """Add noise of one random kind to each waveform at a random signal-to-noise ratio; silence stays silent.

    Args:
        x: waveforms (b, samples).
        options: kinds of noise and range of the ratio in dB.
        noise_recordings: of noise, waveforms (samples,) of any length at `sampling_rate`; empty without a noise folder.
        sampling_rate: sampling rate in Hz.
        random: the generator to draw from.
    """
    added_noise = np.empty_like(x)
    for number, kind_index in enumerate(random.integers(0, len(options.noise_kinds), len(x))):
        noise_kind = options.noise_kinds[kind_index]
        length = x.shape[1]
        noise_wave = (
            random_stretch(noise_recordings, length, random)
            if noise_kind == "folder"
            else colored_noise(noise_kind, length, sampling_rate, random)
        )
        added_noise[number] = noise_wave / max(loudness(noise_wave), 1e-9)
    target_loudness = loudness(x) / 10 ** (random.uniform(*options.snr, (len(x), 1)) / 20)
    return np.asarray(x + added_noise * target_loudness, np.float32)


def loudness(x: Array) -> Array:
    """Root mean square over time, (..., 1)."""
    return np.asarray(np.sqrt(np.square(x, dtype=np.float64).mean(axis=-1, keepdims=True)))


def colored_noise(color: str, length: int, sampling_rate: int, random: np.random.Generator) -> Array:
    """Normal noise whose power falls with the frequency f as f^0 (white), 1/f (pink) or 1/f^2 (brown).

    Args:
        color: "white", "pink" or "brown".
        length: in samples.
        sampling_rate: sampling rate in Hz.
        random: the generator to draw from.

    Returns:
        Noise (length,) of arbitrary loudness.
    """
    white_noise = random.normal(size=length)
    if SPECTRAL_SLOPE_BY_COLOR[color] == 0:
        return white_noise
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / sampling_rate), MIN_NOISE_HZ)
    return np.fft.irfft(np.fft.rfft(white_noise) * frequencies ** (-SPECTRAL_SLOPE_BY_COLOR[color] / 2), length)


def random_stretch(recordings: Sequence[Array], length: int, random: np.random.Generator) -> Array:
    """A random section of `length` samples of a random recording; a shorter one repeats."""
    recording = recordings[int(random.integers(0, len(recordings)))]
    start = random.integers(0, max(len(recording) - length, 0) + 1)
    return np.take(recording, np.arange(start, start + length), mode="wrap")
