"""The pipelines that come with edgepipe, by name: `edgepipe run digits`, `edgepipe pipelines copy digits`."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.core import config
from edgepipe.core.artifact import copy_atomically
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.shipped_files import shipped_folder
from edgepipe.pipeline.settings import entry_name


@dataclass(frozen=True)
class ShippedPipeline:
    """A shipped pipeline: its name on the command line, what it does, and the names of its stages."""

    name: str
    description: str
    stages: tuple[str, ...]


def pipeline_names() -> list[str]:
    """The names of the shipped pipelines, sorted."""
    return sorted(file.stem for file in shipped_folder("pipelines").glob("*.yaml"))


def list_pipelines() -> list[ShippedPipeline]:
    """The shipped pipelines, sorted by name."""
    return [_describe_pipeline(name) for name in pipeline_names()]


def pipeline_file(name_or_path: Path | str) -> Path:
    """The file of the pipeline `name_or_path`; an existing file comes before a shipped pipeline of the same name.

    Raises:
        InputError: a plain name that is neither a file nor a shipped pipeline.
    """
    check_ordinary(Path(name_or_path))
    path = Path(name_or_path)
    if path.exists() or not is_plain_name(str(name_or_path)):
        return path
    return _shipped_file(str(name_or_path))


def is_plain_name(text: str) -> bool:
    """Whether `text` can be the name of a shipped pipeline: one word without a suffix."""
    return text.replace("-", "_").isidentifier()


def copy_pipeline(name: str, target: Path, force: bool = False) -> Path:
    """Copy the shipped pipeline `name` to `target`, a .yaml file or a folder, and return the file written.

    Raises:
        InputError: there is no such pipeline, or the file exists and `force` is not given.
        StorageError: the file cannot be written.
    """
    source_file = _shipped_file(name)
    target_file = target if target.suffix.lower() in (".yaml", ".yml") else target / source_file.name
    if target_file.exists() and not force:
        raise InputError(f"{target_file}: exists already; --force replaces it")
    copy_atomically(source_file, target_file)
    return target_file


def _shipped_file(name: str) -> Path:
    if name not in pipeline_names():
        raise InputError(f"'{name}' is neither a file nor a shipped pipeline{did_you_mean(name, pipeline_names())}")
    return shipped_folder("pipelines") / f"{name}.yaml"


def _describe_pipeline(name: str) -> ShippedPipeline:
    content = config.read(_shipped_file(name)).content
    return ShippedPipeline(name, content["description"], tuple(entry_name(entry) for entry in content["stages"]))
