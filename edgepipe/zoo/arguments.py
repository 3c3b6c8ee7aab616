"""Checks of the architectures' arguments, made before TensorFlow is loaded; each error says what is allowed.

Annotations are not enough: a pipeline's `args` may hold any YAML value.
"""

import math
from collections.abc import Container, Sequence
from numbers import Integral, Real

from edgepipe.core.errors import InputError, did_you_mean

IMAGE_SHAPE_TEXT = "images (height, width, channels)"
WINDOW_SHAPE_TEXT = "windows (time, channels)"
# Far beyond what a small device holds; without limits a typo takes all memory of this machine.
MAX_LAYER_SIZE = 4096  # channels of a layer, steps of a kernel
MAX_BLOCKS = 100
MAX_CLASSES = 100_000
MAX_SAMPLE_VALUES = 2**24  # of a sample


def check_image_shape(input_shape: Sequence[int]) -> None:
    """Refuse a shape that is not (height, width, channels).

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (3,), IMAGE_SHAPE_TEXT, "add the channel axis to the data")


def check_window_shape(input_shape: Sequence[int]) -> tuple[int, int]:
    """`input_shape` as (time, channels).

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (2,), WINDOW_SHAPE_TEXT, "one row for each time step, one column for each channel")
    time, channels = input_shape
    return time, channels


def check_image_or_window_shape(input_shape: Sequence[int]) -> None:
    """Refuse a shape that is neither an image nor a window.

    Raises:
        InputError: it has another number of axes, or an axis that is empty or unknown.
    """
    _check_shape(input_shape, (2, 3), f"{IMAGE_SHAPE_TEXT} or {WINDOW_SHAPE_TEXT}", "reshape the data")


def check_any_shape(input_shape: Sequence[int], max_values: int) -> tuple[int, ...]:
    """`input_shape`, of any number of axes and up to `max_values` values.

    Raises:
        InputError: it has no axis, one that is empty or unknown, or too many values.
    """
    _check_shape(input_shape, range(1, 10), "samples with at least one value", "give at least one axis", max_values)
    return tuple(input_shape)


def _check_shape(
    input_shape: Sequence[int],
    ranks: Container[int],
    expectation: str,
    remedy: str,
    max_values: int = MAX_SAMPLE_VALUES,
) -> None:
    if not _is_list(input_shape):
        raise InputError(f"input_shape is the shape of one sample, such as (8, 8, 1), found {input_shape!r}")
    shape = tuple(input_shape)
    if len(shape) not in ranks:
        raise InputError(f"this architecture takes {expectation}, found samples of shape {shape}; {remedy}")
    if not all(_is_integer(side) and side >= 1 for side in shape):
        raise InputError(
            f"this architecture takes {expectation}, all sides of at least 1, found samples of shape {shape}"
        )
    if math.prod(shape) > max_values:
        raise InputError(
            f"a sample has at most {max_values:,} values here, found {math.prod(shape):,} of shape {shape}"
        )


def check_count(maximum: int = MAX_LAYER_SIZE, **named_counts: int) -> None:
    """Refuse the first of `named_counts` that is not an integer from 1 to `maximum`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    for name, number in named_counts.items():
        if not _is_integer(number) or not 1 <= number <= maximum:
            raise InputError(f"{name} is an integer from 1 to {maximum:,}, found {number!r}")


def check_counts(allow_empty: bool = False, **named_lists: Sequence[int]) -> None:
    """Refuse the first of `named_lists` that is not a list of such integers, or is empty unless `allow_empty`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    for name, numbers in named_lists.items():
        if (
            not _is_list(numbers)
            or not (numbers or allow_empty)
            or not all(_is_integer(v) and 1 <= v <= MAX_LAYER_SIZE for v in numbers)
        ):
            raise InputError(f"{name} is a list of integers from 1 to {MAX_LAYER_SIZE:,}, found {numbers!r}")


def check_class_count(class_count: int) -> None:
    """Refuse fewer than two classes, and more than a small model can separate.

    Raises:
        InputError: `classes` is not an integer, or out of range.
    """
    if not _is_integer(class_count) or class_count < 2:
        raise InputError(f"a classifier needs at least 2 classes, found {class_count!r}")
    if class_count > MAX_CLASSES:
        raise InputError(f"a classifier has at most {MAX_CLASSES:,} classes here, found {class_count:,}")


def check_fraction(name: str, fraction: float) -> None:
    """Refuse a dropout rate unless 0 <= `fraction` < 1.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    if not _is_number(fraction) or not 0 <= fraction < 1:
        raise InputError(f"{name} is a share of at least 0 and below 1, found {fraction!r}")


def check_multiplier(name: str, factor: float, maximum: float) -> None:
    """Refuse a width multiplier unless 0 < `factor` <= `maximum`.

    Raises:
        InputError: names the argument, what was found and what is allowed.
    """
    if not _is_number(factor) or not 0 < factor <= maximum:
        raise InputError(f"{name} multiplies the widths; it is above 0 and at most {maximum:g}, found {factor!r}")


def check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    """Refuse a `choice` that is not among `choices`.

    Raises:
        InputError: names the argument, what was found, what is allowed and the nearest choice.
    """
    if choice not in choices:
        raise InputError(f"{name} cannot be {choice!r}{did_you_mean(str(choice), choices)}")


def check_flag(name: str, flag: bool) -> None:
    """Refuse anything but true and false.

    Raises:
        InputError: names the argument and what was found.
    """
    if type(flag) is not bool:
        raise InputError(f"{name} is true or false, found {flag!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))
