"""Runs a .tflite over whole sets of samples with LiteRT's interpreter.

Three runtimes: `reference` is the slow, portable specification of every kernel, which parity is pinned to; `builtin`
the optimized kernels; `xnnpack` what an application gets by default.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.tflite import reader, sandbox
from edgepipe.tflite.model import Model
from edgepipe.tflite.sample_conversion import Outputs, check_type, outputs, stored

__all__ = ["Outputs", "Runtime", "check_runs", "predict"]

CHECK_SECONDS = 10.0  # for a model of any size, and more for the work that its shapes announce
CHECK_MACS = 1e9  # in a second: a tenth of what a slow host does
CHECK_LONGEST = 120.0
DEFAULT_BATCH = 32
NOTICE = "Created TensorFlow Lite XNNPACK delegate"


class Runtime(StrEnum):
    """Which kernels run the model."""

    REFERENCE = "reference"  # reference kernels, no delegate
    BUILTIN = "builtin"  # optimized kernels, no delegate
    XNNPACK = "xnnpack"  # optimized kernels and the default delegates


class _NoBatchError(Exception):
    """The model cannot run samples in batches, and why."""


def predict(
    path: Path, x: Arrays, runtime: Runtime = Runtime.XNNPACK, threads: int = 1, batch: int = DEFAULT_BATCH
) -> Outputs:
    """Run the model on all samples of `x`, whose first axis counts them.

    Samples are floats (quantized here) or already of the input's type. Batches are made by resizing the inputs; the
    first and the last sample of the first batch are also run alone, and unless the numbers are equal bit for bit, all
    are run one by one and `how` says why. A model that keeps state between calls is reset before each sample.

    The interpreter trusts the file: run `check_runs` first on one of unknown origin.

    Raises:
        InputError: a damaged file, samples that do not fit the inputs, or a model that this runtime cannot run.
    """
    model = reader.read(path)
    given = stored(model, x)
    results, how = _run(Session(model, runtime, threads), given, batch)
    return outputs(model, results, f"LiteRT {runtime}, {_counted(threads, 'thread')}, {how}")


def check_runs(path: Path, runtime: Runtime = Runtime.BUILTIN, timeout: float | None = None) -> None:
    """Load the model and run it once on zeros in the sandbox.

    `timeout` is in seconds, by default 10 and more for the model's MACs.

    Raises:
        InputError: the file is damaged, or the runtime refuses it, crashes or hangs on it.
    """
    model = reader.read(path)
    seconds = min(CHECK_LONGEST, CHECK_SECONDS + model.macs / CHECK_MACS) if timeout is None else timeout
    request = {"path": str(path), "runtime": runtime}
    what, memory = f"{path}: LiteRT {runtime}", sandbox.memory_for(path)
    sandbox.shared().run("edgepipe.tflite.run_check_worker", request, seconds, what, memory)


@dataclass(frozen=True)
class Session:
    """How to open the model: each batch size gets an interpreter of its own, because a failed resize breaks one."""

    model: Model
    runtime: Runtime
    threads: int
    preserve: bool = False  # keep every tensor in memory of its own, so that it can be read afterwards

    def open(self, shapes: list[tuple[int, ...]]) -> Any:
        """An allocated interpreter whose inputs have `shapes`; RuntimeError or ValueError if the model refuses."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolvers = {
            Runtime.REFERENCE: OpResolverType.BUILTIN_REF,
            Runtime.BUILTIN: OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            Runtime.XNNPACK: OpResolverType.BUILTIN,
        }
        with without_notice():
            interpreter = Interpreter(
                model_path=str(self.model.path),
                num_threads=self.threads,
                experimental_op_resolver_type=resolvers[self.runtime],
                experimental_preserve_all_tensors=self.preserve,
            )
            for tensor, shape in zip(self.model.inputs, shapes, strict=True):
                if shape != tensor.shape:
                    interpreter.resize_tensor_input(tensor.index, shape)
            interpreter.allocate_tensors()
        return interpreter

    def invoke(self, interpreter: Any, given: list[Array]) -> list[Array]:
        """The outputs, copied, for one batch of stored samples."""
        if self.stateful:
            interpreter.reset_all_variables()
        for tensor, array in zip(self.model.inputs, given, strict=True):
            interpreter.set_tensor(tensor.index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(tensor.index) for tensor in self.model.outputs]

    @property
    def stateful(self) -> bool:
        """Whether the model keeps something between two calls."""
        kept = ("VAR_HANDLE", "ASSIGN_VARIABLE", "CALL_ONCE")
        return any(t.variable for t in self.model.tensors) or any(op.name in kept for op in self.model.operators)


