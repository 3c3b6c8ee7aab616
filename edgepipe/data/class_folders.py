"""Folders with one subfolder for each class, alone or below train/, validation/ (or val/) and test/."""

from collections.abc import Collection, Iterator
from pathlib import Path

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.data.splits import Split

SHOWN = 20  # names of files that a message lists; more are counted
_FOLDERS = {"train": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}


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
    found = {name: root / name for name in _FOLDERS if (root / name).is_dir()}
    if "val" in found and "validation" in found:
        raise InputError(f"{root} has both val/ and validation/; keep one")
    return {_FOLDERS[name]: folder for name, folder in found.items()}


def _check_no_split(root: Path) -> None:
    names = [child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith(".")]
    if names and set(names) <= set(_FOLDERS):
        raise InputError(f"{root} has {', '.join(f'{name}/' for name in sorted(names))} and no train/ beside")


def beside(root: Path) -> tuple[str, ...]:
    """A note on folders beside train/ that are no split."""
    if not (root / "train").is_dir():
        return ()
    names = sorted(child.name for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = [name for name in names if name not in _FOLDERS]
    return (f"{root}: folders that are no split and were not read: {', '.join(found)}",) if found else ()


def check_left(root: Path, names: tuple[str, ...], labels: Collection[int], corrupt: list[str]) -> None:
    """Raise an `InputError` if skipping corrupt files left training without samples of some class."""
    gone = [name for number, name in enumerate(names) if number not in labels]
    if gone and corrupt:
        more = f" and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
        listed = ", ".join(corrupt[:SHOWN]) + more
        raise InputError(f"{root}: nothing of class {', '.join(gone)} can be read: {listed}")


def class_names(folder: Path, what: str, other: Path | None = None) -> tuple[str, ...]:
    """The sorted names of the subfolders but for `other`.

    Raises:
        InputError: there are none.
    """
    inside = (child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    names = tuple(sorted(child.name for child in inside if other is None or child.resolve() != other.resolve()))
    if not names:
        raise InputError(f"{folder} has no subfolders; put the {what} of each class into a subfolder named after it")
    return names


def check_classes(
    folder: Path, names: tuple[str, ...], endings: frozenset[str], what: str, other: Path | None = None
) -> None:
    """Raise an `InputError` for a class that training does not have, or one without a file."""
    for name in class_names(folder, what, other):
        if name not in names:
            raise InputError(f"{folder / name}: training has no class '{name}'{did_you_mean(name, names)}")
        if not files(folder / name, endings):
            raise InputError(f"{folder / name} holds no {what[:-1]} (endings: {', '.join(sorted(endings))})")


def files(folder: Path, endings: frozenset[str]) -> list[Path]:
    """Everything below `folder` with one of the endings, sorted; with links that lead nowhere, to be named."""
    named = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in named if path.is_file() or (path.is_symlink() and not path.exists()))


def labelled(folder: Path, names: tuple[str, ...], endings: frozenset[str]) -> Iterator[tuple[Path, int]]:
    """Each file with the number of its class."""
    for label, name in enumerate(names):
        yield from ((path, label) for path in files(folder / name, endings))


def skipped(root: Path, corrupt: list[str], what: str) -> tuple[str, ...]:
    """A note on the files that were left out."""
    if not corrupt:
        return ()
    more = f" and {len(corrupt) - SHOWN} more" if len(corrupt) > SHOWN else ""
    return (f"{root}: skipped {len(corrupt)} {what} that cannot be used: {', '.join(corrupt[:SHOWN])}{more}",)


def others(root: Path, endings: frozenset[str], what: str) -> tuple[str, ...]:
    """A note on the files with other endings."""
    below = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = sorted(path.name for path in below if path.suffix.lower() not in endings)
    if not found:
        return ()
    return (f"{root}: {len(found)} files are no {what} and were not read: {', '.join(found[:SHOWN])}",)
