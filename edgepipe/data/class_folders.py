"""Folders with one subfolder per class, directly or below train/, validation/ (or val/) and test/."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.progress import count_steps
from edgepipe.core.units import plural
from edgepipe.data.split_names import Split

MAX_LISTED = 20  # file names that a message lists; the rest are counted
_SPLIT_BY_FOLDER_NAME = {
    "train": Split.TRAIN,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "test": Split.TEST,
}


def find_split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split; without a train/, `root` itself is the training split.

    Raises:
        InputError: no such folder, two validation folders, or no train/ beside the others.
    """
    check_ordinary(root)
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
    folder_names = [child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if folder_names and set(folder_names) <= set(_SPLIT_BY_FOLDER_NAME):
        raise InputError(f"{root} has {', '.join(f'{name}/' for name in sorted(folder_names))} but no train/")


def unread_folder_notes(root: Path) -> tuple[str, ...]:
    """A note on folders beside train/ that are not splits."""
    if not (root / "train").is_dir():
        return ()
    folder_names = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    unread_names = [name for name in folder_names if name not in _SPLIT_BY_FOLDER_NAME]
    return (f"{root}: folders not read, as they are not splits: {', '.join(unread_names)}",) if unread_names else ()


def check_classes_remain(
    root: Path, all_classes: tuple[str, ...], present_labels: Collection[int], corrupt_files: list[str]
) -> None:
    """Check that training still has samples of each class after corrupt files were skipped.

    Args:
        root: the folder, for messages.
        all_classes: of the classes, in the order of their labels.
        present_labels: those that training samples have.
        corrupt_files: the skipped files with the reason.

    Raises:
        InputError: a class has no sample left.
    """
    lost_classes = [name for label, name in enumerate(all_classes) if label not in present_labels]
    if lost_classes and corrupt_files:
        listing = format_listing(corrupt_files)
        raise InputError(f"{root}: nothing of class {', '.join(lost_classes)} can be read: {listing}")


def format_listing(file_names: list[str]) -> str:
    """The first files, comma-separated, and how many more there are."""
    more_note = f" and {len(file_names) - MAX_LISTED} more" if len(file_names) > MAX_LISTED else ""
    return ", ".join(file_names[:MAX_LISTED]) + more_note


def find_class_names(folder: Path, sample_kind: str, excluded_folder: Path | None = None) -> tuple[str, ...]:
    """The sorted names of the subfolders, without `excluded_folder`.

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
            f"{folder} has no subfolders; put the {sample_kind}s of each class into a subfolder named after it"
        )
    return names


def check_classes(
    folder: Path,
    training_classes: tuple[str, ...],
    endings: frozenset[str],
    sample_kind: str,
    excluded_folder: Path | None = None,
) -> None:
    """Check the class folders of one split.

    Args:
        folder: of the split.
        training_classes: the classes of the training split.
        endings: of the files to look for, lower case with the dot.
        sample_kind: what messages call a sample, such as "image".
        excluded_folder: a subfolder that is not a class; None for none.

    Raises:
        InputError: a class that training does not have, or one without a file.
    """
    for name in find_class_names(folder, sample_kind, excluded_folder):
        if name not in training_classes:
            raise InputError(f"{folder / name}: training has no class '{name}'{did_you_mean(name, training_classes)}")
        if not find_files(folder / name, endings):
            raise InputError(f"{folder / name} holds no {sample_kind} (endings: {', '.join(sorted(endings))})")


def find_files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Every file below `folder` with one of the endings, sorted; with broken links, so that they are reported."""
    matches = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in matches if path.is_file() or (path.is_symlink() and not path.exists()))


def iterate_labelled_files(
    folder: Path, ordered_classes: tuple[str, ...], endings: frozenset[str]
) -> Iterator[tuple[Path, int]]:
    """Each file with its label, the index of its class in `names`."""
    labelled_files = [
        (path, label) for label, name in enumerate(ordered_classes) for path in find_files(folder / name, endings)
    ]
    yield from count_steps(labelled_files, f"reading {folder}")


def skipped_file_notes(root: Path, corrupt_files: list[str], sample_kind: str) -> tuple[str, ...]:
    """A note on the skipped files."""
    if not corrupt_files:
        return ()
    count_text = plural(len(corrupt_files), sample_kind)
    return (f"{root}: skipped {count_text} that cannot be used: {format_listing(corrupt_files)}",)


def unread_file_notes(root: Path, endings: frozenset[str]) -> tuple[str, ...]:
    """A note on the files with other endings."""
    all_files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    unread_names = sorted(path.name for path in all_files if path.suffix.lower() not in endings)
    if not unread_names:
        return ()
    listing = ", ".join(unread_names[:MAX_LISTED])
    return (f"{root}: {plural(len(unread_names), 'file')} with other endings not read: {listing}",)
