"""Which source of `data:` reads a file or a folder that a user names: by its content, without reading a sample."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.data import idx
from edgepipe.data.audio import AUDIO_ENDINGS
from edgepipe.data.data_spec import CsvSpec, find_table_files
from edgepipe.data.images import IMAGE_ENDINGS
from edgepipe.data.table_format import find_label_column, preview_table

SourceKind = Literal["npz", "images", "audio", "csv", "parquet", "idx"]
ACCEPTED_SOURCES = (
    "a .npz, .csv, .tsv or .parquet file, a folder of images or recordings (one subfolder per class), of tables or of "
    "IDX files, or module:function"
)
_KIND_BY_FILE_ENDING: dict[str, SourceKind] = {
    ".npz": "npz", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet",
}  # fmt: skip
_ENDINGS_BY_KIND: dict[SourceKind, frozenset[str]] = {
    "images": IMAGE_ENDINGS,
    "audio": AUDIO_ENDINGS,
    "csv": frozenset({".csv", ".tsv"}),
    "parquet": frozenset({".parquet"}),
}
_CLASS_FOLDER_KINDS = ("images", "audio")
_MAX_FILES = 100_000  # that are looked at to tell the kind of a folder


def guess_source(path: Path) -> SourceKind:
    """The source that reads `path`.

    Raises:
        InputError: none does; the message says what was found and what can be read.
    """
    if path.is_dir():
        return _guess_folder(path)
    kind = _KIND_BY_FILE_ENDING.get(path.suffix.lower())
    if kind is None:
        problem = "cannot be read as data" if path.exists() else "no such file or folder"
        raise InputError(f"{path}: {problem}; expected {ACCEPTED_SOURCES}")
    return kind


def guess_options(path: Path) -> dict[str, str]:
    """The source that reads `path` with its options: of text tables, the column that is named like a label.

    Raises:
        InputError: as `guess_source`.
    """
    kind = guess_source(path)
    label = find_label_column(preview_columns(path)) if kind == "csv" and path.exists() else None
    return {kind: str(path), **({"label": label} if label is not None else {})}


def preview_columns(path: Path) -> Mapping[str, Sequence[str]]:
    """The first rows of a text table, or of the first one in a folder, by column."""
    return preview_table(find_table_files(path, CsvSpec(csv=str(path)))[0]).columns


def _guess_folder(folder: Path) -> SourceKind:
    if _is_idx(folder):
        return "idx"
    counts = _count_endings(folder)
    count_by_kind = {kind: sum(counts[ending] for ending in endings) for kind, endings in _ENDINGS_BY_KIND.items()}
    kind = max(count_by_kind, key=lambda name: count_by_kind[name])
    if not count_by_kind[kind]:
        return _guess_texts(folder, counts)
    if kind in _CLASS_FOLDER_KINDS and not any(child.is_dir() for child in folder.iterdir()):
        raise InputError(
            f"{folder}: holds {plural(count_by_kind[kind], 'file')} of {kind} and no subfolder; put those of each "
            "class into a subfolder named after it"
        )
    return kind


def _guess_texts(folder: Path, counts: Counter[str]) -> SourceKind:
    """Tables with the ending .txt, if there is nothing else."""
    if counts[".txt"]:
        return "csv"
    endings = ", ".join(sorted(counts)[:5])
    found_text = f"holds only files that end in {endings}" if counts else "holds no file"
    raise InputError(f"{folder}: {found_text}; expected {ACCEPTED_SOURCES}")


def _count_endings(folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number, path in enumerate(folder.rglob("*")):
        if number >= _MAX_FILES:
            break
        if path.is_file() and not path.name.startswith("."):
            counts[path.suffix.lower()] += 1
    return counts


def _is_idx(folder: Path) -> bool:
    try:
        return bool(idx.find_files(folder))
    except InputError:
        return False
