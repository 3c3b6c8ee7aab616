"""Datasets returned by a user's function."""

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
from edgepipe.data.raw_samples import RawDataset, to_raw_split
from edgepipe.data.split_names import Split


def read(spec: FunctionSpec, base_folder: Path) -> RawDataset:
    """Call the function; it returns `(x, y)`, `x`, or a dict of these by split; x may be a dict of named inputs.

    Raises:
        InputError: the function fails (the message has the error and line), or returns something else.
    """
    with contextlib.redirect_stdout(sys.stderr):  # its output must not mix with edgepipe's
        samples = _call_function(spec, base_folder)
    if _is_by_split(spec.function, samples):
        raw_splits = {
            Split(name): to_raw_split(f"{spec.function} ({name})", split_samples)
            for name, split_samples in samples.items()
        }
    else:
        raw_splits = {Split.TRAIN: to_raw_split(spec.function, samples)}
    return RawDataset(spec.function, raw_splits)


def _call_function(spec: FunctionSpec, base_folder: Path) -> Any:
    try:
        function = references.load(spec.function, base_folder)
        _check_arguments(function, spec)
        return function(**spec.args)
    except EdgepipeError:
        raise
    except SystemExit as exit_error:
        raise InputError(
            f"{spec.function} called exit({exit_error.code}); let it raise an error instead"
        ) from exit_error
    except Exception as error:
        raise InputError(
            f"{spec.function} failed at {_error_location(error)}: {type(error).__name__}: {error}"
        ) from error


def _check_arguments(function: Callable[..., Any], spec: FunctionSpec) -> None:
    with contextlib.suppress(ValueError):  # functions without a signature
        try:
            inspect.signature(function).bind(**spec.args)
        except TypeError as error:
            argument_names = ", ".join(spec.args) or "none"
            raise InputError(f"{spec.function} cannot be called: {error}; `args:` gives {argument_names}") from None


def _is_by_split(name: str, samples: Any) -> bool:
    if not isinstance(samples, Mapping) or not any(
        isinstance(split_samples, tuple) for split_samples in samples.values()
    ):
        return isinstance(samples, Mapping) and Split.TRAIN in samples and set(samples) <= set(Split)
    if Split.TRAIN not in samples or not set(samples) <= set(Split):
        raise InputError(
            f"{name} gives (x, y) for {', '.join(map(str, samples))}; allowed: train, and validation, test"
        )
    return True


def _error_location(error: Exception) -> str:
    last_frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last_frame.filename}:{last_frame.lineno}"
