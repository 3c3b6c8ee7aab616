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
from edgepipe.data.augmentation_options import (
    IMAGE_OPTION_NAMES,
    SPECTROGRAM_OPTION_NAMES,
    WINDOW_OPTION_NAMES,
    Augment,
)
from edgepipe.data.splits import DatasetSplits
from edgepipe.data.waveforms import TrainingWaveforms
from edgepipe.training import rand_augment, waveform_augmentation
from edgepipe.training.waveform_augmentation import WaveformAugmenter

BatchChangeFn = Callable[[Array, np.random.Generator], Array]


@final
@dataclass(frozen=True)
class BatchAugmenter:
    """Augments batches of samples (b, ...) as the options say."""

    options: Augment
    change_fns: tuple[BatchChangeFn, ...]
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
        for change_fn in self.change_fns:
            x = change_fn(x, random)
        if not self.has_soft_labels:
            return np.ascontiguousarray(x, np.float32), y
        class_probabilities = np.eye(int(self.class_count or 0), dtype=np.float32)[np.ravel(y)]
        mix_fn = mixup if self.options.mixup is not None else cutmix
        x, class_probabilities = mix_fn(
            x, class_probabilities, float(self.options.mixup or self.options.cutmix or 1.0), random
        )
        return np.ascontiguousarray(x, np.float32), class_probabilities

    def describe(self) -> str:
        """The changes in order, for the report."""
        return ", ".join(f"{name} {_option_text(getattr(self.options, name))}" for name in self.options.change_names)


def _option_text(option: Any) -> str:
    return str(option.model_dump()) if hasattr(option, "model_dump") else str(option)


def build_split_augmenter(splits: DatasetSplits, class_count: int | None) -> BatchAugmenter | None:
    """The augmenter for the training samples of `splits`; None without `augment:`.

    Raises:
        InputError: a change that does not apply to these samples or this task.
    """
    options, x = splits.augment_options, splits.train.x
    if options is None:
        return None
    if isinstance(x, dict):
        raise InputError(
            "`augment:` changes one input, and the samples have several; augment them in your own function"
        )
    deviation = x.reshape(-1, x.shape[-1]).std(axis=0) if options.jitter is not None else None
    pixel_options = splits.preprocessing.pixels if splits.preprocessing is not None else None
    pixel_range = (
        rand_augment.pixel_limits(x, pixel_options and pixel_options.given)
        if options.rand_augment is not None
        else None
    )
    return build_augmenter(options, tuple(x.shape[1:]), class_count, deviation, splits.waveforms, pixel_range)


