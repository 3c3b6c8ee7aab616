"""What a source gave, before it is split and scaled: checked for everything that would spoil training silently."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count
from edgepipe.core.errors import InputError
from edgepipe.data.sound_features import Features
from edgepipe.data.splits import Split

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_EXACT = 2**24  # float32 holds every integer up to here


@final
@dataclass(frozen=True)
class RawPart:
    """Samples and labels as stored: x (n, ...), or one array per named input, of any numeric type."""

    x: Arrays
    y: Array | None
    groups: Array | None = None  # (n,): who or what a sample comes from, to be kept on one side of a split
    waves: Array | None = None  # (n, samples): of sound, kept if training changes it


@final
@dataclass(frozen=True)
class Raw:
    """All that a source has. A source without splits of its own has everything in `train`."""

    name: str
    parts: Mapping[Split, RawPart]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    features: Features | None = None  # what was computed of sound
    channels: tuple[str, ...] = ()  # names of the columns that samples are made of


def checked(raw: Raw) -> Raw:
    """`raw`, if nothing in it is wrong.

    Raises:
        InputError: empty, lengths that differ, a type that is not numeric, NaN or infinity, splits whose samples differ
            in shape; the message names the array, how many and the first index.
    """
    for split, part in raw.parts.items():
        for name, array in _arrays(part):
            title = f"{raw.name}: array {name}" + (f" of {split}" if len(raw.parts) > 1 else "")
            if name == "groups":
                continue
            _check_array(title, array)
            if name != "y" and array.dtype.kind in "iu":
                _check_exact(title, array)
        _check_lengths(f"{raw.name} ({split})", part)
        if not isinstance(part.x, dict) and part.x.ndim == 1:
            raise InputError(
                f"{raw.name}: x has shape {part.x.shape}, one number a sample; a model takes at least one axis: (n, 1)"
            )
    _check_shapes(raw)
    return raw


def _arrays(part: RawPart) -> Iterator[tuple[str, Array]]:
    if isinstance(part.x, dict):
        yield from ((f"x['{name}']", array) for name, array in part.x.items())
    else:
        yield "x", part.x
    if part.y is not None:
        yield "y", part.y
    if part.groups is not None:
        yield "groups", part.groups


def _check_array(title: str, array: Array) -> None:
    if array.dtype.kind not in "biuf":
        number = "; number the classes from 0" if array.dtype.kind in "US" and title.split()[-1] == "y" else ""
        raise InputError(f"{title} has type {array.dtype}; allowed: integers, floats, booleans{number}")
    if array.ndim == 0:
        raise InputError(f"{title} is a single number; its first axis must count samples")
    if array.size == 0:
        raise InputError(f"{title} is empty: its shape is {array.shape}")
    if array.dtype.kind == "f":
        _check_finite(title, array)


def _check_finite(title: str, array: Array) -> None:
    low, high = float(array.min()), float(array.max())  # NaN and infinity show in these, without a copy
    if np.isfinite(low) and np.isfinite(high) and max(-low, high) <= FLOAT32_MAX:
        return
    bad = ~(np.abs(array) <= FLOAT32_MAX)
    nans = int(np.isnan(array).sum())
    infinite = int(np.isinf(array).sum())
    beyond = int(bad.sum()) - nans - infinite
    counts = ((nans, "NaN"), (infinite, "infinite"), (beyond, "beyond float32"))
    found = ", ".join(f"{number} {what}" for number, what in counts if number)
    first = tuple(int(index) for index in np.argwhere(bad)[0])
    raise InputError(
        f"{title} has {found} of {array.size} values, the first at index {list(first)}; clean the data first"
    )


def _check_exact(title: str, array: Array) -> None:
    largest = max(abs(int(array.min())), abs(int(array.max())))
    if largest > FLOAT32_EXACT:
        raise InputError(f"{title} holds integers up to {largest}, which float32 cannot hold exactly; scale them first")


def _check_lengths(title: str, part: RawPart) -> None:
    lengths = {name: len(array) for name, array in _arrays(part)}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {number}" for name, number in lengths.items())
        raise InputError(f"{title}: the arrays differ in their number of samples: {shown}")


def _check_shapes(raw: Raw) -> None:
    if len({part.groups is None for part in raw.parts.values()}) > 1:
        raise InputError(f"{raw.name}: some splits have groups and others have none")
    first = _sample_shapes(raw.parts[Split.TRAIN])
    for split, part in raw.parts.items():
        if _sample_shapes(part) != first:
            raise InputError(f"{raw.name}: one sample of {split} is {_sample_shapes(part)}, one of train is {first}")


def _sample_shapes(part: RawPart) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in _arrays(part)}


def part_of(title: str, value: Any) -> RawPart:
    """The `RawPart` that a function or a file gave as `(x, y)` or `x`; arrays may be anything NumPy takes.

    Raises:
        InputError: neither form.
    """
    _check_kind(title, value)
    if isinstance(value, tuple) and len(value) in (2, 3):
        y = None if value[1] is None else _array(f"{title}: y", value[1])
        return RawPart(_inputs(title, value[0]), y, _groups(title, value[2]) if len(value) == 3 else None)
    if isinstance(value, tuple):
        raise InputError(f"{title}: a tuple of {len(value)}; allowed: (x, y), (x, y, groups), or x alone")
    if hasattr(value, "as_numpy_iterator"):
        return streamed(title, value)
    return RawPart(_inputs(title, value), None)


def _check_kind(title: str, value: Any) -> None:
    """Raise an `InputError` for what NumPy would take for an array of something else."""
    if value is None or isinstance(value, Iterator) or callable(value):
        what = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(f"{title} gives {what}; allowed: (x, y), (x, y, groups), or x alone, as arrays")
    if isinstance(value, list) and len(value) in (2, 3) and all(isinstance(part, np.ndarray) for part in value):
        raise InputError(f"{title} gives a list of {len(value)} arrays; (x, y) is a tuple, samples are one array")


def _groups(title: str, value: Any) -> Array:
    return group_names(title, _array(f"{title}: groups", value))


def group_names(title: str, found: Array) -> Array:
    """The groups `found` as texts, (n,).

    Raises:
        InputError: not one for each sample, or NaN among them.
    """
    if found.ndim != 1:
        raise InputError(f"{title}: groups have shape {found.shape}; allowed: one name or number a sample, (n,)")
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise InputError(f"{title}: {int(np.isnan(found).sum())} of {len(found)} groups are NaN")
    return found.astype(str)


def streamed(title: str, dataset: Any) -> RawPart:
    """A tf.data.Dataset of `(x, y)` or `x`, one sample or one batch at a time, read to its end.

    Raises:
        InputError: it never ends, is empty, or gives something else.
    """
    if int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise InputError(f"{title}: a tf.data.Dataset without an end; take(..) a number of elements")
    batched = _is_batched(dataset)
    elements = _elements(title, dataset)
    if not elements:
        raise InputError(f"{title}: a tf.data.Dataset without elements")
    if not isinstance(elements[0], tuple):
        return RawPart(_joined(elements, batched), None)
    if len(elements[0]) != 2:
        raise InputError(f"{title}: a tf.data.Dataset of {len(elements[0])} parts; allowed: (x, y), or x alone")
    x, y = (_joined([element[part] for element in elements], batched) for part in (0, 1))
    return RawPart(x, _array(f"{title}: y", y))


def _elements(title: str, dataset: Any) -> list[Any]:
    found: list[Any] = []
    try:
        for element in dataset.as_numpy_iterator():
            found.append(element)
    except Exception as error:
        what = [type(error).__name__, *(line.strip() for line in str(error).splitlines() if "Error" in line)][-1]
        raise InputError(f"{title}: the tf.data.Dataset failed after {len(found)} elements: {what[:300]}") from error
    return found


def _is_batched(dataset: Any) -> bool:
    """Whether elements are batches: x and y begin with the same axis, or x alone with one of unknown size."""
    spec = dataset.element_spec
    parts = [part for entry in (spec if isinstance(spec, tuple) else (spec,)) for part in _leaves(entry)]
    if any(part.shape.rank == 0 for part in parts):
        return False
    first = {part.shape[0] for part in parts}
    return first == {None} or (len(first) == 1 and len(parts) > 1)


def _leaves(spec: Any) -> list[Any]:
    return list(spec.values()) if isinstance(spec, Mapping) else [spec]


def _joined(values: list[Any], batched: bool) -> Any:
    join: Any = np.concatenate if batched else np.stack
    if isinstance(values[0], Mapping):
        return {name: join([value[name] for value in values]) for name in values[0]}
    return join(values)


def _inputs(title: str, value: Any) -> Arrays:
    if isinstance(value, Mapping):
        if not value:
            raise InputError(f"{title}: x is an empty mapping; it needs one array per named input")
        return {str(name): _array(f"{title}: x['{name}']", array) for name, array in value.items()}
    return _array(f"{title}: x", value)


def _array(title: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{title} is not an array: {error}") from None


def size(part: RawPart) -> int:
    """How many samples the part has."""
    return count(part.x)
