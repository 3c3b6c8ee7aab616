"""Datasets that a user's function gives."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgepipe import sources
from edgepipe.data.raw import Raw, part_of
from edgepipe.data.spec import FunctionSpec
from edgepipe.data.splits import Split
from edgepipe.errors import EdgepipeError, InputError


def read(spec: FunctionSpec, base: Path) -> Raw:
    """What the function returns: `(x, y)`, `x`, or a dict of these by split; x may be a dict of named inputs.

    Raises:
        InputError: the function fails (the message has its error and line), or returns something else.
    """
    function = sources.load(spec.function, base)
    try:
        value = function(**spec.args)
    except EdgepipeError:
        raise
    except Exception as error:
        raise InputError(f"{spec.function} failed at {_place(error)}: {type(error).__name__}: {error}") from error
    if _by_split(value):
        parts = {Split(name): part_of(f"{spec.function} ({name})", part) for name, part in value.items()}
    else:
        parts = {Split.TRAIN: part_of(spec.function, value)}
    return Raw(spec.function, parts)


def _by_split(value: Any) -> bool:
    return isinstance(value, Mapping) and Split.TRAIN in value and set(value) <= set(Split)


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"
