"""Datasets that a user's function gives."""

import contextlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgepipe.core import references
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.data.data_spec import FunctionSpec
from edgepipe.data.raw_samples import Raw, part_of
from edgepipe.data.splits import Split


def read(spec: FunctionSpec, base: Path) -> Raw:
    """What the function returns: `(x, y)`, `x`, or a dict of these by split; x may be a dict of named inputs.

    Raises:
        InputError: the function fails (the message has its error and line), or returns something else.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what it prints is no result of ours
        value = _value(spec, base)
    if _by_split(spec.function, value):
        parts = {Split(name): part_of(f"{spec.function} ({name})", part) for name, part in value.items()}
    else:
        parts = {Split.TRAIN: part_of(spec.function, value)}
    return Raw(spec.function, parts)


def _value(spec: FunctionSpec, base: Path) -> Any:
    try:
        function = references.load(spec.function, base)
        _check_arguments(function, spec)
        return function(**spec.args)
    except EdgepipeError:
        raise
    except SystemExit as end:
        raise InputError(f"{spec.function} called exit({end.code}); let it raise an error instead") from end
    except Exception as error:
        raise InputError(f"{spec.function} failed at {_place(error)}: {type(error).__name__}: {error}") from error


def _check_arguments(function: Callable[..., Any], spec: FunctionSpec) -> None:
    with contextlib.suppress(ValueError):  # of functions without a signature
        try:
            inspect.signature(function).bind(**spec.args)
        except TypeError as error:
            given = ", ".join(spec.args) or "none"
            raise InputError(f"{spec.function} cannot be called: {error}; `args:` gives {given}") from None


def _by_split(name: str, value: Any) -> bool:
    if not isinstance(value, Mapping) or not any(isinstance(part, tuple) for part in value.values()):
        return isinstance(value, Mapping) and Split.TRAIN in value and set(value) <= set(Split)
    if Split.TRAIN not in value or not set(value) <= set(Split):
        raise InputError(f"{name} gives (x, y) for {', '.join(map(str, value))}; allowed: train, and validation, test")
    return True


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
