"""`edgepipe data`: describes a dataset before training: counts, shapes, values, class balance, notes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edgepipe.core import config, references
from edgepipe.core.arrays import Array, Arrays, sole_array
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.input_files import check_ordinary
from edgepipe.core.metric import Record
from edgepipe.data.data_spec import DataSpec, parse
from edgepipe.data.dataset_loading import MAX_CLASS_LABELS, load
from edgepipe.data.source_guess import ACCEPTED_SOURCES, guess_options
from edgepipe.data.split_names import FITTING_SPLITS, Split
from edgepipe.data.splits import DatasetSplits
from edgepipe.pipeline.shipped_pipelines import pipeline_file, pipeline_names

MAX_LISTED_NAMES = 16  # channels, or names of missing classes, that are listed one by one


class InputStatistics(Record):
    """Statistics of one input in the training split, over all samples and positions."""

    name: str = Field(description="the input, and its channel where there are few; empty for the only one")
    low: float
    mean: float
    deviation: float
    high: float


class DatasetSummary(Record):
    """A dataset. Of the test split only the size is shown: only `validate` reads it."""

    source: str
    counts: dict[str, int] = Field(description="samples by split")
    shapes: dict[str, tuple[int, ...]] = Field(description="of one sample, by input")
    values: tuple[InputStatistics, ...]
    labels: str = Field(description="what labels are, in words")
    classes: dict[str, dict[str, int]] = Field(description="class -> samples by split; empty without classes")
    notes: tuple[str, ...]


def describe_dataset(
    dataset_reference: str, base: Path, seed: int | None = None
) -> tuple[DatasetSummary, DatasetSplits]:
    """The dataset that `dataset_reference` names, read and split as a pipeline would.

    Args:
        dataset_reference: a pipeline, also a shipped one by its name, a YAML file with `data:`, `module:function`, or
            a mapping such as `{images: photos/}`.
        base: the folder that an inline description is relative to.
        seed: of the split; None takes the pipeline's, or 0.

    Raises:
        ConfigError: everything wrong with the description, with line and column.
        InputError: the data cannot be read or used.
    """
    document, path, data_section, folder, pipeline_seed = _read_description(dataset_reference, base)
    data_spec = parse(document, path, data_section, folder)
    document.raise_problems()
    if data_spec is None:
        raise InputError(f"'{dataset_reference}' describes no dataset")
    splits = load(data_spec, folder, pipeline_seed if seed is None else seed, FITTING_SPLITS)
    _check_augment(splits)
    return _summarize_dataset(dataset_reference, data_spec, splits), splits


def _read_description(dataset_reference: str, base: Path) -> tuple[Document, KeyPath, Any, Path, int]:
    """The document, the path and content of its `data:`, the folder that paths are relative to, and the seed."""
    file, is_mapping = base / dataset_reference, dataset_reference.lstrip().startswith("{")
    if not is_mapping:
        check_ordinary(file)
        if not file.exists() and dataset_reference in pipeline_names():
            file = pipeline_file(dataset_reference)
    if not is_mapping and file.suffix.lower() in (".yaml", ".yml"):
        document = config.read(file)
        content = document.content
        if isinstance(content, dict) and "data" in content:
            seed = content.get("seed", 0)
            return document, ("data",), content["data"], file.resolve().parent, seed if isinstance(seed, int) else 0
        return document, (), content, file.resolve().parent, 0
    if file.exists() and not is_mapping:
        document = Document(dataset_reference, {"data": guess_options(file)})
        return document, ("data",), document.content["data"], base, 0
    if not references.is_reference(dataset_reference) and not is_mapping:
        raise InputError(
            f"'{dataset_reference[:80]}' is neither a file, a folder, a module:function nor a mapping; give a "
            f"pipeline, {ACCEPTED_SOURCES}, or '{{images: folder}}'"
        )
    document = config.parse(f"data: {dataset_reference}\n", "the description")
    if not isinstance(document.content, dict):
        raise ConfigError(document.problems)
    return document, ("data",), document.content["data"], base, 0


def _check_augment(splits: DatasetSplits) -> None:
    """Raise an `InputError` if the training samples cannot be augmented as `augment:` says."""
    if splits.augment_options is not None:
        from edgepipe.training.augmentation import build_split_augmenter

        build_split_augmenter(splits, splits.class_count)


def _summarize_dataset(source: str, data_spec: DataSpec, splits: DatasetSplits) -> DatasetSummary:
    x = splits.train.x
    array_by_input = x if isinstance(x, dict) else {"": x}
    return DatasetSummary(
        source=source,
        counts={str(split): splits.count_by_split[split] for split in Split},
        shapes={name: tuple(array.shape[1:]) for name, array in array_by_input.items()},
        values=tuple(
            statistics
            for name, array in array_by_input.items()
            for statistics in _input_statistics(name, array, _channel_names(splits))
        ),
        labels=_describe_labels(splits),
        classes=_class_counts(splits),
        notes=(*splits.notes, *_class_gap_notes(splits)),
    )


def _channel_names(splits: DatasetSplits) -> tuple[str, ...]:
    """The columns of a table, which are its channels; none for other sources."""
    windows = splits.preprocessing.windows if splits.preprocessing is not None else None
    return windows.channels if windows is not None else ()


def _input_statistics(name: str, array: Array, channel_names: tuple[str, ...]) -> list[InputStatistics]:
    channel_count = array.shape[-1] if array.ndim > 1 else 1
    if array.ndim < 2 or channel_count > MAX_LISTED_NAMES or channel_count == 1:
        return [_array_statistics(name, array)]
    titles = channel_names if len(channel_names) == channel_count else [f"channel {i}" for i in range(channel_count)]
    return [_array_statistics(f"{name} {title}".strip(), array[..., i]) for i, title in enumerate(titles)]


def _array_statistics(name: str, array: Array) -> InputStatistics:
    float64_array = array.astype(np.float64)
    return InputStatistics(
        name=name, low=float(float64_array.min()), mean=float(float64_array.mean()),
        deviation=float(float64_array.std()), high=float(float64_array.max()),
    )  # fmt: skip


def _describe_labels(splits: DatasetSplits) -> str:
    y = splits.train.y
    if y is None:
        return "none"
    if splits.class_count is not None and splits.class_count <= MAX_CLASS_LABELS:
        return f"{splits.class_count} classes"
    if isinstance(y, dict):
        return "; ".join(f"{name}: {_describe_array(array)}" for name, array in y.items())
    return _describe_array(y)


def _describe_array(y: Array) -> str:
    return f"{y.dtype} of shape {tuple(y.shape[1:])}, {y.min():g} to {y.max():g}"


def _class_counts(splits: DatasetSplits) -> dict[str, dict[str, int]]:
    if splits.class_count is None or splits.class_count > MAX_CLASS_LABELS:
        return {}
    class_names: Sequence[str] = splits.class_names or [str(label) for label in range(splits.class_count)]
    counts_by_split = {
        split: np.bincount(np.ravel(labels), minlength=splits.class_count)
        for split, split_data in splits.data_by_split.items()
        if (labels := sole_array(split_data.y)) is not None
    }
    return {
        name: {str(split): int(split_counts[number]) for split, split_counts in counts_by_split.items()}
        for number, name in enumerate(class_names)
    }


def _class_gap_notes(splits: DatasetSplits) -> list[str]:
    """Notes on splits without samples of some class, and on data of one class only."""
    counts_by_class = _class_counts(splits)
    missing_classes_by_split = {
        split: [name for name, counts in counts_by_class.items() if not counts.get(split)]
        for split in ("train", "validation")
    }
    gap_notes = [
        f"the {split} split has no sample of: {', '.join(names[:MAX_LISTED_NAMES])}"
        for split, names in missing_classes_by_split.items()
        if names
    ]
    return (
        [*gap_notes, "one class only: no classifier can be trained on it"] if len(counts_by_class) == 1 else gap_notes
    )


def pick_samples(splits: DatasetSplits, per_class: int) -> list[tuple[str, Array]]:
    """Up to `per_class` training samples of every class, or of the whole split if there are no classes."""
    x: Arrays = splits.train.x
    array = next(iter(x.values())) if isinstance(x, dict) else x
    y = sole_array(splits.train.y)
    if splits.class_count is None or splits.class_count > MAX_CLASS_LABELS or y is None:
        return [("", array[:per_class])]
    class_names = splits.class_names or [str(label) for label in range(splits.class_count)]
    class_samples = [(name, array[np.ravel(y) == number][:per_class]) for number, name in enumerate(class_names)]
    return [(name, row) for name, row in class_samples if len(row)]
