"""The data of the new pipeline, as named on the command line; inspected without reading any sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edgepipe.commands.init.model_info import ModelInfo
from edgepipe.commands.init.output_location import OutputLocation
from edgepipe.core import references
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.npy_headers import ArrayHeader, read_npz_headers
from edgepipe.data.rescale_choice import choose_rescale, largest_of_npz
from edgepipe.data.source_guess import ACCEPTED_SOURCES, SourceKind, guess_source, preview_columns
from edgepipe.data.table_format import find_label_column, find_time_columns
from edgepipe.models.model_description import Shape

LabelKind = Literal["classes", "values", "none", "unknown"]
_BUILTIN_DATASETS = {"edgepipe.data:digits", "edgepipe.data:fashion_mnist"}


@dataclass(frozen=True)
class DataSource:
    """The options of `data:` (None: the pipeline needs no data), their comment, and the kind of labels."""

    options: dict[str, Any] | None
    comment: str
    label_kind: LabelKind = "unknown"
    is_placeholder: bool = False
    option_comments: Mapping[str, str] = field(default_factory=dict)  # of single options
    notes: tuple[str, ...] = ()


def inspect_data(data: str | None, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    """Inspect `data`, as the user named it; None gives a placeholder, or no data for a model that needs none.

    Raises:
        InputError: a form of data that edgepipe does not read, or a damaged file.
    """
    if data is None:
        return _placeholder_source(model_info)
    path = Path(data)
    check_ordinary(path)
    if not path.exists() and references.is_reference(data):
        return _inspect_function(data, model_info, location)
    kind = guess_source(path)
    if kind == "npz":
        data_source = _inspect_npz(path, model_info, location)
        largest = largest_of_npz(path, "x") if path.exists() else None
        return data_source if largest is None else _with_rescale(data_source, model_info, largest)
    if not path.exists():
        raise InputError(f"{path}: no such file; expected {ACCEPTED_SOURCES}")
    if kind in ("csv", "parquet"):
        return _inspect_tables(kind, path, model_info, location)
    if kind == "audio":
        return _inspect_audio(path, model_info, location)
    return _with_rescale(_inspect_images(kind, path, model_info, location), model_info, 255.0)


def _inspect_tables(kind: SourceKind, path: Path, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    options: dict[str, Any] = {kind: location.relative_path(path)}
    columns = preview_columns(path) if kind == "csv" else {}
    label = find_label_column(columns)
    shape = _single_input_shape(model_info)
    if label is not None:
        options["label"] = label
    if shape is not None and len(shape) == 2 and shape[0] is not None:
        options["window"] = shape[0]
    comments = {"label": "the column that is named like one", "window": "rows of a sample, as the model takes them"}
    time_notes = [f"column '{name}' will not be read: it {why}" for name, why in find_time_columns(columns).items()]
    label_notes = [] if label is not None else ["name the column of the labels: `label:` under `data:`"]
    return DataSource(
        options, f"columns {', '.join(columns)}" if columns else "tables", "unknown", option_comments=comments,
        notes=(*time_notes, *label_notes),
    )  # fmt: skip


def _inspect_audio(path: Path, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    options: dict[str, Any] = {"audio": location.relative_path(path)}
    shape = _single_input_shape(model_info)
    if shape is not None and len(shape) == 2 and shape[0] is not None:
        options |= {"features": "none", "seconds": shape[0] / 16_000}
    comments = {"features": "the waveform itself, as the model takes it", "seconds": "at 16,000 samples a second"}
    note = "features and rate must be those of the model's training: `edgepipe data --options audio` lists them"
    return DataSource(options, "one subfolder per class", "classes", option_comments=comments, notes=(note,))


def _single_input_shape(model_info: ModelInfo) -> Shape | None:
    """The shape of one sample of a model with one input, if the file tells it."""
    shapes = [port.shape[1:] for port in model_info.inputs if len(port.shape) > 1]
    return shapes[0] if len(shapes) == len(model_info.inputs) == 1 else None


def _with_rescale(data_source: DataSource, model_info: ModelInfo, largest: float) -> DataSource:
    """The source with the `rescale` that the model expects, and why; with a note where nothing tells."""
    if data_source.options is None:
        return data_source
    expectation = model_info.expectation
    choice = None if expectation is None else choose_rescale(expectation, largest)
    if choice is not None and expectation is not None:
        mode, comment = choice.mode, f"{choice.low:g} to {choice.high:g}: the model {expectation.describe()}"
        notes = data_source.notes
    else:
        mode = "unit"
        reason = (
            "no layer of the model tells which range it was trained on"
            if expectation is None
            else f"the model {expectation.describe()}: no rescale gives that"
        )
        comment = f"a guess, 0 to 1: {reason}; `edgepipe run` tries the others"
        notes = (
            *data_source.notes,
            f"`rescale: {mode}` is a guess: {reason}; the first stage of a run tries the others",
        )
    return replace(
        data_source,
        options={**data_source.options, "rescale": mode},
        option_comments={**data_source.option_comments, "rescale": comment},
        notes=notes,
    )


def _placeholder_source(model_info: ModelInfo) -> DataSource:
    if model_info.kind is ArtifactKind.TFLITE:
        return DataSource(None, "", notes=("without data the quality is not measured; give --data or fill in `data:`",))
    has_many_inputs = len(model_info.inputs) > 1
    options = {"function": "mydata:load"} if has_many_inputs else {"npz": "data.npz"}
    comment = (
        "FILL IN: a function that returns ({input name: array, ..}, y)"
        if has_many_inputs
        else "FILL IN: arrays x and y"
    )
    note = "no --data was given: fill in `data:`; until then `edgepipe check` reports it as missing"
    return DataSource(options, comment, is_placeholder=True, notes=(note,))


def _inspect_function(reference: str, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    notes = []
    try:
        references.check(reference, location.folder)
    except InputError as error:
        notes.append(f"data: {reference}: {error}")
    return_text = "({input name: array, ..}, y)" if len(model_info.inputs) > 1 else "(x, y)"
    label_kind: LabelKind = "classes" if reference in _BUILTIN_DATASETS else "unknown"
    return DataSource({"function": reference}, f"returns {return_text}", label_kind, notes=tuple(notes))


def _inspect_images(kind: SourceKind, path: Path, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    if kind == "idx":
        return DataSource({"idx": location.relative_path(path)}, "four IDX files", "classes")
    options: dict[str, Any] = {"images": location.relative_path(path)}
    image_shape = model_info.inputs[0].shape[1:] if len(model_info.inputs) == 1 else ()
    if len(image_shape) != 3 or None in image_shape or image_shape[2] not in (1, 3):
        shape_note = f", and the model takes {image_shape}" if image_shape else ""
        note = f"images have the shape (height, width, 1 or 3){shape_note}; set `size:` and `channels:` under `data:`"
        return DataSource(options, "one subfolder per class", "classes", notes=(note,))
    return DataSource(
        {**options, "size": list(image_shape[:2]), "channels": image_shape[2]}, "one subfolder per class", "classes"
    )


def _inspect_npz(path: Path, model_info: ModelInfo, location: OutputLocation) -> DataSource:
    options = {"npz": location.relative_path(path)}
    if not path.exists():
        return DataSource(
            options, "arrays x and y", notes=(f"{path} does not exist yet; `edgepipe check` will report it",)
        )
    array_headers = read_npz_headers(path)
    array_names = ", ".join(array_headers)
    x_header, y_header = (array_headers.get(name) or array_headers.get(f"{name}_train") for name in "xy")
    if x_header is None:
        note = f"{path} holds {array_names}; name its samples and labels under `data:`, as `x: ..` and `y: ..`"
        return DataSource(options, f"holds {array_names}", notes=(note,))
    return DataSource(
        options, f"holds {array_names}", _label_kind(y_header), notes=_shape_notes(path, x_header, model_info)
    )


def _label_kind(y_header: ArrayHeader | None) -> LabelKind:
    if y_header is None:
        return "none"
    is_flat = len(y_header.shape) == 1 or (len(y_header.shape) == 2 and y_header.shape[1] == 1)
    return "classes" if is_flat and y_header.dtype.kind in "iu" else "values"


def _shape_notes(path: Path, x_header: ArrayHeader, model_info: ModelInfo) -> tuple[str, ...]:
    if len(model_info.inputs) > 1:
        note = (
            f"the model has {len(model_info.inputs)} inputs and an .npz gives one; write a function that returns a dict"
        )
        return (note,)
    model_shape = model_info.inputs[0].shape[1:] if model_info.inputs and len(model_info.inputs[0].shape) > 1 else None
    sample_shape = x_header.shape[1:]
    if model_shape is None or _is_shape_compatible(model_shape, sample_shape):
        return ()
    return (f"the samples in {path} have the shape {sample_shape}, but the model takes {model_shape}",)


def _is_shape_compatible(model_shape: Shape, sample_shape: tuple[int, ...]) -> bool:
    return len(model_shape) == len(sample_shape) and all(
        model_size in (None, sample_size) for model_size, sample_size in zip(model_shape, sample_shape, strict=True)
    )
