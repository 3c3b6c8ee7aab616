"""IDX files, the format of MNIST and its descendants: a magic number, the shape, the values in big-endian order.

Source of the format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998. NumPy is
imported only to read values, so that locating the files is cheap.
"""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.core.archives import gunzip
from edgepipe.core.errors import InputError
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.units import plural

if TYPE_CHECKING:
    from edgepipe.core.arrays import Array

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DATA_VARIABLE = "EDGEPIPE_DATA"
_DTYPE_BY_CODE = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIX_BY_SPLIT = {"train": "train", "test": "t10k"}  # split -> prefix of its two files
_DIMENSIONS_BY_KIND = {"images": 3, "labels": 1}  # kind of file -> the dimensions in its name


def find_fashion_folder() -> Path:
    """The folder with the four files of Fashion-MNIST: below $EDGEPIPE_DATA, or that of Debian's package.

    Raises:
        InputError: in none of these folders.
    """
    data_root = os.environ.get(DATA_VARIABLE)
    candidate_folders = [Path(data_root) / "fashion-mnist", Path(data_root)] if data_root else []
    for folder in [*candidate_folders, DEBIAN_FOLDER]:
        if not _missing_file_names(folder):
            return folder
    folder_list = ", ".join(map(str, [*candidate_folders, DEBIAN_FOLDER]))
    raise InputError(
        f"Fashion-MNIST is in none of: {folder_list}; on Debian `apt install dataset-fashion-mnist`, otherwise put its "
        f"four files (train-images-idx3-ubyte.gz, ...) into a folder and name it: `fashion_mnist: folder` or "
        f"${DATA_VARIABLE}"
    )


def find_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The image file and the label file of each split.

    Raises:
        InputError: no such folder, or some of the four files are missing; the message names all.
    """
    check_ordinary(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    missing_names = _missing_file_names(folder)
    if missing_names:
        raise InputError(f"{folder} lacks {', '.join(missing_names)} (each may also end in .gz)")
    return {split: (_locate(folder, split, "images"), _locate(folder, split, "labels")) for split in _PREFIX_BY_SPLIT}


def _missing_file_names(folder: Path) -> list[str]:
    required_files = [(split, kind) for split in _PREFIX_BY_SPLIT for kind in _DIMENSIONS_BY_KIND]
    return [_file_name(split, kind) for split, kind in required_files if not _locate(folder, split, kind).is_file()]


def _file_name(split: str, kind: str) -> str:
    return f"{_PREFIX_BY_SPLIT[split]}-{kind}-idx{_DIMENSIONS_BY_KIND[kind]}-ubyte"


def _locate(folder: Path, split: str, kind: str) -> Path:
    default_path = folder / _file_name(split, kind)
    spellings = [default_path, default_path.with_name(default_path.name.replace("-idx", ".idx"))]
    candidates = [path.with_name(path.name + ending) for path in spellings for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), default_path)


def read(folder: Path) -> "dict[str, tuple[Array, Array]]":
    """The splits `train` and `test`: images (n, h, w, 1) with the channel axis added, and labels (n,), as stored.

    Raises:
        InputError: a file is missing, truncated or not in IDX format, or the counts differ.
    """
    arrays_by_split = {}
    for split, (images_path, labels_path) in find_files(folder).items():
        x, y = read_file(images_path), read_file(labels_path)
        if len(x) != len(y):
            raise InputError(
                f"{images_path} has {plural(len(x), 'image')} but {labels_path} has {plural(len(y), 'label')}"
            )
        arrays_by_split[split] = (x[..., None] if x.ndim == 3 else x, y)
    return arrays_by_split


def read_file(path: Path) -> "Array":
    """The array of one IDX file, gzipped or not.

    Raises:
        InputError: the file cannot be read, is truncated, or is not in IDX format.
    """
    import numpy as np

    content = gunzip(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPE_BY_CODE:
        raise InputError(f"{path}: not an IDX file (it begins with {content[:4].hex(' ') or 'nothing'})")
    header_size = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, header_size, 4))
    dtype = np.dtype(_DTYPE_BY_CODE[content[2]])
    expected_size = header_size + math.prod(shape) * dtype.itemsize
    if len(content) != expected_size:
        raise InputError(
            f"{path}: has {len(content)} bytes, the shape {shape} needs {expected_size} (truncated or damaged?)"
        )
    return np.frombuffer(content, dtype, offset=header_size).reshape(shape)
