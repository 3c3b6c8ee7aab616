"""NumPy archives: arrays by name, never a pickled object."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.data.data_spec import NpzSpec
from edgepipe.data.raw_samples import Raw, RawPart, group_names
from edgepipe.data.splits import Split

_SUFFIXES = {"train": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}


def read(path: Path, spec: NpzSpec) -> Raw:
    """The arrays of `path`: x and y as `spec` names them, or with the suffixes _train, _validation or _val, _test.

    Raises:
        InputError: not a readable .npz, an array is missing, or holds Python objects.
    """
    with _open(path) as archive:
        suffixes = [suffix for suffix in _SUFFIXES if f"{spec.x}_{suffix}" in archive.files]
        if spec.x in archive.files:
            parts = {Split.TRAIN: _part(path, archive, spec, "")}
        elif "train" in suffixes:
            parts = {_SUFFIXES[suffix]: _part(path, archive, spec, f"_{suffix}") for suffix in suffixes}
        else:
            raise _missing(path, archive, spec.x, f" (nor {spec.x}_train)")
        notes = _notes(path, archive, spec, parts[Split.TRAIN], [] if spec.x in archive.files else suffixes)
    return Raw(str(path), parts, notes=notes)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a .npz file (or truncated); write one with numpy.savez(path, x=..., y=...)")
    return np.load(path, allow_pickle=False)


def _part(path: Path, archive: Any, spec: NpzSpec, suffix: str) -> RawPart:
    labels = (spec.y or "y") + suffix
    if spec.y is not None and labels not in archive.files:
        raise _missing(path, archive, labels, "")
    y = _array(path, archive, labels) if labels in archive.files else None
    groups = "groups" + suffix
    found = group_names(str(path), _array(path, archive, groups)) if groups in archive.files else None
    return RawPart(_array(path, archive, spec.x + suffix), y, found)


def _array(path: Path, archive: Any, name: str) -> Array:
    try:
        return archive[name]  # type: ignore[no-any-return]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise InputError(f"{path}: array '{name}' is damaged: {error}") from None
        raise InputError(
            f"{path}: array '{name}' holds Python objects, which means running code from the file; refused. "
            "Save it as a numeric array"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path}: array '{name}' is damaged: {error}") from None


def _missing(path: Path, archive: Any, name: str, also: str) -> InputError:
    return InputError(f"{path}: no array '{name}'{also}{did_you_mean(name, archive.files)}")


def _notes(path: Path, archive: Any, spec: NpzSpec, train: RawPart, suffixes: list[str]) -> tuple[str, ...]:
    names = {name + end for name in (spec.x, spec.y or "y", "groups") for end in [f"_{s}" for s in suffixes] or [""]}
    unread = [name for name in archive.files if name not in names]
    if train.y is None:
        return (f"{path} has no array 'y' (it has {', '.join(archive.files)}): samples without labels",)
    return (f"{path}: arrays that are not read: {', '.join(unread)}",) if unread else ()
