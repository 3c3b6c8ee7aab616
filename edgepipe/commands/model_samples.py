"""Samples for one model from whatever a user names: a file of arrays, a folder, tables, a pipeline, a description."""

from dataclasses import dataclass
from pathlib import Path

from edgepipe.commands.dataset import describe_dataset
from edgepipe.commands.init.data_source import inspect_data
from edgepipe.commands.init.model_info import inspect_model
from edgepipe.commands.init.output_location import OutputLocation
from edgepipe.commands.init.pipeline_text import yaml_value
from edgepipe.core.arrays import Array, Arrays, sole_array
from edgepipe.data import sample_files

ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True)
class ModelSamples:
    """Training samples, which calibrate; samples to compare on and their labels; notes on what was read and how."""

    train_x: Arrays
    compared_x: Arrays
    compared_y: Array | None
    notes: tuple[str, ...]


def read_model_samples(data: str, model_path: Path) -> ModelSamples:
    """The samples that `data` names, sized and scaled as the model at `model_path` expects where its file tells.

    Raises:
        InputError: `data` is none of the forms that can be read, or holds no usable samples.
    """
    if data.endswith(ARRAY_SUFFIXES):
        sample_file = sample_files.read(Path(data))
        return ModelSamples(sample_file.x, sample_file.x, sample_file.y, sample_file.notes)
    description, notes = _describe_for_model(data, model_path)
    summary, splits = describe_dataset(description, Path.cwd())
    validation_data = splits.validation
    return ModelSamples(splits.train.x, validation_data.x, sole_array(validation_data.y), (*notes, *summary.notes))


def _describe_for_model(data: str, model_path: Path) -> tuple[str, tuple[str, ...]]:
    """A file or folder as a mapping with the options that suit the model; other descriptions as they are."""
    path = Path(data)
    if not path.exists() or path.suffix.lower() in (".yaml", ".yml"):
        return data, ()
    location = OutputLocation(Path.cwd().resolve())
    source = inspect_data(data, inspect_model(str(model_path), location), location)
    options_text = ", ".join(f"{key}: {yaml_value(option)}" for key, option in (source.options or {}).items())
    reasons = "; ".join(f"{key}: {comment}" for key, comment in source.option_comments.items())
    note = f"{data}: read as {{{options_text}}}" + (f" ({reasons})" if reasons else "")
    return f"{{{options_text}}}", (note, *source.notes)
