"""`edgepipe init`: inspects the user's model and writes a commented pipeline for it. Imports no TensorFlow.

`model_info` inspects the model, `data_source` its data, `task_guess` guesses the task, `pipeline_text` writes the file.
"""

from collections.abc import Collection
from pathlib import Path

from edgepipe.commands.init import data_source, model_info, pipeline_text
from edgepipe.commands.init.output_location import OutputLocation
from edgepipe.commands.init.task_guess import TaskGuess, guess_task
from edgepipe.core.artifact import write_text
from edgepipe.core.errors import InputError
from edgepipe.devices import device_profile

__all__ = ["write"]


def write(
    model: str,
    out: Path,
    *,
    data: str | None = None,
    devices: Collection[str] = ("host",),
    force: bool = False,
    custom_objects: str | None = None,
) -> tuple[str, ...]:
    """Write a pipeline for `model` to the file `out`, whole or not at all.

    Args:
        model: a .keras, .h5 or .tflite file, a SavedModel folder, or module:function (beside `out` or installed).
        out: the YAML file; paths in it are relative to its folder.
        data: a .npz file, a folder of images or IDX files, or module:function; None leaves a marked placeholder.
        devices: the profiles to validate for, by name or path.
        force: replace `out` if it exists.
        custom_objects: `module:attribute`, the model's own classes, beside `out` or installed.

    Returns:
        Notes on what was guessed and on what the user must fill in.

    Raises:
        InputError: no usable model, data or device, or `out` exists.
        StorageError: `out` cannot be written.
    """
    location = OutputLocation.for_file(out)
    inspected_model = model_info.inspect_model(model, location, custom_objects)
    inspected_data = data_source.inspect_data(data, inspected_model, location)
    profile_by_reference = {
        location.device_reference(device): device_profile.load(device, Path.cwd()) for device in devices
    }
    _check_target(out, (model, data, *devices), force)
    task_guess = guess_task(inspected_model, inspected_data.label_kind)
    write_text(out, pipeline_text.render_pipeline(inspected_model, inspected_data, task_guess, profile_by_reference))
    return (*inspected_model.notes, *_code_note(inspected_model), *inspected_data.notes, _task_note(task_guess))


def _code_note(inspected_model: model_info.ModelInfo) -> tuple[str, ...]:
    if not inspected_model.code_descriptions:
        return ()
    code_text = ", ".join(inspected_model.code_descriptions)
    return (f"the model carries code ({code_text}): keep `allow_code: true` only if you trust its source",)


def _task_note(task_guess: TaskGuess) -> str:
    summary = f"the task is a guess: {task_guess.task_name}" if task_guess.task_name else "no task was chosen"
    return f"{summary} ({task_guess.reason})"


def _check_target(out: Path, input_names: tuple[str | None, ...], force: bool) -> None:
    if any(name is not None and Path(name).exists() and out.exists() and out.samefile(name) for name in input_names):
        raise InputError(f"{out}: is an input of the pipeline; write it to another file with -o FILE")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; name the file to write with -o FILE")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; replace it with --force, or write another with -o FILE")
