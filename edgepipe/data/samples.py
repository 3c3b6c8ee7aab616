"""Samples from a file named on a command line: a `.npy` array, or a `.npz` of one array for each input."""

from pathlib import Path

import numpy as np

from edgepipe.arrays import Array, Arrays
from edgepipe.errors import InputError

LABELS = frozenset(("y", "labels", "targets"))


def read(path: Path) -> Arrays:
    """The samples in `path`, float32 or as stored if integers; first axis counts them. Labels in a .npz are left out.

    Raises:
        InputError: no such file, not a NumPy file, pickled objects, no array, or no sample.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give samples as .npy or .npz") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy or .npz file of plain numbers: {error}") from None
    if isinstance(arrays, np.ndarray):
        return _checked(path, "the array", arrays)
    chosen = {name: _checked(path, f"array '{name}'", array) for name, array in arrays.items() if name not in LABELS}
    if not chosen:
        raise InputError(f"{path}: holds no samples; expected an array 'x', or one for each input")
    return chosen if len(chosen) > 1 else next(iter(chosen.values()))


def _checked(path: Path, what: str, array: Array) -> Array:
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{path}: {what} holds zero samples (shape {array.shape})")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {what} holds {array.dtype}; samples are numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {what} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite")
    return array.astype(np.float32) if array.dtype.kind == "f" else array
