"""Image folders: one subfolder per class, read with Pillow."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from edgepipe.arrays import Array
from edgepipe.data.raw import Raw, RawPart
from edgepipe.data.spec import ImagesSpec
from edgepipe.data.splits import Split
from edgepipe.errors import InputError, did_you_mean

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_FOLDERS = {"train": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}
SHOWN = 20  # names of files that a message lists; more are counted


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
    folders = _split_folders(root)
    names = _class_names(folders[Split.TRAIN])
    for folder in folders.values():
        _check_classes(folder, names)
    corrupt: list[_Corrupt] = []
    parts: dict[Split, RawPart] = {split: _part(folder, names, spec, corrupt) for split, folder in folders.items()}
    if corrupt and not spec.skip_corrupt:
        listed = "\n".join(f"  {file}" for file in corrupt)
        raise InputError(
            f"{root}: {len(corrupt)} images cannot be read; replace them, or set `skip_corrupt: true`:\n{listed}"
        )
    return Raw(str(root), parts, names, (*_skipped(root, corrupt), *_others(root)))


def _split_folders(root: Path) -> dict[Split, Path]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if not (root / "train").is_dir():
        return {Split.TRAIN: root}
    found = {name: root / name for name in _FOLDERS if (root / name).is_dir()}
    if "val" in found and "validation" in found:
        raise InputError(f"{root} has both val/ and validation/; keep one")
    return {_FOLDERS[name]: folder for name, folder in found.items()}


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")))
    if not names:
        raise InputError(f"{folder} has no subfolders; put the images of each class into a subfolder named after it")
    return names


def _check_classes(folder: Path, names: tuple[str, ...]) -> None:
    for name in _class_names(folder):
        if name not in names:
            raise InputError(f"{folder / name}: training has no class '{name}'{did_you_mean(name, names)}")
        if not _files(folder / name):
            raise InputError(f"{folder / name} holds no image (endings: {', '.join(sorted(ENDINGS))})")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def _part(folder: Path, names: tuple[str, ...], spec: ImagesSpec, corrupt: list[_Corrupt]) -> RawPart:
    found: list[Array] = []
    labels: list[int] = []
    first: Path | None = None
    for path, label in _labelled(folder, names):
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


def _labelled(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    for label, name in enumerate(names):
        yield from ((path, label) for path in _files(folder / name))


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


def _skipped(root: Path, corrupt: list[_Corrupt]) -> tuple[str, ...]:
    if not corrupt:
        return ()
    more = f" and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
    return (f"{root}: skipped {len(corrupt)} images that cannot be read: {', '.join(map(str, corrupt[:SHOWN]))}{more}",)


def _others(root: Path) -> tuple[str, ...]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    others = sorted(path.name for path in files if path.suffix.lower() not in ENDINGS)
    if not others:
        return ()
    return (f"{root}: {len(others)} files are no images and were not read: {', '.join(others[:SHOWN])}",)
