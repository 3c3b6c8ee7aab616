"""Samples from a file given on the command line: a `.npy` array, or a `.npz` with one array per input."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural

LABEL_ARRAY_NAMES = frozenset(("y", "labels", "targets"))


def read(path: Path) -> Arrays:
    """The samples in `path` (n, ...), floats as float32, integers as stored. Labels in a .npz are ignored.

    Raises:
        InputError: no such file, not a NumPy file, pickled objects, no array, or no sample.
    """
    return read_labelled(path)[0]


def read_labelled(path: Path) -> tuple[Arrays, Array | None]:
    """The samples in `path`, as `read` gives them, and the labels if it has any.

    Raises:
        InputError: as `read`; or the number of labels differs from that of samples.
    """
    try:
        with path.open("rb") as stream:
            loaded_file = np.load(stream, allow_pickle=False)
            arrays = (
                loaded_file
                if isinstance(loaded_file, np.ndarray)
                else {name: loaded_file[name] for name in loaded_file.files}
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; give samples as .npy or .npz") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: a truncated or damaged .npy or .npz file: {error}") from None
    except ValueError as error:
        reason = "holds pickled objects, which are never loaded," if "pickle" in str(error) else f"({error})"
        raise InputError(f"{path}: {reason} or is no .npy or .npz file of numbers") from None
    if isinstance(arrays, np.ndarray):
        return _check_array(path, "the array", arrays), None
    input_by_name = {
        name: _check_array(path, f"array '{name}'", array)
        for name, array in arrays.items()
        if name not in LABEL_ARRAY_NAMES
    }
    if not input_by_name:
        raise InputError(f"{path}: holds no samples; expected an array 'x', or one for each input")
    x = input_by_name if len(input_by_name) > 1 else next(iter(input_by_name.values()))
    return x, _find_labels(path, x, {name: array for name, array in arrays.items() if name in LABEL_ARRAY_NAMES})


def _find_labels(path: Path, x: Arrays, label_arrays: dict[str, Array]) -> Array | None:
    for name, labels in label_arrays.items():
        if np.ndim(labels) == 0 or len(labels) != count_samples(x):
            raise InputError(
                f"{path}: {plural(count_samples(x), 'sample')}, but '{name}' has the shape {np.shape(labels)}"
            )
    return next(iter(label_arrays.values()), None)


def _check_array(path: Path, title: str, array: Array) -> Array:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: {title} is no array; is this really a .npz file?")
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{path}: {title} holds zero samples (shape {array.shape})")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {title} holds {array.dtype}; samples are numbers")
    if not np.isfinite(array).all():
        count = plural(int((~np.isfinite(array)).sum()), "NaN or infinite value")
        raise InputError(f"{path}: {title} holds {count}")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
