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
from edgepipe.data.augmentation_options import IMAGE_OPTIONS, SPECTROGRAM_OPTIONS, WINDOW_OPTIONS, Augment
from edgepipe.data.splits import Splits
from edgepipe.data.waveforms import Waves
from edgepipe.training import rand_augment, waveform_augmentation
from edgepipe.training.waveform_augmentation import WaveformAugmenter

Change = Callable[[Array, np.random.Generator], Array]


@final
@dataclass(frozen=True)
class BatchAugmenter:
    """Changes batches of samples (b, ...) as the options say."""

    options: Augment
    changes: tuple[Change, ...]
    class_count: int | None
    waveform_augmenter: WaveformAugmenter | None = None

    @property
    def has_soft_labels(self) -> bool:
        """Whether labels become shares of classes, (b, classes)."""
        return self.options.mixup is not None or self.options.cutmix is not None

    def __call__(self, indices: Array, x: Array, y: Any, random: np.random.Generator) -> tuple[Array, Any]:
        """The batch, changed: x float32 of the same shape; y as it was, or shares of classes if `soft`.

        Where sound is changed, x is made anew of the waveforms of the training samples `chosen`.
        """
        x = x if self.waveform_augmenter is None else self.waveform_augmenter(indices, random)
        for change in self.changes:
            x = change(x, random)
        if not self.has_soft_labels:
            return np.ascontiguousarray(x, np.float32), y
        shares = np.eye(int(self.class_count or 0), dtype=np.float32)[np.ravel(y)]
        mix = mixup if self.options.mixup is not None else cutmix
        x, shares = mix(x, shares, float(self.options.mixup or self.options.cutmix or 1.0), random)
        return np.ascontiguousarray(x, np.float32), shares

    def describe(self) -> str:
        """What is done, in order, for the report."""
        return ", ".join(f"{name} {_option_text(getattr(self.options, name))}" for name in self.options.change_names)


def _option_text(option: Any) -> str:
    return str(option.model_dump()) if hasattr(option, "model_dump") else str(option)


def augmenter_for(splits: Splits, class_count: int | None) -> BatchAugmenter | None:
    """What `augment:` asks for, for the training samples of `data`; None if it asks for nothing.

    Raises:
        InputError: something that these samples, or this task, cannot be changed by.
    """
    options, x = splits.augment, splits.train.x
    if options is None:
        return None
    if isinstance(x, dict):
        raise InputError("`augment:` changes one input, and the samples have several; do it in a function of your own")
    deviation = x.reshape(-1, x.shape[-1]).std(axis=0) if options.jitter is not None else None
    pixels = splits.preprocessing.pixels if splits.preprocessing is not None else None
    limits = rand_augment.pixel_limits(x, pixels and pixels.given) if options.rand_augment is not None else None
    return build_augmenter(options, tuple(x.shape[1:]), class_count, deviation, splits.waves, limits)


def build_augmenter(
    options: Augment,
    shape: tuple[int, ...],
    class_count: int | None,
    deviation: Array | None = None,
    waves: Waves | None = None,
    limits: tuple[float, float] | None = None,
) -> BatchAugmenter:
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
    for name in options.change_names:
        _check_change(name, options, shape, class_count)
    if options.waveform_change_names and waves is None:
        raise InputError(
            f"augment: {options.waveform_change_names[0]} changes waveforms, and samples of shape {shape} come without any"
        )
    channel_deviation = np.ones(shape[-1]) if deviation is None else deviation
    makers: dict[str, Callable[[Any], Change]] = {
        "flip": lambda direction: lambda x, random: flip(x, direction, random),
        "crop": lambda edge: lambda x, random: crop(x, edge, random),
        "rotate": lambda degrees: lambda x, random: rotate(x, degrees, random),
        "rand_augment": lambda o: lambda x, random: rand_augment.augment(x, o, limits or (0.0, 1.0), random),
        "scale": lambda strength: lambda x, random: scale(x, strength, random),
        "rotation": lambda degrees: lambda x, random: rotation(x, degrees, random),
        "jitter": lambda strength: lambda x, random: jitter(x, strength * channel_deviation, random),
        "spec_augment": lambda o: lambda x, random: spec_augment(x, o.time, o.frequency, o.masks, random),
        "cutout": lambda side: lambda x, random: cutout(x, side, random),
    }
    changes = tuple(makers[n](getattr(options, n)) for n in options.change_names if n in makers)
    waveform_augmenter = (
        waveform_augmentation.build_waveform_augmenter(options, waves)
        if options.waveform_change_names and waves is not None
        else None
    )
    return BatchAugmenter(options, changes, class_count, waveform_augmenter)


