"""A dataset before anyone trains on it: counts, shapes, values, balance, notes. `edgepipe data`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edgepipe.core import config, references
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.config import Document, Path_
from edgepipe.core.errors import ConfigError, InputError
from edgepipe.core.metric import Record
from edgepipe.data.data_spec import DataSpec, parse
from edgepipe.data.dataset_loading import MANY_CLASSES, load
from edgepipe.data.splits import FITTING, Split, Splits

CHANNELS = 16  # up to so many are told one by one


class Values(Record):
    """What one input holds in the training split, over all samples and places."""

    name: str = Field(description="the input, and its channel where there are few; empty for the only one")
    low: float
    mean: float
    deviation: float
    high: float


class Described(Record):
    """A dataset. Of the test split only its size is told: it is read once, by `validate`."""

    source: str
    counts: dict[str, int] = Field(description="samples by split")
    shapes: dict[str, tuple[int, ...]] = Field(description="of one sample, by input")
    values: tuple[Values, ...]
    labels: str = Field(description="what labels are, in words")
    classes: dict[str, dict[str, int]] = Field(description="class -> samples by split; empty without classes")
    notes: tuple[str, ...]


def describe(description: str, base: Path, seed: int | None = None) -> tuple[Described, Splits]:
    """The dataset that `description` names, read and split as a pipeline would.

    Args:
        description: a pipeline, a YAML file with `data:`, `module:function`, or a mapping such as `{images: photos/}`.
        base: the folder that an inline description is relative to.
        seed: of the split; None takes the pipeline's, or 0.

    Raises:
        ConfigError: everything wrong with the description, with line and column.
        InputError: whatever is wrong with the data.
    """
    document, path, value, folder, own = _read(description, base)
    spec = parse(document, path, value, folder)
    document.raise_problems()
    if spec is None:
        raise InputError(f"'{description}' describes no dataset")
    splits = load(spec, folder, own if seed is None else seed, FITTING)
    _check_augment(splits)
    return _described(description, spec, splits), splits


def _read(description: str, base: Path) -> tuple[Document, Path_, Any, Path, int]:
    """The document, where the dataset stands in it, the folder it is relative to, and the seed."""
    file = base / description
    if file.suffix.lower() in (".yaml", ".yml") or file.is_file():
        document = config.read(file)
        data = document.data
        if isinstance(data, dict) and "data" in data:
            seed = data.get("seed", 0)
            return document, ("data",), data["data"], file.resolve().parent, seed if isinstance(seed, int) else 0
        return document, (), data, file.resolve().parent, 0
    if not references.is_reference(description) and not description.lstrip().startswith("{"):
        raise InputError(
            f"'{description[:80]}' is no file, no module:function and no mapping; give a pipeline, "
            "edgepipe.data:digits, or '{images: folder}'"
        )
    document = config.parse(f"data: {description}\n", "the description")
    if not isinstance(document.data, dict):
        raise ConfigError(document.problems)
    return document, ("data",), document.data["data"], base, 0


def _check_augment(splits: Splits) -> None:
    """Raise an `InputError` if training samples cannot be changed as `augment:` says."""
    if splits.augment is not None:
        from edgepipe.training.augmentation import augmenter

        augmenter(splits, splits.classes)


def _described(source: str, spec: DataSpec, splits: Splits) -> Described:
    x = splits.train.x
    named = x if isinstance(x, dict) else {"": x}
    return Described(
        source=source,
        counts={str(split): splits.counts[split] for split in Split},
        shapes={name: tuple(array.shape[1:]) for name, array in named.items()},
        values=tuple(value for name, array in named.items() for value in _values(name, array)),
        labels=_labels(splits),
        classes=_classes(splits),
        notes=(*splits.notes, *_gaps(splits)),
    )


def _values(name: str, array: Array) -> list[Values]:
    channels = array.shape[-1] if array.ndim > 1 else 1
    if array.ndim < 2 or channels > CHANNELS or channels == 1:
        return [_told(name, array)]
    return [_told(f"{name} channel {number}".strip(), array[..., number]) for number in range(channels)]


def _told(name: str, array: Array) -> Values:
    exact = array.astype(np.float64)
    return Values(
        name=name, low=float(exact.min()), mean=float(exact.mean()), deviation=float(exact.std()),
        high=float(exact.max()),
    )  # fmt: skip


def _labels(splits: Splits) -> str:
    y = splits.train.y
    if y is None:
        return "none"
    if splits.classes is not None and splits.classes <= MANY_CLASSES:
        return f"{splits.classes} classes"
    return f"{y.dtype} of shape {tuple(y.shape[1:])}, {y.min():g} to {y.max():g}"


def _classes(splits: Splits) -> dict[str, dict[str, int]]:
    if splits.classes is None or splits.classes > MANY_CLASSES:
        return {}
    names: Sequence[str] = splits.class_names or [str(label) for label in range(splits.classes)]
    counted = {split: np.bincount(np.ravel(part.y), minlength=splits.classes) for split, part in splits.parts.items()
               if part.y is not None}  # fmt: skip
    return {
        name: {str(split): int(found[number]) for split, found in counted.items()} for number, name in enumerate(names)
    }


def _gaps(splits: Splits) -> list[str]:
    """Splits without samples of some class, and data of one class only, as notes."""
    counted = _classes(splits)
    empty = {
        split: [name for name, found in counted.items() if not found.get(split)] for split in ("train", "validation")
    }
    told = [
        f"the {split} split has no sample of: {', '.join(names[:CHANNELS])}" for split, names in empty.items() if names
    ]
    return [*told, "one class only: no classifier can be trained on it"] if len(counted) == 1 else told


def samples(splits: Splits, each: int) -> list[tuple[str, Array]]:
    """Up to `each` training samples of every class, or of all without classes, to be looked at."""
    x: Arrays = splits.train.x
    array = next(iter(x.values())) if isinstance(x, dict) else x
    y = splits.train.y
    if splits.classes is None or splits.classes > MANY_CLASSES or y is None:
        return [("", array[:each])]
    names = splits.class_names or [str(label) for label in range(splits.classes)]
    rows = [(name, array[np.ravel(y) == number][:each]) for number, name in enumerate(names)]
    return [(name, row) for name, row in rows if len(row)]
