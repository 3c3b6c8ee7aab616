"""NumPy archives: named arrays, never pickled objects."""

import zipfile
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.npy_headers import open_npz
from edgepipe.data.data_spec import NpzSpec
from edgepipe.data.raw_samples import RawDataset, RawSplit, to_group_names
from edgepipe.data.split_names import Split

SPLIT_BY_SUFFIX = {"train": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}


def read(path: Path, spec: NpzSpec) -> RawDataset:
    """The arrays of `path`: x and y as `spec` names them, or with the suffixes _train, _validation or _val, _test.

    Raises:
        InputError: not a readable .npz, or an array is missing or has Python objects.
    """
    with _open_archive(path) as archive:
        split_suffixes = [suffix for suffix in SPLIT_BY_SUFFIX if f"{spec.x}_{suffix}" in archive.files]
        if spec.x in archive.files:
            raw_splits = {Split.TRAIN: _read_split(path, archive, spec, "")}
        elif "train" in split_suffixes:
            raw_splits = {
                SPLIT_BY_SUFFIX[suffix]: _read_split(path, archive, spec, f"_{suffix}") for suffix in split_suffixes
            }
        else:
            raise _missing_array_error(path, archive, spec.x, f" (nor {spec.x}_train)")
        notes = _unread_array_notes(
            path, archive, spec, raw_splits[Split.TRAIN], [] if spec.x in archive.files else split_suffixes
        )
    return RawDataset(str(path), raw_splits, notes=notes)


def _open_archive(path: Path) -> AbstractContextManager[Any]:
    check_ordinary(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a .npz file (or truncated); write one with numpy.savez(path, x=..., y=...)")
    return open_npz(path)


def _read_split(path: Path, archive: Any, spec: NpzSpec, suffix: str) -> RawSplit:
    labels_name = (spec.y or "y") + suffix
    if spec.y is not None and labels_name not in archive.files:
        raise _missing_array_error(path, archive, labels_name, "")
    y = _read_array(path, archive, labels_name) if labels_name in archive.files else None
    groups_name = "groups" + suffix
    group_labels = (
        to_group_names(str(path), _read_array(path, archive, groups_name)) if groups_name in archive.files else None
    )
    return RawSplit(_read_array(path, archive, spec.x + suffix), y, group_labels)


def _read_array(path: Path, archive: Any, name: str) -> Array:
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


def _missing_array_error(path: Path, archive: Any, name: str, alternative: str) -> InputError:
    return InputError(f"{path}: no array '{name}'{alternative}{did_you_mean(name, archive.files)}")


def _unread_array_notes(
    path: Path, archive: Any, spec: NpzSpec, raw_train: RawSplit, split_suffixes: list[str]
) -> tuple[str, ...]:
    known_array_names = {
        name + end for name in (spec.x, spec.y or "y", "groups") for end in [f"_{s}" for s in split_suffixes] or [""]
    }
    unread_names = [name for name in archive.files if name not in known_array_names]
    if raw_train.y is None:
        return (f"{path} has no array 'y' (it has {', '.join(archive.files)}): samples without labels",)
    return (f"{path}: arrays that are not read: {', '.join(unread_names)}",) if unread_names else ()
