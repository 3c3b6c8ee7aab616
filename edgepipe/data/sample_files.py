"""Samples from a file given on the command line: a `.npy` array, or a `.npz` as a pipeline reads it.

A `.npz` holds `x`, or one array per input; labels and groups beside them; or all of these once for each split, with the
suffixes _train, _validation (or _val) and _test, of which the training samples are taken.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.core.errors import InputError
from edgepipe.core.npy_headers import check_npy_or_npz
from edgepipe.core.units import plural
from edgepipe.data.npz import SPLIT_BY_SUFFIX

LABEL_ARRAY_NAMES = frozenset(("y", "labels", "targets"))
_GROUP_ARRAY_NAMES = frozenset(("groups",))
_TRAIN_SUFFIX = "_train"


@dataclass(frozen=True)
class SampleFile:
    """The samples of a file (n, ...), floats as float32, integers as stored; its labels; notes on what is not read."""

    x: Arrays
    y: Array | None = None
    notes: tuple[str, ...] = ()


def read(path: Path) -> SampleFile:
    """The samples in `path`, and the labels if it has any.

    Raises:
        InputError: no such file, not a NumPy file, pickled objects, no array, no sample, or another number of labels
            than of samples.
    """
    try:
        check_npy_or_npz(path)
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
        return SampleFile(_check_array(path, "the array", arrays))
    training_arrays, notes = _select_training_split(path, arrays)
    input_by_name = {
        name: _check_array(path, f"array '{name}'", array)
        for name, array in training_arrays.items()
        if name not in LABEL_ARRAY_NAMES | _GROUP_ARRAY_NAMES
    }
    if not input_by_name:
        raise InputError(f"{path}: holds no samples; expected an array 'x', or one for each input")
    x = input_by_name if len(input_by_name) > 1 else next(iter(input_by_name.values()))
    label_arrays = {name: array for name, array in training_arrays.items() if name in LABEL_ARRAY_NAMES}
    return SampleFile(x, _find_labels(path, x, label_arrays), notes)


def _select_training_split(path: Path, arrays: dict[str, Array]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The arrays themselves, or, in a file with splits, those of the training split without their suffix."""
    training_arrays = {
        name.removesuffix(_TRAIN_SUFFIX): array for name, array in arrays.items() if name.endswith(_TRAIN_SUFFIX)
    }
    split_names = {f"{name}_{suffix}" for name in training_arrays for suffix in SPLIT_BY_SUFFIX}
    if not training_arrays or not split_names.issuperset(arrays):
        return arrays, ()
    other_names = [name for name in arrays if not name.endswith(_TRAIN_SUFFIX)]
    read_text = ", ".join(name for name in arrays if name.endswith(_TRAIN_SUFFIX))
    return training_arrays, (f"{path}: {read_text} are read; not read: {', '.join(other_names) or 'nothing'}",)


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