def open_once(model: Model, runtime: Runtime, threads: int) -> tuple[Any, list[Array]]:
    """An interpreter for `model` in the shapes of its file, and a zero for each input.

    Raises:
        InputError: the runtime refuses the model.
    """
    for name, tensor in model.input_names.items():
        check_type(model.path, name, tensor)
    with refusals(model.path, runtime):
        interpreter = Session(model, runtime, threads).open([tensor.shape for tensor in model.inputs])
        zeros = [np.zeros(tensor.shape, tensor.dtype) for tensor in model.inputs]
        for tensor, array in zip(model.inputs, zeros, strict=True):
            interpreter.set_tensor(tensor.index, array)
        interpreter.invoke()
    return interpreter, zeros


def _run(session: Session, given: list[Array], batch: int) -> tuple[list[Array], str]:
    size = min(batch, len(given[0]))
    try:
        if size < 2 or session.model.inputs[0].shape[:1] != (1,):
            raise _NoBatchError("" if size < 2 else "the model's own batch is fixed")
        return _in_batches(session, given, size), f"batches of {size}"
    except _NoBatchError as reason:
        with refusals(session.model.path, session.runtime):
            results = _one_by_one(session, given)
        return results, f"one by one: {reason}" if str(reason) else "one by one"


def _in_batches(session: Session, given: list[Array], size: int) -> list[Array]:
    """All results; the last batch is filled up with its last sample.

    Raises:
        _NoBatchError: the model refuses the size, or does not treat the first axis as samples.
    """
    if session.stateful:
        raise _NoBatchError("the model keeps state between calls")
    try:
        interpreter = session.open([(size, *array.shape[1:]) for array in given])
        first = session.invoke(interpreter, [array[:size] for array in given])
    except (RuntimeError, ValueError) as error:
        raise _NoBatchError(f"a batch of {size} is refused ({one_line(error)})") from None
    _compare_with_single(session, given, first, size)
    rest = [session.invoke(interpreter, _filled(given, at, size)) for at in range(size, len(given[0]), size)]
    return [np.concatenate(parts)[: len(given[0])] for parts in zip(first, *rest, strict=True)]


def _compare_with_single(session: Session, given: list[Array], batched: list[Array], size: int) -> None:
    if any(array.ndim == 0 or array.shape[0] != size for array in batched):
        raise _NoBatchError("the first axis of an output does not follow the batch")
    # The last of the batch, because a model that mixes samples up often gets the first ones right.
    chosen = [0, size - 1]
    with refusals(session.model.path, session.runtime):
        single = _one_by_one(session, [array[chosen] for array in given])
    pairs = zip(single, (array[chosen] for array in batched), strict=True)
    if not all(np.array_equal(one, many, equal_nan=one.dtype.kind == "f") for one, many in pairs):
        raise _NoBatchError("a batch gives other numbers than single samples")


def _one_by_one(session: Session, given: list[Array]) -> list[Array]:
    """All results with the model's own batch, which is 1 for nearly all models."""
    own = session.model.inputs[0].shape[0] if session.model.inputs and session.model.inputs[0].shape else 1
    interpreter = session.open([(own, *array.shape[1:]) for array in given])
    parts = [session.invoke(interpreter, _filled(given, at, own)) for at in range(0, len(given[0]), own)]
    return [_joined(session.model, list(results), own)[: len(given[0])] for results in zip(*parts, strict=True)]


def _joined(model: Model, results: list[Array], own: int) -> Array:
    """(samples, *shape): an output that has the batch axis is joined along it, any other gets one."""
    if results[0].ndim and results[0].shape[0] == own:
        return np.concatenate(results)
    if own == 1:
        return np.stack(results)
    raise InputError(f"{model.path}: an output of shape {results[0].shape} does not follow the batch of {own}")


def _filled(given: list[Array], at: int, size: int) -> list[Array]:
    """Samples from `at` on, `size` of them, the last one repeated where there are no more."""
    chosen = np.minimum(np.arange(at, at + size), len(given[0]) - 1)
    return [array[chosen] for array in given]


@contextlib.contextmanager
def refusals(path: Path, runtime: Runtime) -> Iterator[None]:
    """Turn what the runtime says against a model into an `InputError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: LiteRT {runtime} does not run this model: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """A native error message without its line breaks."""
    return " ".join(str(error).split())


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Keep LiteRT's one harmless notice off stderr; whatever else is written there meanwhile is passed on."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            for line in aside.read().splitlines(keepends=True):
                if NOTICE.encode() not in line:
                    os.write(2, line)
