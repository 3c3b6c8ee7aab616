"""Random changes of a batch, in NumPy: the same for the same generator, in every process.

Keras has layers for much of this, but they draw from generators of their own. Here a batch depends on nothing but its
samples and the generator it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.augmentation_options import IMAGES, SPECTROGRAMS, WINDOWS, Augment
from edgepipe.data.splits import Splits
from edgepipe.data.waveforms import Waves
from edgepipe.training import rand_augment, waveform_augmentation
from edgepipe.training.waveform_augmentation import Sounds

Change = Callable[[Array, np.random.Generator], Array]


@final
@dataclass(frozen=True)
class Augmenter:
    """Changes batches of samples (b, ...) as the options say."""

    options: Augment
    changes: tuple[Change, ...]
    classes: int | None
    sounds: Sounds | None = None

    @property
    def soft(self) -> bool:
        """Whether labels become shares of classes, (b, classes)."""
        return self.options.mixup is not None or self.options.cutmix is not None

    def __call__(self, chosen: Array, x: Array, y: Any, random: np.random.Generator) -> tuple[Array, Any]:
        """The batch, changed: x float32 of the same shape; y as it was, or shares of classes if `soft`.

        Where sound is changed, x is made anew of the waveforms of the training samples `chosen`.
        """
        x = x if self.sounds is None else self.sounds(chosen, random)
        for change in self.changes:
            x = change(x, random)
        if not self.soft:
            return np.ascontiguousarray(x, np.float32), y
        shares = np.eye(int(self.classes or 0), dtype=np.float32)[np.ravel(y)]
        mix = mixup if self.options.mixup is not None else cutmix
        x, shares = mix(x, shares, float(self.options.mixup or self.options.cutmix or 1.0), random)
        return np.ascontiguousarray(x, np.float32), shares

    def describe(self) -> str:
        """What is done, in order, for the report."""
        return ", ".join(f"{name} {_shown(getattr(self.options, name))}" for name in self.options.named)


def _shown(value: Any) -> str:
    return str(value.model_dump()) if hasattr(value, "model_dump") else str(value)


def augmenter(data: Splits, classes: int | None) -> Augmenter | None:
    """What `augment:` asks for, for the training samples of `data`; None if it asks for nothing.

    Raises:
        InputError: something that these samples, or this task, cannot be changed by.
    """
    options, x = data.augment, data.train.x
    if options is None:
        return None
    if isinstance(x, dict):
        raise InputError("`augment:` changes one input, and the samples have several; do it in a function of your own")
    deviation = x.reshape(-1, x.shape[-1]).std(axis=0) if options.jitter is not None else None
    known = data.preprocessing.pixels if data.preprocessing is not None else None
    limits = rand_augment.limits_of(x, known and known.given) if options.rand_augment is not None else None
    return make(options, tuple(x.shape[1:]), classes, deviation, data.waves, limits)


def make(
    options: Augment,
    shape: tuple[int, ...],
    classes: int | None,
    deviation: Array | None = None,
    waves: Waves | None = None,
    limits: tuple[float, float] | None = None,
) -> Augmenter:
    """The augmenter for samples of `shape`.

    Args:
        options: what is asked for.
        shape: of one sample: (height, width, channels), (frames, bands, 1) or (time, channels).
        classes: of a classifier with one label a sample; None for every other task.
        deviation: of each channel over the training split, (channels,), for jitter.
        waves: of the training samples, for what changes sound.
        limits: black and white of images, for rand_augment; None: 0 and 1.

    Raises:
        InputError: something that these samples, or this task, cannot be changed by.
    """
    for name in options.named:
        _check(name, options, shape, classes)
    if options.sound and waves is None:
        raise InputError(
            f"augment: {options.sound[0]} changes waveforms, and samples of shape {shape} come without any"
        )
    spread = np.ones(shape[-1]) if deviation is None else deviation
    makers: dict[str, Callable[[Any], Change]] = {
        "flip": lambda how: lambda x, random: flip(x, how, random),
        "crop": lambda edge: lambda x, random: crop(x, edge, random),
        "rotate": lambda degrees: lambda x, random: rotate(x, degrees, random),
        "rand_augment": lambda o: lambda x, random: rand_augment.change(x, o, limits or (0.0, 1.0), random),
        "scale": lambda by: lambda x, random: scale(x, by, random),
        "rotation": lambda degrees: lambda x, random: rotation(x, degrees, random),
        "jitter": lambda by: lambda x, random: jitter(x, by * spread, random),
        "spec_augment": lambda o: lambda x, random: spec_augment(x, o.time, o.frequency, o.masks, random),
        "cutout": lambda side: lambda x, random: cutout(x, side, random),
    }
    changes = tuple(makers[n](getattr(options, n)) for n in options.named if n in makers)
    sounds = waveform_augmentation.make(options, waves) if options.sound and waves is not None else None
    return Augmenter(options, changes, classes, sounds)


def _check(name: str, options: Augment, shape: tuple[int, ...], classes: int | None) -> None:
    rank = 3 if name in IMAGES + SPECTROGRAMS else 2 if name in WINDOWS else len(shape)
    if len(shape) != rank:
        what = "images (height, width, channels)" if rank == 3 else "windows (time, channels)"
        raise InputError(f"augment: {name} is for {what}; the samples have shape {shape}")
    if name in ("mixup", "cutmix") and classes is None:
        raise InputError(f"augment: {name} mixes classes, and this task has none with one label a sample")
    if name == "rotation" and shape[-1] % 3:
        raise InputError(f"augment: rotation turns three axes at a time; {shape[-1]} channels are no multiple of 3")
    limit = min(shape[:2]) if rank == 3 else 0
    for option in ("crop", "cutout"):
        value = getattr(options, option)
        if name == option and value >= limit:
            raise InputError(f"augment: {option} {value} must be below the shorter side of the samples, {limit}")


def flip(x: Array, how: str, random: np.random.Generator) -> Array:
    """Mirror images (b, h, w, c), each with a chance of one half, each way by itself."""
    result = x
    for axis, names in ((2, ("horizontal", "both")), (1, ("vertical", "both"))):
        if how in names:
            turned = random.random(len(x)) < 0.5
            result = np.where(turned[:, None, None, None], np.flip(result, axis), result)
    return result


def crop(x: Array, edge: int, random: np.random.Generator) -> Array:
    """Pad images by `edge` zeros on each side and crop them to their size somewhere (He et al. 2015, section 4.2)."""
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    places = random.integers(0, 2 * edge + 1, (len(x), 2))
    height, width = x.shape[1:3]
    return np.stack([p[r : r + height, c : c + width] for p, (r, c) in zip(padded, places, strict=True)])


def rotate(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Turn images about their middle, bilinear; zeros come in from outside."""
    from scipy.ndimage import rotate as turn

    angles = random.uniform(-degrees, degrees, len(x))
    return np.stack([turn(image, angle, reshape=False, order=1) for image, angle in zip(x, angles, strict=True)])


