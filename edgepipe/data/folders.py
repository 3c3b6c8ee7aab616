"""Folders with one subfolder for each class, alone or below train/, validation/ (or val/) and test/."""

from collections.abc import Iterator
from pathlib import Path

from edgepipe.data.splits import Split
from edgepipe.errors import InputError, did_you_mean

SHOWN = 20  # names of files that a message lists; more are counted
_FOLDERS = {"train": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}


def split_folders(root: Path) -> dict[Split, Path]:
    """The folder of each split; of training alone if there is no train/.

    Raises:
        InputError: no such folder, or two for validation.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if not (root / "train").is_dir():
        return {Split.TRAIN: root}
    found = {name: root / name for name in _FOLDERS if (root / name).is_dir()}
    if "val" in found and "validation" in found:
        raise InputError(f"{root} has both val/ and validation/; keep one")
    return {_FOLDERS[name]: folder for name, folder in found.items()}


def class_names(folder: Path, what: str) -> tuple[str, ...]:
    """The sorted names of the subfolders.

    Raises:
        InputError: there are none.
    """
    names = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")))
    if not names:
        raise InputError(f"{folder} has no subfolders; put the {what} of each class into a subfolder named after it")
    return names


def check_classes(folder: Path, names: tuple[str, ...], endings: frozenset[str], what: str) -> None:
    """Raise an `InputError` for a class that training does not have, or one without a file."""
    for name in class_names(folder, what):
        if name not in names:
            raise InputError(f"{folder / name}: training has no class '{name}'{did_you_mean(name, names)}")
        if not files(folder / name, endings):
            raise InputError(f"{folder / name} holds no {what[:-1]} (endings: {', '.join(sorted(endings))})")


def files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Everything below `folder` with one of the endings, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())


def labelled(folder: Path, names: tuple[str, ...], endings: frozenset[str]) -> Iterator[tuple[Path, int]]:
    """Each file with the number of its class."""
    for label, name in enumerate(names):
        yield from ((path, label) for path in files(folder / name, endings))


def skipped(root: Path, corrupt: list[str], what: str) -> tuple[str, ...]:
    """A note on the files that were left out."""
    if not corrupt:
        return ()
    more = f" and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
    return (f"{root}: skipped {len(corrupt)} {what} that cannot be read: {', '.join(corrupt[:SHOWN])}{more}",)


def others(root: Path, endings: frozenset[str], what: str) -> tuple[str, ...]:
    """A note on the files with other endings."""
    below = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = sorted(path.name for path in below if path.suffix.lower() not in endings)
    if not found:
        return ()
    return (f"{root}: {len(found)} files are no {what} and were not read: {', '.join(found[:SHOWN])}",)
