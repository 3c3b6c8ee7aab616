"""Samples for the models of the corpus: correlated images, sound, series, token ids and tables, with or without labels.

Each function here returns a sampler: called with a generator and a count, it gives a SampleSet of that many samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = Array | dict[str, Array]


@dataclass(frozen=True)
class SampleSet:
    """Samples, one array or one per input name, and their labels where there is a task to learn."""

    samples: Arrays
    labels: Array | None = None


Sampler = Callable[[np.random.Generator, int], SampleSet]


def images(size: int = 16, channels: int = 3) -> Sampler:
    """Smooth random pictures in [0, 1] whose channels are correlated, with some pixel noise."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        coarse = generator.normal(0, 1, (count, 5, 5, channels)) + generator.normal(0, 1, (count, 5, 5, 1))
        smooth = np.einsum("ya,xb,nabc->nyxc", _interpolation(size, 5), _interpolation(size, 5), coarse)
        brightness, contrast = generator.normal(0.5, 0.15, (count, 1, 1, 1)), generator.gamma(4, 0.04, (count, 1, 1, 1))
        pixels = brightness + contrast * smooth + generator.normal(0, 0.03, smooth.shape)
        return SampleSet(np.clip(pixels, 0, 1).astype("float32"))

    return sample


def _interpolation(fine: int, coarse: int) -> Array:
    """The (fine, coarse) matrix of linear interpolation."""
    positions = np.linspace(0, coarse - 1, fine)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(coarse)))


def videos(frames: int = 4, size: int = 8, channels: int = 1) -> Sampler:
    """Pictures that drift to the right from frame to frame."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        wide = np.asarray(images(size + frames, channels)(generator, count).samples)
        return SampleSet(np.stack([wide[:, :size, frame : frame + size] for frame in range(frames)], axis=1))

    return sample


def audio(length: int = 256) -> Sampler:
    """Noise and one tone of random frequency and loudness, (length, 1); the loudness spans two decades."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        frequencies, phases = generator.uniform(0.02, 0.45, (count, 1)), generator.uniform(0, 2 * np.pi, (count, 1))
        loudness = 10 ** generator.uniform(-2, 0, (count, 1))
        tone = loudness * np.sin(2 * np.pi * frequencies * np.arange(length) + phases)
        return SampleSet((tone + generator.normal(0, 0.01, tone.shape)).astype("float32")[..., None])

    return sample


def series(steps: int = 16, features: int = 4, scale: float = 1.0) -> Sampler:
    """Random walks that are pulled back to zero: what sensors show over time."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        values = generator.normal(0, 1, (count, steps, features))
        for step in range(1, steps):
            values[:, step] = 0.8 * values[:, step - 1] + 0.6 * values[:, step]
        return SampleSet((scale * values).astype("float32"))

    return sample


def table(features: int = 8) -> Sampler:
    """Rows of correlated features, some of them skewed."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        rows = generator.normal(0, 1, (count, 3)) @ generator.normal(0, 0.6, (3, features))
        rows += generator.normal(0, 0.5, rows.shape)
        rows[:, ::3] = np.exp(0.5 * rows[:, ::3])
        return SampleSet(rows.astype("float32"))

    return sample


def measurements(features: int = 6) -> Sampler:
    """Rows whose features have units of their own: offsets and spreads over three decades."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        rows = np.asarray(table(features)(generator, count).samples)
        scales, offsets = np.geomspace(0.1, 100, features), np.linspace(-3, 3, features)
        return SampleSet(((rows + offsets) * scales).astype("float32"))

    return sample


def positive_table(features: int = 8, low: float = 0.05, high: float = 4.0) -> Sampler:
    """Rows of positive numbers, more of them small than large."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        return SampleSet((low + (high - low) * generator.beta(1.5, 3, (count, features))).astype("float32"))

    return sample


def incomplete_table(features: int = 8, missing: float = -999.0) -> Sampler:
    """Rows in which one value in five is missing and stands as `missing`."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        rows = np.asarray(table(features)(generator, count).samples)
        return SampleSet(np.where(generator.random(rows.shape) < 0.2, np.float32(missing), rows))

    return sample


def tokens(length: int = 16, vocabulary: int = 40, dtype: str = "int32") -> Sampler:
    """Token ids, frequent ones first, padded behind with 0 to `length`."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        ids = 1 + np.floor((vocabulary - 1) * generator.beta(0.8, 2, (count, length)))
        return SampleSet((ids * _valid_steps(generator, count, length)).astype(dtype))

    return sample


def categories(*sizes: int, dtype: str = "int32") -> Sampler:
    """One category per column, column i from `sizes[i]` of them."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        return SampleSet(np.stack([generator.integers(0, size, count) for size in sizes], axis=1).astype(dtype))

    return sample


def padding_mask(length: int = 16) -> Sampler:
    """1 for valid steps, 0 for the padding behind them."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        return SampleSet(_valid_steps(generator, count, length).astype("float32"))

    return sample