def build_augmenter(
    options: Augment,
    shape: tuple[int, ...],
    class_count: int | None,
    deviation: Array | None = None,
    waves: TrainingWaveforms | None = None,
    pixel_range: tuple[float, float] | None = None,
) -> BatchAugmenter:
    """The augmenter for samples of `shape`.

    Args:
        options: the parsed `augment:`.
        shape: of one sample: (height, width, channels), (frames, bands, 1) or (time, channels).
        class_count: of a classifier with one label a sample; None for every other task.
        deviation: of each channel over the training split, (channels,), for jitter; None for 1.
        waves: waveforms of the training samples, for changes of sound; None if there are none.
        pixel_range: pixel values of black and white, for rand_augment; None for 0 and 1.

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
    change_fn_factories: dict[str, Callable[[Any], BatchChangeFn]] = {
        "flip": lambda direction: lambda x, random: flip(x, direction, random),
        "crop": lambda edge: lambda x, random: crop(x, edge, random),
        "rotate": lambda degrees: lambda x, random: rotate(x, degrees, random),
        "rand_augment": lambda o: lambda x, random: rand_augment.augment(x, o, pixel_range or (0.0, 1.0), random),
        "scale": lambda strength: lambda x, random: scale_channels(x, strength, random),
        "rotation": lambda degrees: lambda x, random: rotate_sensor_axes(x, degrees, random),
        "jitter": lambda strength: lambda x, random: jitter(x, strength * channel_deviation, random),
        "spec_augment": lambda o: lambda x, random: spec_augment(x, o.time, o.frequency, o.masks, random),
        "cutout": lambda side: lambda x, random: cutout(x, side, random),
    }
    change_fns = tuple(
        change_fn_factories[n](getattr(options, n)) for n in options.change_names if n in change_fn_factories
    )
    waveform_augmenter = (
        waveform_augmentation.build_waveform_augmenter(options, waves)
        if options.waveform_change_names and waves is not None
        else None
    )
    return BatchAugmenter(options, change_fns, class_count, waveform_augmenter)


def _check_change(name: str, options: Augment, shape: tuple[int, ...], class_count: int | None) -> None:
    rank = (
        3 if name in IMAGE_OPTION_NAMES + SPECTROGRAM_OPTION_NAMES else 2 if name in WINDOW_OPTION_NAMES else len(shape)
    )
    if len(shape) != rank:
        sample_kind = "images (height, width, channels)" if rank == 3 else "windows (time, channels)"
        raise InputError(f"augment: {name} is for {sample_kind}; the samples have shape {shape}")
    if name in ("mixup", "cutmix") and class_count is None:
        raise InputError(f"augment: {name} mixes classes, and this task does not have one class label a sample")
    if name == "rotation" and shape[-1] % 3:
        raise InputError(f"augment: rotation turns three axes at a time; {shape[-1]} channels are not a multiple of 3")
    shorter_side = min(shape[:2]) if rank == 3 else 0
    for option in ("crop", "cutout"):
        size = getattr(options, option)
        if name == option and size >= shorter_side:
            raise InputError(f"augment: {option} {size} must be below the shorter side of the samples, {shorter_side}")


def flip(x: Array, direction: str, random: np.random.Generator) -> Array:
    """Mirror images (b, h, w, c), each way independently with probability 0.5."""
    images = x
    for axis, directions in ((2, ("horizontal", "both")), (1, ("vertical", "both"))):
        if direction in directions:
            flip_mask = random.random(len(x)) < 0.5
            images = np.where(flip_mask[:, None, None, None], np.flip(images, axis), images)
    return images


def crop(x: Array, padding: int, random: np.random.Generator) -> Array:
    """Pad images by `edge` zeros on each side and crop randomly to their size (He et al. 2015, section 4.2)."""
    padded_images = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = random.integers(0, 2 * padding + 1, (len(x), 2))
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
    center_rows, center_columns = random.integers(0, height, len(x)), random.integers(0, width, len(x))
    hidden_mask = (
        _span_mask(center_rows - side // 2, side, height)[:, :, None]
        & _span_mask(center_columns - side // 2, side, width)[:, None, :]
    )
    return np.where(hidden_mask[..., None], np.float32(0), x)


def _span_mask(starts: Array, lengths: Array | int, size: int) -> Array:
    """Mask (b, size) of the positions start..start+length-1."""
    axis_positions = np.arange(size)
    return np.asarray(
        (axis_positions >= np.reshape(starts, (-1, 1))) & (axis_positions < np.reshape(starts + lengths, (-1, 1)))
    )


def spec_augment(x: Array, max_frames: int, max_bands: int, mask_count: int, random: np.random.Generator) -> Array:
    """Mask spans of frames and of bands with each sample's mean.

    Args:
        x: spectrograms (b, frames, bands, c).
        max_frames: maximum frames per mask.
        max_bands: maximum bands per mask.
        mask_count: of each kind.
        random: the generator to draw from.
    """
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    for axis, max_length in ((1, max_frames), (2, max_bands)):
        for _ in range(mask_count):
            size = x.shape[axis]
            lengths = random.integers(0, min(max_length, size) + 1, len(x))
            hidden_mask = _span_mask(random.integers(0, size - lengths + 1), lengths, size)
            x = np.where(hidden_mask[:, :, None, None] if axis == 1 else hidden_mask[:, None, :, None], mean, x)
    return x


def scale_channels(x: Array, deviation: float, random: np.random.Generator) -> Array:
    """Scale each channel of each window (b, time, c) by a normal factor of mean 1 and this deviation."""
    return np.asarray(x * random.normal(1, deviation, (len(x), 1, x.shape[-1])))


def jitter(x: Array, deviation: Array, random: np.random.Generator) -> Array:
    """Add normal noise of this deviation (c,) to windows (b, time, c)."""
    return np.asarray(x + random.normal(0, 1, x.shape) * deviation)


def rotate_sensor_axes(x: Array, degrees: float, random: np.random.Generator) -> Array:
    """Rotate each three consecutive channels of windows (b, time, c) about one random axis per window."""
    from scipy.spatial.transform import Rotation

    rotation_axes = random.normal(size=(len(x), 3))
    rotation_axes /= np.linalg.norm(rotation_axes, axis=1, keepdims=True)
    rotation_matrices = Rotation.from_rotvec(
        rotation_axes * np.radians(random.uniform(-degrees, degrees, (len(x), 1)))
    ).as_matrix()
    channel_triples = x.reshape(*x.shape[:2], -1, 3)
    return np.asarray(np.einsum("bij,btkj->btki", rotation_matrices, channel_triples)).reshape(x.shape)


def mixup(x: Array, class_probabilities: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Blend each sample and its label with another of the batch.

    Args:
        x: samples (b, ...).
        class_probabilities: class probabilities (b, classes).
        alpha: of the Beta distribution of the blend weight.
        random: the generator to draw from.

    Returns:
        Blended samples and class probabilities.
    """
    blend_weights = random.beta(alpha, alpha, len(x)).astype(np.float32)
    partner_indices = random.permutation(len(x))
    x_weight, label_weight = blend_weights.reshape(-1, *[1] * (x.ndim - 1)), blend_weights[:, None]
    mixed_probabilities = label_weight * class_probabilities + (1 - label_weight) * class_probabilities[partner_indices]
    return x_weight * x + (1 - x_weight) * x[partner_indices], mixed_probabilities


def cutmix(x: Array, class_probabilities: Array, alpha: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Paste a rectangle of another image of the batch into each image; labels are mixed by area.

    Args:
        x: images (b, h, w, c).
        class_probabilities: class probabilities (b, classes).
        alpha: of the Beta distribution of the kept area.
        random: the generator to draw from.

    Returns:
        Mixed images and class probabilities.
    """
    height, width = x.shape[1:3]
    side_fractions = np.sqrt(1 - random.beta(alpha, alpha, len(x)))
    partner_indices = random.permutation(len(x))
    axis_masks = []
    for size in (height, width):
        lengths = np.rint(side_fractions * size).astype(int)
        centers = random.integers(0, size, len(x))
        axis_masks.append(_span_mask(centers - lengths // 2, lengths, size))
    pasted_mask = axis_masks[0][:, :, None] & axis_masks[1][:, None, :]
    kept_area_fraction = (1 - pasted_mask.mean(axis=(1, 2))).astype(np.float32)[:, None]
    return np.where(pasted_mask[..., None], x[partner_indices], x), kept_area_fraction * class_probabilities + (
        1 - kept_area_fraction
    ) * class_probabilities[partner_indices]
