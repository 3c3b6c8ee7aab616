"""IDX files, the format of MNIST and its descendants: a magic number, the shape, the values in big-endian order.

Source of the format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998. NumPy is
imported where values are read, so that looking for the files costs nothing.
"""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.core.errors import InputError

if TYPE_CHECKING:
    from edgepipe.core.arrays import Array

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DATA_VARIABLE = "EDGEPIPE_DATA"
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAMES = {"train": "train", "test": "t10k"}  # split -> how its two files begin
_KINDS = {"images": 3, "labels": 1}  # what a file holds -> the dimensions in its name


def fashion_folder() -> Path:
    """Where the four files of Fashion-MNIST are: below $EDGEPIPE_DATA, or where Debian's package puts them.

    Raises:
        InputError: in none of these places.
    """
    data = os.environ.get(DATA_VARIABLE)
    places = [Path(data) / "fashion-mnist", Path(data)] if data else []
    for place in [*places, DEBIAN_FOLDER]:
        if not _missing(place):
            return place
    looked = ", ".join(map(str, [*places, DEBIAN_FOLDER]))
    raise InputError(
        f"Fashion-MNIST is in none of: {looked}; on Debian `apt install dataset-fashion-mnist`, otherwise put its "
        f"four files (train-images-idx3-ubyte.gz, ...) into a folder and name it: `fashion_mnist: folder` or "
        f"${DATA_VARIABLE}"
    )


def find(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Per split its file of images and its file of labels.

    Raises:
        InputError: no such folder, or some of the four files are missing; all of these are named.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    missing = _missing(folder)
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)} (each may also end in .gz)")
    return {split: (_locate(folder, split, "images"), _locate(folder, split, "labels")) for split in _NAMES}


def _missing(folder: Path) -> list[str]:
    wanted = [(split, what) for split in _NAMES for what in _KINDS]
    return [_name(split, what) for split, what in wanted if not _locate(folder, split, what).is_file()]


def _name(split: str, what: str) -> str:
    return f"{_NAMES[split]}-{what}-idx{_KINDS[what]}-ubyte"


def _locate(folder: Path, split: str, what: str) -> Path:
    plain = folder / _name(split, what)
    spellings = [plain, plain.with_name(plain.name.replace("-idx", ".idx"))]
    candidates = [path.with_name(path.name + end) for path in spellings for end in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), plain)


def read(folder: Path) -> "dict[str, tuple[Array, Array]]":
    """The splits `train` and `test`: images (n, h, w, 1) with the channel axis added, and labels (n,), as stored.

    Raises:
        InputError: a file is missing, truncated or not in IDX format, or the counts differ.
    """
    parts = {}
    for split, (images, labels) in find(folder).items():
        x, y = read_file(images), read_file(labels)
        if len(x) != len(y):
            raise InputError(f"{images} has {len(x)} images but {labels} has {len(y)} labels")
        parts[split] = (x[..., None] if x.ndim == 3 else x, y)
    return parts


def read_file(path: Path) -> "Array":
    """The array of one IDX file, gzipped or not.

    Raises:
        InputError: the file cannot be read, is truncated, or is not in IDX format.
    """
    import numpy as np

    data = _bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise InputError(f"{path}: not an IDX file (it begins with {data[:4].hex(' ') or 'nothing'})")
    header = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    kind = np.dtype(_TYPES[data[2]])
    needed = header + math.prod(shape) * kind.itemsize
    if len(data) != needed:
        raise InputError(f"{path}: has {len(data)} bytes, the shape {shape} needs {needed} (truncated or damaged?)")
    return np.frombuffer(data, kind, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: a damaged gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