def cutout(x: Array, side: int, random: np.random.Generator) -> Array:
    """A square of zeros in each image; as in the paper its middle lies inside, and a part of it may not."""
    height, width = x.shape[1:3]
    rows, columns = random.integers(0, height, len(x)), random.integers(0, width, len(x))
    hidden = _within(rows - side // 2, side, height)[:, :, None] & _within(columns - side // 2, side, width)[:, None, :]
    return np.where(hidden[..., None], np.float32(0), x)


def _within(start: Array, length: Array | int, size: int) -> Array:
    """Which of 0..size-1 lie in start..start+length-1, (b, size)."""
    places = np.arange(size)
    return np.asarray((places >= np.reshape(start, (-1, 1))) & (places < np.reshape(start + length, (-1, 1))))


def spec_augment(x: Array, time: int, frequency: int, masks: int, random: np.random.Generator) -> Array:
    """Hide stretches of frames and of bands of (b, frames, bands, c) behind each sample's mean."""
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    for axis, most in ((1, time), (2, frequency)):
        for _ in range(masks):
            size = x.shape[axis]
            length = random.integers(0, min(most, size) + 1, len(x))
            hidden = _within(random.integers(0, size - length + 1), length, size)
            x = np.where(hidden[:, :, None, None] if axis == 1 else hidden[:, None, :, None], mean, x)
    return x


def scale(x: Array, by: float, random: np.random.Generator) -> Array:
    """Each channel of each window (b, time, c) times a factor of mean 1 and deviation `by`."""
    return np.asarray(x * random.normal(1, by, (len(x), 1, x.shape[-1])))


def jitter(x: Array, deviation: Array, random: np.random.Generator) -> Array:
    """Windows (b, time, c) with normal noise of this deviation, (c,)."""
    return np.asarray(x + random.normal(0, 1, x.shape) * deviation)


def rotation(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Each three channels in a row of windows (b, time, c), turned together about one random axis a window."""
    from scipy.spatial.transform import Rotation

    axes = random.normal(size=(len(x), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    turns = Rotation.from_rotvec(axes * np.radians(random.uniform(-degrees, degrees, (len(x), 1)))).as_matrix()
    triples = x.reshape(*x.shape[:2], -1, 3)
    return np.asarray(np.einsum("bij,btkj->btki", turns, triples)).reshape(x.shape)


def mixup(x: Array, shares: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Each sample blended with another of the batch, and so its label: shares (b, classes)."""
    part = random.beta(alpha, alpha, len(x)).astype(np.float32)
    other = random.permutation(len(x))
    wide = part.reshape(-1, *[1] * (x.ndim - 1))
    return wide * x + (1 - wide) * x[other], part[:, None] * shares + (1 - part[:, None]) * shares[other]


def cutmix(x: Array, shares: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """A rectangle of each image from another of the batch; labels are shared as the pixels are."""
    height, width = x.shape[1:3]
    side = np.sqrt(1 - random.beta(alpha, alpha, len(x)))
    other = random.permutation(len(x))
    inside = []
    for size in (height, width):
        length = np.rint(side * size).astype(int)
        middle = random.integers(0, size, len(x))
        inside.append(_within(middle - length // 2, length, size))
    taken = inside[0][:, :, None] & inside[1][:, None, :]
    part = (1 - taken.mean(axis=(1, 2))).astype(np.float32)[:, None]
    return np.where(taken[..., None], x[other], x), part * shares + (1 - part) * shares[other]
