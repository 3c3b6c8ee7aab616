"""Image folders: one subfolder per class, read with Pillow."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from edgepipe.arrays import Array
from edgepipe.data import folders
from edgepipe.data.raw import Raw, RawPart
from edgepipe.data.spec import ImagesSpec
from edgepipe.data.splits import Split
from edgepipe.errors import InputError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@final
@dataclass(frozen=True)
class _Corrupt:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


def read(root: Path, spec: ImagesSpec) -> Raw:
    """All images below `root`, uint8 (n, h, w, channels), labelled by the sorted names of the class folders.

    Raises:
        InputError: no class folders, an empty one, a class that training does not have, sizes that differ and no
            `size`, or images that cannot be read (all are named) unless `skip_corrupt` is set.
    """
    split_folders = folders.split_folders(root)
    names = folders.class_names(split_folders[Split.TRAIN], "images")
    for folder in split_folders.values():
        folders.check_classes(folder, names, ENDINGS, "images")
    corrupt: list[_Corrupt] = []
    parts = {split: _part(folder, names, spec, corrupt) for split, folder in split_folders.items()}
    if corrupt and not spec.skip_corrupt:
        listed = "\n".join(f"  {file}" for file in corrupt)
        raise InputError(
            f"{root}: {len(corrupt)} images cannot be read; replace them, or set `skip_corrupt: true`:\n{listed}"
        )
    told = folders.skipped(root, [str(file) for file in corrupt], "images")
    return Raw(str(root), parts, names, (*told, *folders.others(root, ENDINGS, "images")))


def _part(folder: Path, names: tuple[str, ...], spec: ImagesSpec, corrupt: list[_Corrupt]) -> RawPart:
    found: list[Array] = []
    labels: list[int] = []
    first: Path | None = None
    for path, label in folders.labelled(folder, names, ENDINGS):
        image = _decode(path, spec)
        if isinstance(image, _Corrupt):
            corrupt.append(image)
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


def _decode(path: Path, spec: ImagesSpec) -> Array | _Corrupt:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip these to 8 bits
                return _Corrupt(path, f"{image.mode} pixels; convert the file to 8 bits per channel")
            plain = image.convert("L" if spec.channels == 1 else "RGB")
            if spec.size is not None and plain.size != spec.size[::-1]:
                plain = plain.resize(spec.size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(plain).reshape(plain.height, plain.width, spec.channels)
    except UnidentifiedImageError:
        return _Corrupt(path, "not an image")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        return _Corrupt(path, str(error) or type(error).__name__)
