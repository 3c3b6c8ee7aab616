"""Random augmentation of batches, in NumPy: reproducible for a generator, in every process.

Keras has layers for much of this, but they draw from their own generators. Here a batch depends only on its samples and
the generator passed in.
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
    """Augments batches of samples (b, ...) as the options say."""

    options: Augment
    changes: tuple[Change, ...]
    class_count: int | None
    waveform_augmenter: WaveformAugmenter | None = None

    @property
    def has_soft_labels(self) -> bool:
        """Whether labels become class probabilities, (b, classes)."""
        return self.options.mixup is not None or self.options.cutmix is not None

    def __call__(self, indices: Array, x: Array, y: Any, random: np.random.Generator) -> tuple[Array, Any]:
        """Augment one batch.

        Args:
            indices: of its samples in the training split, (b,); selects the waveforms if these are augmented.
            x: samples (b, ...).
            y: labels (b,) or None.
            random: the generator to draw from.

        Returns:
            x float32 of the same shape; y unchanged, or class probabilities (b, classes) if `has_soft_labels`.
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
        """The changes in order, for the report."""
        return ", ".join(f"{name} {_option_text(getattr(self.options, name))}" for name in self.options.change_names)


def _option_text(option: Any) -> str:
    return str(option.model_dump()) if hasattr(option, "model_dump") else str(option)


def augmenter_for(splits: Splits, class_count: int | None) -> BatchAugmenter | None:
    """The augmenter for the training samples of `splits`; None without `augment:`.

    Raises:
        InputError: a change that does not apply to these samples or this task.
    """
    options, x = splits.augment, splits.train.x
    if options is None:
        return None
    if isinstance(x, dict):
        raise InputError(
            "`augment:` changes one input, and the samples have several; augment them in your own function"
        )
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
        options: the parsed `augment:`.
        shape: of one sample: (height, width, channels), (frames, bands, 1) or (time, channels).
        class_count: of a classifier with one label a sample; None for every other task.
        deviation: of each channel over the training split, (channels,), for jitter; None for 1.
        waves: waveforms of the training samples, for changes of sound; None if there are none.
        limits: pixel values of black and white, for rand_augment; None for 0 and 1.

    Raises:
        InputError: a change that does not apply to these samples or this task.
    """
    for name in options.change_names:
        _check_change(name, options, shape, class_count)
    if options.waveform_change_names and waves is None:
        raise InputError(
            f"augment: {options.waveform_change_names[0]} changes waveforms, and samples of shape {shape} have none"
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
        raise InputError(f"augment: {name} mixes classes, and this task does not have one class label a sample")
    if name == "rotation" and shape[-1] % 3:
        raise InputError(f"augment: rotation turns three axes at a time; {shape[-1]} channels are not a multiple of 3")
    limit = min(shape[:2]) if rank == 3 else 0
    for option in ("crop", "cutout"):
        size = getattr(options, option)
        if name == option and size >= limit:
            raise InputError(f"augment: {option} {size} must be below the shorter side of the samples, {limit}")


def flip(x: Array, direction: str, random: np.random.Generator) -> Array:
    """Mirror images (b, h, w, c), each way independently with probability 0.5."""
    images = x
    for axis, names in ((2, ("horizontal", "both")), (1, ("vertical", "both"))):
        if direction in names:
            flip_mask = random.random(len(x)) < 0.5
            images = np.where(flip_mask[:, None, None, None], np.flip(images, axis), images)
    return images


def crop(x: Array, edge: int, random: np.random.Generator) -> Array:
    """Pad images by `edge` zeros on each side and crop randomly to their size (He et al. 2015, section 4.2)."""
    padded_images = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    offsets = random.integers(0, 2 * edge + 1, (len(x), 2))
    height, width = x.shape[1:3]
    return np.stack([p[r : r + height, c : c + width] for p, (r, c) in zip(padded_images, offsets, strict=True)])


def rotate(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Rotate images about their centre, bilinear, filled with zeros."""
    from scipy.ndimage import rotate as rotate_image

    angles = random.uniform(-degrees, degrees, len(x))
    return np.stack(
        [rotate_image(image, angle, reshape=False, order=1) for image, angle in zip(x, angles, strict=True)]
    )


