"""A source's samples before splitting and scaling, checked for everything that would silently spoil training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.data.sound_features import SoundFeatures
from edgepipe.data.split_names import Split

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_MAX_EXACT_INTEGER = 2**24  # float32 represents every integer up to this one


@final
@dataclass(frozen=True)
class RawSplit:
    """Samples and labels as stored: x (n, ...), or one array per named input or output, of any numeric type."""

    x: Arrays
    y: Arrays | None
    groups: Array | None = None  # (n,): subject, session or recording of a sample; stays within one split
    waveforms: Array | None = None  # (n, samples): waveforms, kept if augmentation changes them


@final
@dataclass(frozen=True)
class RawDataset:
    """Everything in a source. A source without splits of its own has all samples in `train`."""

    name: str
    raw_splits: Mapping[Split, RawSplit]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sound_features: SoundFeatures | None = None  # how audio features were computed
    channel_names: tuple[str, ...] = ()  # column names of the channels


def check_dataset(raw_dataset: RawDataset) -> RawDataset:
    """Check `raw` and return it.

    Raises:
        InputError: empty arrays, lengths that differ, a type that is not numeric, NaN or infinity, splits whose samples
            differ in shape; the message has the array, the count and the first index.
    """
    for split, raw_split in raw_dataset.raw_splits.items():
        for name, array in _named_arrays(raw_split):
            title = f"{raw_dataset.name}: array {name}" + (f" of {split}" if len(raw_dataset.raw_splits) > 1 else "")
            if name == "groups":
                continue
            _check_array(title, array)
            if not name.startswith("y") and array.dtype.kind in "iu":
                _check_exact(title, array)
        _check_lengths(f"{raw_dataset.name} ({split})", raw_split)
        if not isinstance(raw_split.x, dict) and raw_split.x.ndim == 1:
            raise InputError(
                f"{raw_dataset.name}: x has shape {raw_split.x.shape}, one number a sample; "
                "a model takes at least one axis: (n, 1)"
            )
    _check_shapes(raw_dataset)
    return raw_dataset


def _named_arrays(raw_split: RawSplit) -> Iterator[tuple[str, Array]]:
    for title, arrays in (("x", raw_split.x), ("y", raw_split.y)):
        if isinstance(arrays, dict):
            yield from ((f"{title}['{name}']", array) for name, array in arrays.items())
        elif arrays is not None:
            yield title, arrays
    if raw_split.groups is not None:
        yield "groups", raw_split.groups


def _check_array(title: str, array: Array) -> None:
    if array.dtype.kind not in "biuf":
        number_hint = "; number the classes from 0" if array.dtype.kind in "US" and title.split()[-1] == "y" else ""
        raise InputError(f"{title} has type {array.dtype}; allowed: integers, floats, booleans{number_hint}")
    if array.ndim == 0:
        raise InputError(f"{title} is a single number; its first axis must count samples")
    if array.size == 0:
        raise InputError(f"{title} is empty: its shape is {array.shape}")
    if array.dtype.kind == "f":
        _check_finite(title, array)


def _check_finite(title: str, array: Array) -> None:
    low, high = float(array.min()), float(array.max())  # NaN and infinity propagate to these, without a copy
    if np.isfinite(low) and np.isfinite(high) and max(-low, high) <= FLOAT32_MAX:
        return
    invalid_mask = ~(np.abs(array) <= FLOAT32_MAX)
    nan_count = int(np.isnan(array).sum())
    infinite_count = int(np.isinf(array).sum())
    beyond_count = int(invalid_mask.sum()) - nan_count - infinite_count
    invalid_counts = ((nan_count, "NaN"), (infinite_count, "infinite"), (beyond_count, "beyond float32"))
    summary = ", ".join(f"{number} {kind}" for number, kind in invalid_counts if number)
    first_index = tuple(int(index) for index in np.argwhere(invalid_mask)[0])
    raise InputError(
        f"{title} has {summary} of {array.size} values, the first at index {list(first_index)}; clean the data first"
    )


def _check_exact(title: str, array: Array) -> None:
    largest_integer = max(abs(int(array.min())), abs(int(array.max())))
    if largest_integer > FLOAT32_MAX_EXACT_INTEGER:
        raise InputError(
            f"{title} holds integers up to {largest_integer}, which float32 cannot hold exactly; scale them first"
        )


def _check_lengths(title: str, raw_split: RawSplit) -> None:
    length_by_array = {name: len(array) for name, array in _named_arrays(raw_split)}
    if len(set(length_by_array.values())) > 1:
        lengths_text = ", ".join(f"{name} has {number}" for name, number in length_by_array.items())
        raise InputError(f"{title}: the arrays differ in their number of samples: {lengths_text}")


def _check_shapes(raw_dataset: RawDataset) -> None:
    if len({raw_split.groups is None for raw_split in raw_dataset.raw_splits.values()}) > 1:
        raise InputError(f"{raw_dataset.name}: some splits have groups and others have none")
    train_shapes = _sample_shape_by_array(raw_dataset.raw_splits[Split.TRAIN])
    for split, raw_split in raw_dataset.raw_splits.items():
        split_shapes = _sample_shape_by_array(raw_split)
        if split_shapes != train_shapes:
            raise InputError(
                f"{raw_dataset.name}: one sample of {split} is {split_shapes}, one of train is {train_shapes}"
            )


def _sample_shape_by_array(raw_split: RawSplit) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in _named_arrays(raw_split)}


def to_raw_split(title: str, samples: Any) -> RawSplit:
    """The samples that a function or a file returned as `(x, y)`, `(x, y, groups)`, `x` or a tf.data.Dataset.

    Arrays may be anything NumPy accepts.

    Raises:
        InputError: none of these forms.
    """
    _check_kind(title, samples)
    if isinstance(samples, tuple) and len(samples) in (2, 3):
        y = None if samples[1] is None else _parse_arrays(title, "y", "output", samples[1])
        return RawSplit(
            _parse_inputs(title, samples[0]), y, _parse_groups(title, samples[2]) if len(samples) == 3 else None
        )
    if isinstance(samples, tuple):
        raise InputError(f"{title}: a tuple of {len(samples)}; allowed: (x, y), (x, y, groups), or x alone")
    if hasattr(samples, "as_numpy_iterator"):
        return read_tf_dataset(title, samples)
    return RawSplit(_parse_inputs(title, samples), None)


def _check_kind(title: str, samples: Any) -> None:
    """Raise an `InputError` for objects that NumPy would turn into an array of something else."""
    if samples is None or isinstance(samples, Iterator) or callable(samples):
        description = "nothing" if samples is None else f"a {type(samples).__name__}"
        raise InputError(f"{title} gives {description}; allowed: (x, y), (x, y, groups), or x alone, as arrays")
    if isinstance(samples, list) and len(samples) in (2, 3) and all(isinstance(array, np.ndarray) for array in samples):
        raise InputError(f"{title} gives a list of {len(samples)} arrays; (x, y) is a tuple, samples are one array")


def _parse_groups(title: str, array_like: Any) -> Array:
    return to_group_names(title, _to_array(f"{title}: groups", array_like))


def to_group_names(title: str, groups: Array) -> Array:
    """`groups` as strings, (n,).

    Raises:
        InputError: not one-dimensional, or NaN among them.
    """
    if groups.ndim != 1:
        raise InputError(f"{title}: groups have shape {groups.shape}; allowed: one name or number a sample, (n,)")
    if groups.dtype.kind == "f" and np.isnan(groups).any():
        raise InputError(f"{title}: {int(np.isnan(groups).sum())} of {len(groups)} groups are NaN")
    return groups.astype(str)


def read_tf_dataset(title: str, dataset: Any) -> RawSplit:
    """Read a tf.data.Dataset of `(x, y)` or `x`, single samples or batches, to its end.

    Raises:
        InputError: it is infinite, empty, or yields something else.
    """
    if int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise InputError(f"{title}: a tf.data.Dataset without an end; limit it with take(..)")
    is_batched = _is_batched(dataset)
    elements = _read_elements(title, dataset)
    if not elements:
        raise InputError(f"{title}: a tf.data.Dataset without elements")
    if not isinstance(elements[0], tuple):
        return RawSplit(_join_elements(elements, is_batched), None)
    if len(elements[0]) != 2:
        raise InputError(f"{title}: a tf.data.Dataset of {len(elements[0])} parts; allowed: (x, y), or x alone")
    x, y = (_join_elements([element[position] for element in elements], is_batched) for position in (0, 1))
    return RawSplit(x, _parse_arrays(title, "y", "output", y))


def _read_elements(title: str, dataset: Any) -> list[Any]:
    elements: list[Any] = []
    try:
        for element in dataset.as_numpy_iterator():
            elements.append(element)
    except Exception as error:
        reason = [type(error).__name__, *(line.strip() for line in str(error).splitlines() if "Error" in line)][-1]
        raise InputError(
            f"{title}: the tf.data.Dataset failed after {plural(len(elements), 'element')}: {reason[:300]}"
        ) from error
    return elements


def _is_batched(dataset: Any) -> bool:
    """Whether elements are batches: x and y share the size of the first axis, or that of x alone is unknown."""
    element_spec = dataset.element_spec
    tensor_specs = [
        tensor_spec
        for element in (element_spec if isinstance(element_spec, tuple) else (element_spec,))
        for tensor_spec in _leaf_specs(element)
    ]
    if any(tensor_spec.shape.rank == 0 for tensor_spec in tensor_specs):
        return False
    first_sizes = {tensor_spec.shape[0] for tensor_spec in tensor_specs}
    return first_sizes == {None} or (len(first_sizes) == 1 and len(tensor_specs) > 1)


def _leaf_specs(spec: Any) -> list[Any]:
    return list(spec.values()) if isinstance(spec, Mapping) else [spec]


def _join_elements(elements: list[Any], is_batched: bool) -> Any:
    join_arrays: Any = np.concatenate if is_batched else np.stack
    if isinstance(elements[0], Mapping):
        return {name: join_arrays([element[name] for element in elements]) for name in elements[0]}
    return join_arrays(elements)


def _parse_inputs(title: str, x: Any) -> Arrays:
    return _parse_arrays(title, "x", "input", x)


def _parse_arrays(title: str, letter: str, port: str, arrays: Any) -> Arrays:
    if isinstance(arrays, Mapping):
        if not arrays:
            raise InputError(f"{title}: {letter} is an empty mapping; it needs one array per named {port}")
        return {str(name): _to_array(f"{title}: {letter}['{name}']", array) for name, array in arrays.items()}
    return _to_array(f"{title}: {letter}", arrays)


def _to_array(title: str, array_like: Any) -> Array:
    try:
        return np.asarray(array_like)
    except ValueError as error:
        raise InputError(f"{title} is not an array: {error}") from None


def count_split_samples(raw_split: RawSplit) -> int:
    """Number of samples in the split."""
    return count_samples(raw_split.x)
