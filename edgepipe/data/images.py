"""Image folders: one subfolder per class, read with Pillow."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data import class_folders
from edgepipe.data.data_spec import ImagesSpec
from edgepipe.data.raw_samples import Raw, RawPart
from edgepipe.data.splits import Split

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@final
@dataclass(frozen=True)
class _Corrupt:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


@final
@dataclass
class _Told:
    """What happened to images on the way."""

    corrupt: list[_Corrupt] = field(default_factory=list)
    turned: int = 0
    transparent: int = 0
    moving: int = 0

    def notes(self, root: Path) -> tuple[str, ...]:
        """What is worth knowing besides corrupt files."""
        found = (
            (self.turned, "turned upright as their EXIF data says"),
            (self.transparent, "with transparency, which is left out"),
            (self.moving, "with several pictures, of which the first is taken"),
        )
        return tuple(f"{root}: {number} images {what}" for number, what in found if number)


def read(root: Path, spec: ImagesSpec) -> Raw:
    """All images below `root`, uint8 (n, h, w, channels), labelled by the sorted names of the class folders.

    Raises:
        InputError: no class folders, an empty one, a class that training does not have, sizes that differ and no
            `size`, or images that cannot be read (all are named) unless `skip_corrupt` is set.
    """
    split_folders = class_folders.split_folders(root)
    names = class_folders.class_names(split_folders[Split.TRAIN], "images")
    for folder in split_folders.values():
        class_folders.check_classes(folder, names, ENDINGS, "images")
    told = _Told()
    parts = {split: _part(folder, names, spec, told) for split, folder in split_folders.items()}
    corrupt = [str(file) for file in told.corrupt]
    if corrupt and not spec.skip_corrupt:
        listed = "\n".join(f"  {file}" for file in corrupt)
        raise InputError(
            f"{root}: {len(corrupt)} images cannot be read; replace them, or set `skip_corrupt: true`:\n{listed}"
        )
    labels = parts[Split.TRAIN].y
    class_folders.check_left(root, names, set() if labels is None else set(labels.tolist()), corrupt)
    notes = (*class_folders.skipped(root, corrupt, "images"), *told.notes(root), *class_folders.beside(root))
    return Raw(str(root), parts, names, (*notes, *class_folders.others(root, ENDINGS, "images")))


def _part(folder: Path, names: tuple[str, ...], spec: ImagesSpec, told: _Told) -> RawPart:
    found: list[Array] = []
    labels: list[int] = []
    first: Path | None = None
    for path, label in class_folders.labelled(folder, names, ENDINGS):
        image = _decode(path, spec, told)
        if isinstance(image, _Corrupt):
            told.corrupt.append(image)
            continue
        first = first or path
        if found and image.shape != found[0].shape:
            raise InputError(
                f"{first} is {found[0].shape[:2]} pixels (height, width), {path} is {image.shape[:2]}; "
                "set `size: [height, width]`"
            )
        found.append(image)
        labels.append(label)
    shape = (spec.size or (0, 0)) + (spec.channels,)
    x = np.stack(found) if found else np.empty((0, *shape), np.uint8)
    return RawPart(x, np.array(labels, np.int64))


def _decode(path: Path, spec: ImagesSpec, told: _Told) -> Array | _Corrupt:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits
                return _Corrupt(path, f"{image.mode} pixels; convert the file to 8 bits per channel")
            plain = _upright(image, told).convert("L" if spec.channels == 1 else "RGB")
            if spec.size is not None and plain.size != spec.size[::-1]:
                plain = plain.resize(spec.size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(plain).reshape(plain.height, plain.width, spec.channels)
    except UnidentifiedImageError:
        return _Corrupt(path, "not an image")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return _Corrupt(path, (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__)


def _upright(image: Any, told: _Told) -> Any:
    """The picture as a camera meant it to be seen; what is lost on the way is counted."""
    from PIL import ImageOps

    told.transparent += image.has_transparency_data
    told.moving += getattr(image, "n_frames", 1) > 1
    turned = image.getexif().get(0x0112, 1) not in (0, 1)  # Orientation
    told.turned += turned
    return ImageOps.exif_transpose(image) if turned else image
