"""The dataset's part of a cache key, computed without loading it."""

import sys
from pathlib import Path
from typing import Any

from edgepipe.core import module_sources, references
from edgepipe.core.artifact import list_files, text_digest
from edgepipe.core.errors import InputError
from edgepipe.core.file_memo import FileMemo
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.progress import count_steps
from edgepipe.data import idx, speech
from edgepipe.data.data_spec import (
    CsvSpec,
    DataSpec,
    FashionSpec,
    FunctionSpec,
    IdxSpec,
    ImagesSpec,
    ParquetSpec,
    SoundSpec,
    SpokenDigitsSpec,
    TableSpec,
    find_table_files,
    noise_folder,
    source_path,
)

_PATH_OPTIONS: dict[str, Any] = dict.fromkeys(
    ("npz", "images", "idx", "fashion_mnist", "csv", "parquet", "audio", "files", "representative"), True
) | {"augment": {"noise": {"folder": True}}}
# import name -> distribution name, where they differ
_DISTRIBUTION_BY_PACKAGE = {
    "sklearn": "scikit-learn",
    "PIL": "Pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
}


def compute_identity(spec: DataSpec, base_folder: Path, memo: FileMemo | None = None) -> dict[str, Any]:
    """A JSON value that changes whenever the samples, their order or their split may change.

    It has the options (without file paths, whose content counts, and the number of calibration samples), digests of
    edgepipe's loaders, of a user function's source and of every input file, and the versions of the packages that read
    them. Of a function, only its `files` and the modules in its own folder or package are covered.

    Args:
        spec: the parsed `data:` key.
        base_folder: the folder that relative file names start from.
        memo: keeps digests of files that do not change; None reads every file.

    Raises:
        InputError: a file is missing.
    """
    memo = memo or FileMemo(None)
    noise_path = noise_folder(spec, base_folder)
    return {
        "options": spec.model_dump(mode="json", exclude=_PATH_OPTIONS),
        "kind": type(spec).__name__,
        "loader": module_sources.source_digest("edgepipe.data.dataset_loading"),
        "function": module_sources.source_digest(_module_name(spec), base_folder)
        if isinstance(spec, FunctionSpec)
        else None,
        "files": {name: _content_digest(path, memo) for name, path in _source_path_by_name(spec, base_folder).items()},
        "noise": None if noise_path is None else _content_digest(noise_path, memo),
        "program": speech.espeak_version() if isinstance(spec, SpokenDigitsSpec) else None,
        "packages": {name: references.installed_version(name) for name in sorted(_reader_packages(spec, base_folder))},
    }


def _module_name(spec: FunctionSpec) -> str:
    return spec.function.partition(":")[0]


def _source_path_by_name(spec: DataSpec, base_folder: Path) -> dict[str, Path]:
    if isinstance(spec, FunctionSpec):
        return {file: base_folder / file for file in spec.files}
    if isinstance(spec, SpokenDigitsSpec):
        return {}  # its options and the version of espeak-ng determine it
    if isinstance(spec, (IdxSpec, FashionSpec)):
        files_by_split = idx.find_files(source_path(spec, base_folder))
        image_path_by_name = {f"{split}.images": pair[0] for split, pair in files_by_split.items()}
        return image_path_by_name | {f"{split}.labels": pair[1] for split, pair in files_by_split.items()}
    if isinstance(spec, (CsvSpec, ParquetSpec)):
        root = source_path(spec, base_folder)
        return {path.relative_to(root.parent).as_posix(): path for path in find_table_files(root, spec)}
    return {"source": source_path(spec, base_folder)}


def _content_digest(path: Path, memo: FileMemo) -> str:
    check_ordinary(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_file():
        return memo.digest_of(path)
    files = count_steps(list_files(path), f"looking for changes in {path}")
    name_digest_pairs = ((file.relative_to(path).as_posix(), memo.digest_of(file)) for file in files)
    return text_digest(*(text for pair in name_digest_pairs for text in pair))


def _reader_packages(spec: DataSpec, base_folder: Path) -> set[str]:
    if isinstance(spec, ImagesSpec):
        return {"numpy", "Pillow"}
    if isinstance(spec, TableSpec):
        return {"numpy", "pandas", "pyarrow"}
    if isinstance(spec, SoundSpec):
        return {"numpy", "librosa", "soundfile", "soxr"}
    if not isinstance(spec, FunctionSpec):
        return {"numpy"}
    module_name = _module_name(spec)
    own_packages = {name.partition(".")[0] for name in module_sources.import_closure(module_name, base_folder)}
    foreign_packages = (
        module_sources.imported_packages(module_name, base_folder) - own_packages - sys.stdlib_module_names
    )
    return {"numpy"} | {_DISTRIBUTION_BY_PACKAGE.get(name, name) for name in foreign_packages}
