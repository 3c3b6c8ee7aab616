"""Folders with one subfolder for each class, alone or below train/, validation/ (or val/) and test/."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.data.splits import Split

MAX_LISTED = 20  # names of files that a message lists; more are counted
_SPLIT_BY_FOLDER_NAME = {
    "train": Split.TRAIN,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "test": Split.TEST,
}


def split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split; of training alone if there is no train/.

    Raises:
        InputError: no such folder, two for validation, or splits without training.
    """
    if not root.is_dir():
        raise InputError(f"{root}: {'a file; a folder was expected' if root.exists() else 'no such folder'}")
    if not (root / "train").is_dir():
        _check_no_split(root)
        return {Split.TRAIN: root}
    folder_by_name = {name: root / name for name in _SPLIT_BY_FOLDER_NAME if (root / name).is_dir()}
    if "val" in folder_by_name and "validation" in folder_by_name:
        raise InputError(f"{root} has both val/ and validation/; keep one")
    return {_SPLIT_BY_FOLDER_NAME[name]: folder for name, folder in folder_by_name.items()}


def _check_no_split(root: Path) -> None:
    names = [child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if names and set(names) <= set(_SPLIT_BY_FOLDER_NAME):
        raise InputError(f"{root} has {', '.join(f'{name}/' for name in sorted(names))} and no train/ beside")


def unread_folder_notes(root: Path) -> tuple[str, ...]:
    """A note on folders beside train/ that are no split."""
    if not (root / "train").is_dir():
        return ()
    names = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    unread_names = [name for name in names if name not in _SPLIT_BY_FOLDER_NAME]
    return (f"{root}: folders that are no split and were not read: {', '.join(unread_names)}",) if unread_names else ()


def check_classes_remain(root: Path, names: tuple[str, ...], labels: Collection[int], corrupt_files: list[str]) -> None:
    """Raise an `InputError` if skipping corrupt files left training without samples of some class."""
    lost_classes = [name for label, name in enumerate(names) if label not in labels]
    if lost_classes and corrupt_files:
        more_note = f" and {len(corrupt_files) - MAX_LISTED} more" if len(corrupt_files) > MAX_LISTED else ""
        listing = ", ".join(corrupt_files[:MAX_LISTED]) + more_note
        raise InputError(f"{root}: nothing of class {', '.join(lost_classes)} can be read: {listing}")


def class_names(folder: Path, sample_kind: str, excluded_folder: Path | None = None) -> tuple[str, ...]:
    """The sorted names of the subfolders but for `other`.

    Raises:
        InputError: there are none.
    """
    subfolders = (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    names = tuple(
        sorted(
            child.name
            for child in subfolders
            if excluded_folder is None or child.resolve() != excluded_folder.resolve()
        )
    )
    if not names:
        raise InputError(
            f"{folder} has no subfolders; put the {sample_kind} of each class into a subfolder named after it"
        )
    return names


def check_classes(
    folder: Path, names: tuple[str, ...], endings: frozenset[str], sample_kind: str, excluded_folder: Path | None = None
) -> None:
    """Raise an `InputError` for a class that training does not have, or one without a file."""
    for name in class_names(folder, sample_kind, excluded_folder):
        if name not in names:
            raise InputError(f"{folder / name}: training has no class '{name}'{did_you_mean(name, names)}")
        if not find_files(folder / name, endings):
            raise InputError(f"{folder / name} holds no {sample_kind[:-1]} (endings: {', '.join(sorted(endings))})")


def find_files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Everything below `folder` with one of the endings, sorted; with links that lead nowhere, to be named."""
    matches = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in matches if path.is_file() or (path.is_symlink() and not path.exists()))


def labelled_files(folder: Path, names: tuple[str, ...], endings: frozenset[str]) -> Iterator[tuple[Path, int]]:
    """Each file with the number of its class."""
    for label, name in enumerate(names):
        yield from ((path, label) for path in find_files(folder / name, endings))


def skipped_file_notes(root: Path, corrupt_files: list[str], sample_kind: str) -> tuple[str, ...]:
    """A note on the files that were left out."""
    if not corrupt_files:
        return ()
    more_note = f" and {len(corrupt_files) - MAX_LISTED} more" if len(corrupt_files) > MAX_LISTED else ""
    return (
        f"{root}: skipped {len(corrupt_files)} {sample_kind} that cannot be used: {', '.join(corrupt_files[:MAX_LISTED])}{more_note}",
    )


def unread_file_notes(root: Path, endings: frozenset[str], sample_kind: str) -> tuple[str, ...]:
    """A note on the files with other endings."""
    all_files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    unread_names = sorted(path.name for path in all_files if path.suffix.lower() not in endings)
    if not unread_names:
        return ()
    return (
        f"{root}: {len(unread_names)} files are no {sample_kind} and were not read: {', '.join(unread_names[:MAX_LISTED])}",
    )
