"""What architectures are called with, checked before TensorFlow is loaded: each refusal says what is allowed.

The annotations are what is allowed; a pipeline's `args` may hold anything that YAML can say.
"""

import math
from collections.abc import Container, Sequence
from numbers import Integral, Real

from edgepipe.core.errors import InputError, did_you_mean

IMAGES = "images (height, width, channels)"
WINDOWS = "windows (time, channels)"
# Far beyond what a small device holds; without a limit a slip of the pen takes all memory of this machine.
MOST = 4096  # channels of a layer, steps of a kernel
MOST_BLOCKS = 100
MOST_CLASSES = 100_000
MOST_VALUES = 2**24  # of a sample


def image(input_shape: Sequence[int]) -> None:
    """Refuse what is no (height, width, channels).

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (3,), IMAGES, "add the channel axis to the data")


def window(input_shape: Sequence[int]) -> tuple[int, int]:
    """`input_shape` as (time, channels).

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (2,), WINDOWS, "one row for each time step, one column for each channel")
    time, channels = input_shape
    return time, channels


def image_or_window(input_shape: Sequence[int]) -> None:
    """Refuse what is neither an image nor a window.

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (2, 3), f"{IMAGES} or {WINDOWS}", "reshape the data")


def any_shape(input_shape: Sequence[int], most: int) -> tuple[int, ...]:
    """`input_shape`, of any number of axes and up to `most` values.

    Raises:
        InputError: it has no axis, one that is empty or unknown, or too many values.
    """
    _check_shape(input_shape, range(1, 10), "samples with at least one value", "give at least one axis", most)
    return tuple(input_shape)


def _check_shape(
    input_shape: Sequence[int], ranks: Container[int], what: str, remedy: str, most: int = MOST_VALUES
) -> None:
    if not _is_list(input_shape):
        raise InputError(f"input_shape is the shape of one sample, such as (8, 8, 1), found {input_shape!r}")
    shape = tuple(input_shape)
    if len(shape) not in ranks:
        raise InputError(f"this architecture takes {what}, found samples of shape {shape}; {remedy}")
    if not all(_is_integer(side) and side >= 1 for side in shape):
        raise InputError(f"this architecture takes {what}, all sides of at least 1, found samples of shape {shape}")
    if math.prod(shape) > most:
        raise InputError(f"a sample has at most {most:,} values here, found {math.prod(shape):,} of shape {shape}")


def count(most: int = MOST, **values: int) -> None:
    """Refuse the first of the arguments `values` that is no integer from 1 to `most`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    for name, value in values.items():
        if not _is_integer(value) or not 1 <= value <= most:
            raise InputError(f"{name} is an integer from 1 to {most:,}, found {value!r}")


def counts(empty: bool = False, **values: Sequence[int]) -> None:
    """Refuse the first of the arguments `values` that is no list of such integers; or has none, unless `empty`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    for name, value in values.items():
        if not _is_list(value) or not (value or empty) or not all(_is_integer(v) and 1 <= v <= MOST for v in value):
            raise InputError(f"{name} is a list of integers from 1 to {MOST:,}, found {value!r}")


def class_count(classes: int) -> None:
    """Refuse fewer than two classes, and more than anything small can tell apart.

    Raises:
        InputError: `classes` is no integer, or out of range.
    """
    if not _is_integer(classes) or classes < 2:
        raise InputError(f"a classifier needs at least 2 classes, found {classes!r}")
    if classes > MOST_CLASSES:
        raise InputError(f"a classifier has at most {MOST_CLASSES:,} classes here, found {classes:,}")


def share(name: str, value: float) -> None:
    """Refuse a share that is dropped unless 0 <= `value` < 1.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    if not _is_number(value) or not 0 <= value < 1:
        raise InputError(f"{name} is a share of at least 0 and below 1, found {value!r}")


def multiplier(name: str, value: float, most: float) -> None:
    """Refuse a width multiplier unless 0 < `value` <= `most`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    if not _is_number(value) or not 0 < value <= most:
        raise InputError(f"{name} multiplies the widths; it is above 0 and at most {most:g}, found {value!r}")


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a `value` that is not `allowed`.

    Raises:
        InputError: names the argument, what was found, what is allowed and the nearest.
    """
    if value not in allowed:
        raise InputError(f"{name} cannot be {value!r}{did_you_mean(str(value), allowed)}")


def switch(name: str, value: bool) -> None:
    """Refuse anything but true and false.

    Raises:
        InputError: names the argument and what was found.
    """
    if type(value) is not bool:
        raise InputError(f"{name} is true or false, found {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))
