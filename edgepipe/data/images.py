"""Image folders: one subfolder per class, read with Pillow."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array, sole_array
from edgepipe.core.errors import InputError, ListedError
from edgepipe.core.units import plural
from edgepipe.data import class_folders
from edgepipe.data.data_spec import ImagesSpec
from edgepipe.data.raw_samples import RawDataset, RawSplit
from edgepipe.data.split_names import Split

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@final
@dataclass(frozen=True)
class _CorruptImage:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@final
@dataclass
class _ImageReadReport:
    """What happened to images while reading."""

    corrupt_images: list[_CorruptImage] = field(default_factory=list)
    turned_count: int = 0
    transparent_count: int = 0
    animated_count: int = 0

    def build_notes(self, root: Path) -> tuple[str, ...]:
        """Notes on everything but corrupt files."""
        counted_notes = (
            (self.turned_count, "rotated according to EXIF data"),
            (self.transparent_count, "with transparency, which is dropped"),
            (self.animated_count, "with several pictures, only the first used"),
        )
        return tuple(
            f"{root}: {plural(number, 'image')} {description}" for number, description in counted_notes if number
        )


def read(root: Path, spec: ImagesSpec) -> RawDataset:
    """All images below `root`, uint8 (n, h, w, channels), labelled by the sorted names of the class folders.

    Raises:
        InputError: no class folders, an empty one, a class that training does not have, sizes that differ and no
            `size`, or images that cannot be read (all are named) unless `skip_corrupt` is set.
    """
    folder_by_split = class_folders.find_split_folders(root)
    class_names = class_folders.find_class_names(folder_by_split[Split.TRAIN], "image")
    for folder in folder_by_split.values():
        class_folders.check_classes(folder, class_names, IMAGE_ENDINGS, "image")
    report = _ImageReadReport()
    raw_splits = {split: _read_split(folder, class_names, spec, report) for split, folder in folder_by_split.items()}
    corrupt_files = [str(file) for file in report.corrupt_images]
    if corrupt_files and not spec.skip_corrupt:
        raise ListedError(
            f"{root}: {plural(len(corrupt_files), 'image')} cannot be read; replace them, or set `skip_corrupt: true`:",
            corrupt_files,
        )
    train_labels = sole_array(raw_splits[Split.TRAIN].y)
    class_folders.check_classes_remain(
        root, class_names, set() if train_labels is None else set(train_labels.tolist()), corrupt_files
    )
    notes = (
        *class_folders.skipped_file_notes(root, corrupt_files, "image"),
        *report.build_notes(root),
        *class_folders.unread_folder_notes(root),
    )
    return RawDataset(
        str(root), raw_splits, class_names, (*notes, *class_folders.unread_file_notes(root, IMAGE_ENDINGS))
    )


def _read_split(folder: Path, class_names: tuple[str, ...], spec: ImagesSpec, report: _ImageReadReport) -> RawSplit:
    images: list[Array] = []
    labels: list[int] = []
    first_path: Path | None = None
    for path, label in class_folders.iterate_labelled_files(folder, class_names, IMAGE_ENDINGS):
        image = _decode(path, spec, report)
        if isinstance(image, _CorruptImage):
            report.corrupt_images.append(image)
            continue
        first_path = first_path or path
        if images and image.shape != images[0].shape:
            raise InputError(
                f"{first_path} is {images[0].shape[:2]} pixels (height, width), {path} is {image.shape[:2]}; "
                "set `size: [height, width]`"
            )
        images.append(image)
        labels.append(label)
    shape = (spec.size or (0, 0)) + (spec.channels,)
    x = np.stack(images) if images else np.empty((0, *shape), np.uint8)
    return RawSplit(x, np.array(labels, np.int64))


def _decode(path: Path, spec: ImagesSpec, report: _ImageReadReport) -> Array | _CorruptImage:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits
                return _CorruptImage(path, f"{image.mode} pixels; convert the file to 8 bits per channel")
            picture = _turn_upright(image, report).convert("L" if spec.channels == 1 else "RGB")
            if spec.size is not None and picture.size != spec.size[::-1]:
                picture = picture.resize(spec.size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(picture).reshape(picture.height, picture.width, spec.channels)
    except UnidentifiedImageError:
        return _CorruptImage(path, "not an image")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return _CorruptImage(
            path, (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        )


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright picture, from the head of its file.

    Raises:
        OSError: it cannot be read as an image.
    """
    from PIL import Image

    with Image.open(path) as image:
        is_on_its_side = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if is_on_its_side else (image.height, image.width)


def _turn_upright(image: Any, report: _ImageReadReport) -> Any:
    """The picture rotated by its EXIF orientation; lost transparency and frames are counted."""
    from PIL import ImageOps

    report.transparent_count += image.has_transparency_data
    report.animated_count += getattr(image, "n_frames", 1) > 1
    is_turned = image.getexif().get(0x0112, 1) not in (0, 1)  # Orientation
    report.turned_count += is_turned
    return ImageOps.exif_transpose(image) if is_turned else image
