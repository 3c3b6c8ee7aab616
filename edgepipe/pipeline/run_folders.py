"""The folders of runs: `runs/NAME/<time>-<digest>`, kept side by side, and `latest`, which points to the newest.

A run folder appears by one rename when everything is in it, so that runs at the same time never mix and a killed run
leaves none. `latest` is a symbolic link, or a text file with the folder's name where links cannot be created; either is
replaced by one rename.
"""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from edgepipe.core.artifact import json_digest, stage_beside, wrap_storage_errors, write_text
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.pipeline.run_record import RunDefinition

RUNS_FOLDER = Path("runs")
LATEST = "latest"
REPORT_FILE = "report.json"
_FOLDER_PATTERN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}(?:-\d+)?")
_MAX_POINTER_BYTES = 256  # a pointer file holds one folder name


def run_folder_name(started: datetime, definition: RunDefinition) -> str:
    """The name of a run's folder: its start in UTC, and a digest of its pipeline and inputs.

    Two runs of the same pipeline on the same inputs share the digest.
    """
    identity = [definition.pipeline, [run_input.model_dump() for run_input in definition.inputs]]
    return f"{started.astimezone(UTC):%Y%m%d-%H%M%S}-{json_digest(identity)[:8]}"


def create_run_folder(parent: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Create the folder `name` below `parent`, with what `write` writes into it, and point `latest` to it.

    A folder of that name is kept; the new one gets a number.

    Returns: the folder.

    Raises:
        StorageError: the folder cannot be written; nothing is left of it.
    """
    with stage_beside(parent / "run") as staging_folder:
        complete_folder = staging_folder / name
        complete_folder.mkdir()
        write(complete_folder)
        with wrap_storage_errors(str(parent / name)):
            folder = _rename_to_free_name(complete_folder, parent / name)
    point_latest_to(folder)
    return folder


def _rename_to_free_name(complete_folder: Path, target: Path) -> Path:
    number, candidate = 1, target
    while True:
        try:
            return complete_folder.rename(candidate)
        except OSError:  # a folder of that name, which is never empty, so that the rename cannot replace it
            if not candidate.exists():
                raise
        number += 1
        candidate = target.with_name(f"{target.name}-{number}")


def point_latest_to(folder: Path) -> None:
    """Make `latest` beside `folder` point to it.

    Raises:
        StorageError: it cannot be written.
    """
    pointer = folder.parent / LATEST
    with stage_beside(pointer) as staging_folder, wrap_storage_errors(str(pointer)):
        link = staging_folder / LATEST
        try:
            link.symlink_to(folder.name, target_is_directory=True)
        except (OSError, NotImplementedError):  # a file system, or a Windows account, without symbolic links
            write_text(link, f"{folder.name}\n")
        link.replace(pointer)


def find_latest(parent: Path) -> Path | None:
    """The run folder that `latest` in `parent` points to; None without one.

    Raises:
        InputError: it points to nothing, or out of `parent`.
    """
    pointer = parent / LATEST
    if not pointer.is_symlink() and not pointer.is_file():
        return None
    name = _read_pointer(pointer)
    if not _FOLDER_PATTERN.fullmatch(name):
        raise InputError(f"{pointer}: points to '{name[:80]}', which is not the name of a run folder beside it")
    if not (parent / name).is_dir():
        raise InputError(f"{pointer}: points to {name}, which does not exist; give another run of {parent}")
    return parent / name


def _read_pointer(pointer: Path) -> str:
    if pointer.is_symlink():
        return str(pointer.readlink())
    with pointer.open("rb") as stream:
        return stream.read(_MAX_POINTER_BYTES).decode(errors="replace").strip()


def list_run_folders(parent: Path) -> list[Path]:
    """The finished runs below `parent` that edgepipe named, newest first."""
    if not parent.is_dir():
        return []
    folders = [folder for folder in parent.iterdir() if _FOLDER_PATTERN.fullmatch(folder.name)]
    complete_folders = [folder for folder in folders if not folder.is_symlink() and (folder / REPORT_FILE).is_file()]
    return sorted(complete_folders, key=_sort_key, reverse=True)


def _sort_key(folder: Path) -> tuple[str, int]:
    """When a run began, by the name of its folder; of those in the same second, when it was written."""
    return folder.name.rsplit("-", 2 if folder.name.count("-") > 2 else 1)[0], folder.stat().st_mtime_ns


def pipelines_with_runs(runs_folder: Path) -> list[str]:
    """The names of the pipelines that have runs below `runs_folder`, sorted."""
    if not runs_folder.is_dir():
        return []
    return sorted(folder.name for folder in runs_folder.iterdir() if list_run_folders(folder))


def resolve_run(text: str, runs_folder: Path) -> Path:
    """The path that `text` stands for: a path, or `NAME` or `NAME/RUN` below `runs_folder`.

    Raises:
        InputError: there is no such run.
    """
    for path in (Path(text), runs_folder / text):
        if path.exists():
            return path
    names = pipelines_with_runs(runs_folder)
    run_names = [f"{name}/{folder.name}" for name in names for folder in list_run_folders(runs_folder / name)]
    hint = did_you_mean(text, names) if "/" not in text else did_you_mean(text, run_names[:10])
    raise InputError(f"{text}: no such run, neither a path nor below {runs_folder}{hint}")


def find_report(path: Path) -> Path:
    """The `report.json` that `path` stands for: itself, the one in a run's folder, or in the latest run below `path`.

    Raises:
        InputError: there is none, or both a report and runs.
    """
    if path.name == LATEST and path.is_file():
        return find_report(find_latest(path.parent) or path)
    if not path.is_dir():
        return path
    latest_folder = find_latest(path)
    report_file = (latest_folder or path) / REPORT_FILE
    if latest_folder is not None and (path / REPORT_FILE).exists():
        raise InputError(
            f"{path}: holds a {REPORT_FILE} of its own and runs; give {path / REPORT_FILE} or {path / LATEST}"
        )
    if not report_file.exists():
        raise InputError(
            f"{path}: holds no {REPORT_FILE}; give the folder of a run that has ended, or its {REPORT_FILE}"
        )
    return report_file


def remove_run_folder(folder: Path) -> None:
    """Remove a run folder: first renamed, so that a half-removed one is never listed.

    Raises:
        StorageError: it cannot be removed.
    """
    with stage_beside(folder.parent / "run") as staging_folder, wrap_storage_errors(str(folder)):
        folder.rename(staging_folder / folder.name)
        shutil.rmtree(staging_folder / folder.name)
