"""Files that come with edgepipe: device profiles and pipelines."""

from pathlib import Path

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


def shipped_folder(name: str) -> Path:
    """The shipped folder `devices` or `pipelines`: inside the wheel, or next to the package in the repository."""
    packaged_folder = PACKAGE_FOLDER / "shipped" / name
    return packaged_folder if packaged_folder.is_dir() else PACKAGE_FOLDER.parent / name