def _check_change(name: str, options: Augment, shape: tuple[int, ...], class_count: int | None) -> None:
    rank = 3 if name in IMAGE_OPTIONS + SPECTROGRAM_OPTIONS else 2 if name in WINDOW_OPTIONS else len(shape)
    if len(shape) != rank:
        sample_kind = "images (height, width, channels)" if rank == 3 else "windows (time, channels)"
        raise InputError(f"augment: {name} is for {sample_kind}; the samples have shape {shape}")
    if name in ("mixup", "cutmix") and class_count is None:
        raise InputError(f"augment: {name} mixes classes, and this task has none with one label a sample")
    if name == "rotation" and shape[-1] % 3:
        raise InputError(f"augment: rotation turns three axes at a time; {shape[-1]} channels are no multiple of 3")
    limit = min(shape[:2]) if rank == 3 else 0
    for option in ("crop", "cutout"):
        size = getattr(options, option)
        if name == option and size >= limit:
            raise InputError(f"augment: {option} {size} must be below the shorter side of the samples, {limit}")


def flip(x: Array, direction: str, random: np.random.Generator) -> Array:
    """Mirror images (b, h, w, c), each with a chance of one half, each way by itself."""
    images = x
    for axis, names in ((2, ("horizontal", "both")), (1, ("vertical", "both"))):
        if direction in names:
            flip_mask = random.random(len(x)) < 0.5
            images = np.where(flip_mask[:, None, None, None], np.flip(images, axis), images)
    return images


def crop(x: Array, edge: int, random: np.random.Generator) -> Array:
    """Pad images by `edge` zeros on each side and crop them to their size somewhere (He et al. 2015, section 4.2)."""
    padded_images = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    offsets = random.integers(0, 2 * edge + 1, (len(x), 2))
    height, width = x.shape[1:3]
    return np.stack([p[r : r + height, c : c + width] for p, (r, c) in zip(padded_images, offsets, strict=True)])


def rotate(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Turn images about their middle, bilinear; zeros come in from outside."""
    from scipy.ndimage import rotate as turn

    angles = random.uniform(-degrees, degrees, len(x))
    return np.stack([turn(image, angle, reshape=False, order=1) for image, angle in zip(x, angles, strict=True)])


def cutout(x: Array, side: int, random: np.random.Generator) -> Array:
    """A square of zeros in each image; as in the paper its middle lies inside, and a part of it may not."""
    height, width = x.shape[1:3]
    rows, columns = random.integers(0, height, len(x)), random.integers(0, width, len(x))
    hidden_mask = (
        _span_mask(rows - side // 2, side, height)[:, :, None]
        & _span_mask(columns - side // 2, side, width)[:, None, :]
    )
    return np.where(hidden_mask[..., None], np.float32(0), x)


def _span_mask(start: Array, length: Array | int, size: int) -> Array:
    """Which of 0..size-1 lie in start..start+length-1, (b, size)."""
    positions = np.arange(size)
    return np.asarray((positions >= np.reshape(start, (-1, 1))) & (positions < np.reshape(start + length, (-1, 1))))


def spec_augment(x: Array, time: int, frequency: int, masks: int, random: np.random.Generator) -> Array:
    """Hide stretches of frames and of bands of (b, frames, bands, c) behind each sample's mean."""
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    for axis, max_length in ((1, time), (2, frequency)):
        for _ in range(masks):
            size = x.shape[axis]
            length = random.integers(0, min(max_length, size) + 1, len(x))
            hidden_mask = _span_mask(random.integers(0, size - length + 1), length, size)
            x = np.where(hidden_mask[:, :, None, None] if axis == 1 else hidden_mask[:, None, :, None], mean, x)
    return x


def scale(x: Array, deviation: float, random: np.random.Generator) -> Array:
    """Each channel of each window (b, time, c) times a factor of mean 1 and deviation `by`."""
    return np.asarray(x * random.normal(1, deviation, (len(x), 1, x.shape[-1])))


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
    weight = random.beta(alpha, alpha, len(x)).astype(np.float32)
    partners = random.permutation(len(x))
    wide_weight = weight.reshape(-1, *[1] * (x.ndim - 1))
    return wide_weight * x + (1 - wide_weight) * x[partners], weight[:, None] * shares + (1 - weight[:, None]) * shares[
        partners
    ]


def cutmix(x: Array, shares: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """A rectangle of each image from another of the batch; labels are shared as the pixels are."""
    height, width = x.shape[1:3]
    side = np.sqrt(1 - random.beta(alpha, alpha, len(x)))
    partners = random.permutation(len(x))
    axis_masks = []
    for size in (height, width):
        length = np.rint(side * size).astype(int)
        middle = random.integers(0, size, len(x))
        axis_masks.append(_span_mask(middle - length // 2, length, size))
    pasted_mask = axis_masks[0][:, :, None] & axis_masks[1][:, None, :]
    kept_share = (1 - pasted_mask.mean(axis=(1, 2))).astype(np.float32)[:, None]
    return np.where(pasted_mask[..., None], x[partners], x), kept_share * shares + (1 - kept_share) * shares[partners]
