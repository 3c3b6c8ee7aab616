"""Random changes of waveforms (b, samples), in NumPy.

audiomentations has these too, and the tests hold ours against it; it draws from the global generators of `random` and
NumPy, though, and here a batch must depend on nothing but its samples and the generator it is given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.data.augmentation_options import Augment, Noise
from edgepipe.data.waveforms import Waves

FALL = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # of power, as a power of the frequency
LOWEST = 50.0  # Hz; below, the spectrum of made noise is flat, or most of it would lie where nobody hears it
Change = Callable[[Array, np.random.Generator], Array]


@final
@dataclass(frozen=True)
class Sounds:
    """Gives batches of training samples whose waveforms were changed before their features were computed."""

    waves: Waves
    changes: tuple[Change, ...]

    def __call__(self, chosen: Array, random: np.random.Generator) -> Array:
        """The training samples `chosen` (b,), anew: (b, frames, bands, 1), or (b, samples, 1) without features.

        Waveforms end at -1 and 1, as a converter's do.
        """
        changed = self.waves.samples[chosen]
        for change in self.changes:
            changed = change(changed, random)
        return self.waves.inputs(np.clip(changed, -1, 1))


def make(options: Augment, waves: Waves) -> Sounds:
    """What `options` say of sound, in their order."""
    rate, changes = waves.features.rate, list[Change]()
    if (most := options.shift) is not None:
        changes.append(lambda x, random: shift(x, round(most * rate), random))
    if (decibel := options.gain) is not None:
        changes.append(lambda x, random: gain(x, decibel, random))
    if (asked := options.noise) is not None:
        changes.append(lambda x, random: noise(x, asked, waves.noises, rate, random))
    return Sounds(waves, tuple(changes))


def shift(x: Array, most: int, random: np.random.Generator) -> Array:
    """Move each waveform by up to `most` samples to either side; silence comes in."""
    places = np.arange(x.shape[1]) - random.integers(-most, most + 1, (len(x), 1))
    inside = (places >= 0) & (places < x.shape[1])
    return np.where(inside, np.take_along_axis(x, np.where(inside, places, 0), axis=1), np.float32(0))


def gain(x: Array, decibel: tuple[float, float], random: np.random.Generator) -> Array:
    """Each waveform louder or softer by its own number of `decibel`, [least, most]."""
    factors = 10 ** (random.uniform(*decibel, (len(x), 1)) / 20)
    return np.asarray(x * factors, np.float32)


def noise(x: Array, asked: Noise, recordings: Sequence[Array], rate: int, random: np.random.Generator) -> Array:
    """Add noise of one kind to each waveform, as loud as its signal over noise in dB says; nothing to silence."""
    added = np.empty_like(x)
    for number, kind in enumerate(random.integers(0, len(asked.kinds), len(x))):
        name = asked.kinds[kind]
        length = x.shape[1]
        made = stretch(recordings, length, random) if name == "folder" else colored(name, length, rate, random)
        added[number] = made / max(loudness(made), 1e-9)
    wanted = loudness(x) / 10 ** (random.uniform(*asked.snr, (len(x), 1)) / 20)
    return np.asarray(x + added * wanted, np.float32)


def loudness(x: Array) -> Array:
    """Root mean square over time, (..., 1)."""
    return np.asarray(np.sqrt(np.square(x, dtype=np.float64).mean(axis=-1, keepdims=True)))


def colored(color: str, length: int, rate: int, random: np.random.Generator) -> Array:
    """Normal noise whose power falls with the frequency f as f^0 (white), 1/f (pink) or 1/f^2 (brown)."""
    flat = random.normal(size=length)
    if FALL[color] == 0:
        return flat
    frequencies = np.maximum(np.fft.rfftfreq(length, 1 / rate), LOWEST)
    return np.fft.irfft(np.fft.rfft(flat) * frequencies ** (-FALL[color] / 2), length)


def stretch(recordings: Sequence[Array], length: int, random: np.random.Generator) -> Array:
    """`length` samples of one of the recordings, from somewhere; one that is shorter begins again at its end."""
    recording = recordings[int(random.integers(0, len(recordings)))]
    start = random.integers(0, max(len(recording) - length, 0) + 1)
    return np.take(recording, np.arange(start, start + length), mode="wrap")