def cutout(x: Array, side: int, random: np.random.Generator) -> Array:
    """Zero a square in each image; as in the paper its centre is inside the image, its edges may not be."""
    height, width = x.shape[1:3]
    rows, columns = random.integers(0, height, len(x)), random.integers(0, width, len(x))
    hidden_mask = (
        _span_mask(rows - side // 2, side, height)[:, :, None]
        & _span_mask(columns - side // 2, side, width)[:, None, :]
    )
    return np.where(hidden_mask[..., None], np.float32(0), x)


def _span_mask(start: Array, length: Array | int, size: int) -> Array:
    """Mask (b, size) of the positions start..start+length-1."""
    positions = np.arange(size)
    return np.asarray((positions >= np.reshape(start, (-1, 1))) & (positions < np.reshape(start + length, (-1, 1))))


def spec_augment(x: Array, time: int, frequency: int, masks: int, random: np.random.Generator) -> Array:
    """Mask spans of frames and of bands with each sample's mean.

    Args:
        x: spectrograms (b, frames, bands, c).
        time: maximum frames per mask.
        frequency: maximum bands per mask.
        masks: of each kind.
        random: the generator to draw from.
    """
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    for axis, max_length in ((1, time), (2, frequency)):
        for _ in range(masks):
            size = x.shape[axis]
            length = random.integers(0, min(max_length, size) + 1, len(x))
            hidden_mask = _span_mask(random.integers(0, size - length + 1), length, size)
            x = np.where(hidden_mask[:, :, None, None] if axis == 1 else hidden_mask[:, None, :, None], mean, x)
    return x


def scale(x: Array, deviation: float, random: np.random.Generator) -> Array:
    """Scale each channel of each window (b, time, c) by a normal factor of mean 1 and this deviation."""
    return np.asarray(x * random.normal(1, deviation, (len(x), 1, x.shape[-1])))


def jitter(x: Array, deviation: Array, random: np.random.Generator) -> Array:
    """Add normal noise of this deviation (c,) to windows (b, time, c)."""
    return np.asarray(x + random.normal(0, 1, x.shape) * deviation)


def rotation(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Rotate each three consecutive channels of windows (b, time, c) about one random axis per window."""
    from scipy.spatial.transform import Rotation

    axes = random.normal(size=(len(x), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    matrices = Rotation.from_rotvec(axes * np.radians(random.uniform(-degrees, degrees, (len(x), 1)))).as_matrix()
    triples = x.reshape(*x.shape[:2], -1, 3)
    return np.asarray(np.einsum("bij,btkj->btki", matrices, triples)).reshape(x.shape)


def mixup(x: Array, shares: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Blend each sample and its label with another of the batch.

    Args:
        x: samples (b, ...).
        shares: class probabilities (b, classes).
        alpha: of the Beta distribution of the blend weight.
        random: the generator to draw from.

    Returns:
        Blended samples and class probabilities.
    """
    weight = random.beta(alpha, alpha, len(x)).astype(np.float32)
    partners = random.permutation(len(x))
    x_weight, label_weight = weight.reshape(-1, *[1] * (x.ndim - 1)), weight[:, None]
    mixed_shares = label_weight * shares + (1 - label_weight) * shares[partners]
    return x_weight * x + (1 - x_weight) * x[partners], mixed_shares


def cutmix(x: Array, shares: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Paste a rectangle of another image of the batch into each image; labels are mixed by area.

    Args:
        x: images (b, h, w, c).
        shares: class probabilities (b, classes).
        alpha: of the Beta distribution of the kept area.
        random: the generator to draw from.

    Returns:
        Mixed images and class probabilities.
    """
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
