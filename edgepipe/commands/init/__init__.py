"""`edgepipe init`: looks at a model the user has and writes a commented pipeline for it. Imports no TensorFlow.

`look` tells what the model is, `given` what its data is, `guess` which task it is for, `page` writes the text.
"""

from pathlib import Path

from edgepipe.commands.init import data_source, model_info, pipeline_text
from edgepipe.commands.init.output_location import Place
from edgepipe.commands.init.task_guess import Guess, guess
from edgepipe.core.artifact import write_text
from edgepipe.core.errors import InputError
from edgepipe.devices import device_profile

__all__ = ["write"]


def write(
    model: str, out: Path, *, data: str | None = None, device: str = "host", force: bool = False
) -> tuple[str, ...]:
    """Write a pipeline for `model` to the file `out`, whole or not at all.

    Args:
        model: a .keras, .h5 or .tflite file, a SavedModel folder, or module:function (beside `out` or installed).
        out: the YAML file; paths in it are relative to its folder.
        data: a .npz file, a folder of images or IDX files, or module:function; None leaves a marked placeholder.
        device: the profile to validate for, by name or path.
        force: replace `out` if it exists.

    Returns:
        Notes: what was guessed, and what the user must fill in.

    Raises:
        InputError: no usable model, data or device, or `out` exists.
        StorageError: `out` cannot be written.
    """
    place = Place.of(out)
    seen = model_info.look(model, place)
    found = data_source.given(data, seen, place)
    chosen = device_profile.load(device, Path.cwd())
    _check_target(out, (model, data, device), force)
    task = guess(seen, found.labels)
    write_text(out, pipeline_text.text(seen, found, task, chosen, place.device(device)))
    return (*seen.notes, *_code_note(seen), *found.notes, _task_note(task))


def _code_note(seen: model_info.Seen) -> tuple[str, ...]:
    if not seen.code:
        return ()
    return (f"the model carries code ({', '.join(seen.code)}): leave `allow_code: true` if you trust who made it",)


def _task_note(task: Guess) -> str:
    told = f"the task is a guess: {task.name}" if task.name else "no task was chosen"
    return f"{told}, for {task.why}"


def _check_target(out: Path, read: tuple[str | None, ...], force: bool) -> None:
    if any(name is not None and Path(name).exists() and out.exists() and out.samefile(name) for name in read):
        raise InputError(f"{out}: is what the pipeline is made from; write it to another file with -o FILE")
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the file to write with -o FILE")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; replace it with --force, or write another with -o FILE")