def _valid_steps(generator: np.random.Generator, count: int, length: int) -> Array:
    return np.arange(length) < generator.integers(length // 2, length + 1, (count, 1))


def named(**samplers: Sampler) -> Sampler:
    """One sampler per input name."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        arrays = {name: np.asarray(sampler(generator, count).samples) for name, sampler in samplers.items()}
        return SampleSet(arrays)

    return sample


def grating_task(size: int = 12, channels: int = 1, classes: int = 4) -> Sampler:
    """Noisy stripes; the label is their direction."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        labels = generator.integers(0, classes, count)
        angles = np.pi * labels / classes + generator.normal(0, 0.06, count)
        rows, columns = np.mgrid[:size, :size]
        across = np.cos(angles)[:, None, None] * columns + np.sin(angles)[:, None, None] * rows
        phases, contrasts = generator.uniform(0, 2 * np.pi, (count, 1, 1)), generator.uniform(0.2, 0.5, (count, 1, 1))
        pixels = (0.5 + contrasts * np.sin(1.6 * across + phases))[..., None].repeat(channels, axis=-1)
        pixels += generator.normal(0, 0.06, pixels.shape)
        return SampleSet(np.clip(pixels, 0, 1).astype("float32"), labels)

    return sample


def tone_task(steps: int = 16, features: int = 2, classes: int = 3) -> Sampler:
    """Noisy oscillations; the label is the frequency."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        labels = generator.integers(0, classes, count)
        phases = generator.uniform(0, 2 * np.pi, (count, 1, 1)) + 1.3 * np.arange(features)
        turns = 2 * np.pi * np.array([1.0, 2.2, 4.0, 6.5])[labels][:, None, None] / 16 * np.arange(steps)[:, None]
        values = generator.uniform(0.7, 1.3, (count, 1, 1)) * np.sin(turns + phases)
        return SampleSet((values + generator.normal(0, 0.1, values.shape)).astype("float32"), labels)

    return sample


def padded_tone_task(steps: int = 16, features: int = 2, padding: float = -10.0) -> Sampler:
    """Oscillations of different length, padded behind with `padding`; the label is the frequency."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        tones = tone_task(steps, features)(generator, count)
        is_valid = _valid_steps(generator, count, steps)[..., None]
        return SampleSet(np.where(is_valid, np.asarray(tones.samples), np.float32(padding)), tones.labels)

    return sample


def topic_task(
    length: int = 16, vocabulary: int = 40, classes: int = 4, dtype: str = "int32", topical_share: float = 0.6
) -> Sampler:
    """Padded token ids; the label is the part of the vocabulary from which `topical_share` of them come."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        labels = generator.integers(0, classes, count)
        width = (vocabulary - 1) // classes
        topical = 1 + labels[:, None] * width + generator.integers(0, width, (count, length))
        common = generator.integers(1, vocabulary, (count, length))
        ids = np.where(generator.random((count, length)) < topical_share, topical, common)
        return SampleSet((ids * _valid_steps(generator, count, length)).astype(dtype), labels)

    return sample


def marked_step_task(length: int = 12, values: int = 4) -> Sampler:
    """`steps` (value one-hot, mark) and `mask`; the label is the value of the one valid step that is marked.

    Half of the masked steps carry a mark as well: who reads them, gets the label wrong.
    """

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        codes, is_marked, is_valid, labels = _marked_steps(generator, count, length, values)
        is_marked |= ~is_valid & (generator.random(is_marked.shape) < 0.5)
        steps = np.concatenate([np.eye(values)[codes], 2.0 * is_marked[..., None]], axis=-1)
        steps += generator.normal(0, 0.05, steps.shape)
        return SampleSet({"steps": steps.astype("float32"), "mask": is_valid.astype("float32")}, labels)

    return sample


def marked_token_task(length: int = 12, values: int = 4, dtype: str = "int32") -> Sampler:
    """Padded token ids, 1 to `values` plain and the next `values` marked; the label is the one marked value."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        codes, is_marked, is_valid, labels = _marked_steps(generator, count, length, values)
        return SampleSet(((1 + codes + values * is_marked) * is_valid).astype(dtype), labels)

    return sample


def marked_so_far_task(length: int = 10, values: int = 3) -> Sampler:
    """Token ids as in `marked_token_task`; the label of each step is the marked value up to it, 0 before the mark."""

    def sample(generator: np.random.Generator, count: int) -> SampleSet:
        codes, is_marked, _, labels = _marked_steps(generator, count, length, values)
        is_known = np.cumsum(is_marked, axis=1) > 0
        return SampleSet((1 + codes + values * is_marked).astype("int32"), is_known * (1 + labels[:, None]))

    return sample


def _marked_steps(
    generator: np.random.Generator, count: int, length: int, values: int
) -> tuple[Array, Array, Array, Array]:
    """The value of each step, which one is marked, which are valid, and the marked value."""
    codes = generator.integers(0, values, (count, length))
    is_valid = _valid_steps(generator, count, length)
    positions = np.floor(generator.random(count) * is_valid.sum(axis=1)).astype(int)
    return codes, np.arange(length) == positions[:, None], is_valid, codes[np.arange(count), positions]
