"""Batches of samples: one array, or one array per named input of a model with several."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
else:
    Array = Any  # whoever computes with arrays loads numpy; checking a pipeline and a cached run do not
Arrays = Array | dict[str, Array]  # the first axis counts samples


def count_samples(arrays: Arrays) -> int:
    """How many samples there are."""
    first_array = next(iter(arrays.values())) if isinstance(arrays, dict) else arrays
    return len(first_array)


def map_arrays(function: Callable[[Array], Array], arrays: Arrays) -> Arrays:
    """Apply `function` to the array, or to each named array."""
    if isinstance(arrays, dict):
        return {name: function(array) for name, array in arrays.items()}
    return function(arrays)


def take_samples(arrays: Arrays, selection: Array | slice) -> Arrays:
    """The samples at `selection` (indices or a slice), in that order."""
    return map_arrays(lambda array: array[selection], arrays)


def sole_array(arrays: Arrays | None) -> Array | None:
    """The array; None if there is none, or one for each name."""
    return None if isinstance(arrays, dict) else arrays


def format_shapes(arrays: Arrays) -> str:
    """The shape of one sample, as a message shows it."""
    if isinstance(arrays, dict):
        return ", ".join(f"{name} {tuple(array.shape[1:])}" for name, array in arrays.items())
    return str(tuple(arrays.shape[1:]))
