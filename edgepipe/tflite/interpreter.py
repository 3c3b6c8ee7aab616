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
from edgepipe.core.output import print_line
from edgepipe.core.units import plural
from edgepipe.tflite import reader, sandbox
from edgepipe.tflite.model import Model
from edgepipe.tflite.sample_conversion import ModelOutputs, build_outputs, check_type, convert_samples
from edgepipe.tflite.sequence_run import SequenceRunner
from edgepipe.tflite.stream_ports import StreamPorts, read_stream_ports

__all__ = ["ModelOutputs", "Runtime", "check_runs", "predict"]

CHECK_BASE_SECONDS = 10.0  # for any model, and more for its MACs
CHECK_MACS_PER_SECOND = 1e9  # a tenth of what a slow host reaches
CHECK_MAX_SECONDS = 120.0
DEFAULT_BATCH_SIZE = 32
DELEGATE_NOTICE = "Created TensorFlow Lite XNNPACK delegate"


class Runtime(StrEnum):
    """Which kernels run the model."""

    REFERENCE = "reference"  # reference kernels, no delegate
    BUILTIN = "builtin"  # optimized kernels, no delegate
    XNNPACK = "xnnpack"  # optimized kernels and the default delegates


class _NoBatchError(Exception):
    """The model cannot run samples in batches, and why."""


def predict(
    path: Path, x: Arrays, runtime: Runtime = Runtime.XNNPACK, threads: int = 1, batch_size: int = DEFAULT_BATCH_SIZE
) -> ModelOutputs:
    """Run the model on all samples of `x`.

    Samples are floats (quantized here) or already of the input's type. Batches are made by resizing the inputs; the
    first and the last sample of the first batch are also run alone, and unless the numbers are equal bit for bit, all
    are run one by one and `provenance` says why. A model that keeps state between calls is reset before each sample. A
    streaming model runs each sample, a sequence, call by call; its states are handed over, and are no outputs.

    The interpreter trusts the file: run `check_runs` first on one of unknown origin.

    Args:
        path: a .tflite.
        x: samples; the first axis counts them.
        runtime: which kernels run the model.
        threads: of the interpreter.
        batch_size: samples in one call, where the model can be resized.

    Raises:
        InputError: a damaged file, samples that do not fit the inputs, or a model that this runtime cannot run.
    """
    model = reader.read(path)
    input_arrays = convert_samples(model, x)
    session, ports = Session(model, runtime, threads), read_stream_ports(model)
    raw_outputs, batching_note = (
        _run_samples(session, input_arrays, batch_size)
        if ports is None
        else (_run_sequences(session, ports, input_arrays), f"{ports.steps} steps a call")
    )
    return build_outputs(model, raw_outputs, f"LiteRT {runtime}, {plural(threads, 'thread')}, {batching_note}")


def check_runs(path: Path, runtime: Runtime = Runtime.BUILTIN, timeout: float | None = None) -> None:
    """Load the model and run it once on zeros in the sandbox.

    `timeout` is in seconds, by default 10 and more for the model's MACs.

    Raises:
        InputError: the file is damaged, or the runtime refuses it, crashes or hangs on it.
    """
    model = reader.read(path)
    seconds = (
        min(CHECK_MAX_SECONDS, CHECK_BASE_SECONDS + model.macs / CHECK_MACS_PER_SECOND) if timeout is None else timeout
    )
    request = {"path": str(path), "runtime": runtime}
    subject, memory_limit = f"{path}: LiteRT {runtime}", sandbox.memory_limit_for(path)
    sandbox.get_shared().run("edgepipe.tflite.run_check_worker", request, seconds, subject, memory_limit)


@dataclass(frozen=True)
class Session:
    """How to open the model: each batch size gets its own interpreter, because a failed resize breaks it."""

    model: Model
    runtime: Runtime
    threads: int
    preserve_tensors: bool = False  # keep every tensor in memory of its own, so that it can be read afterwards

    def open_interpreter(self, shapes: list[tuple[int, ...]]) -> Any:
        """An allocated interpreter whose inputs have `shapes`; RuntimeError or ValueError if the model refuses."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver_by_runtime = {
            Runtime.REFERENCE: OpResolverType.BUILTIN_REF,
            Runtime.BUILTIN: OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            Runtime.XNNPACK: OpResolverType.BUILTIN,
        }
        with hide_delegate_notice():
            interpreter = Interpreter(
                model_path=str(self.model.path),
                num_threads=self.threads,
                experimental_op_resolver_type=resolver_by_runtime[self.runtime],
                experimental_preserve_all_tensors=self.preserve_tensors,
            )
            for tensor, shape in zip(self.model.inputs, shapes, strict=True):
                if shape != tensor.shape:
                    interpreter.resize_tensor_input(tensor.index, shape)
            interpreter.allocate_tensors()
        return interpreter

    def invoke(self, interpreter: Any, input_arrays: list[Array]) -> list[Array]:
        """The outputs, copied, for one batch of stored samples."""
        if self.is_stateful:
            interpreter.reset_all_variables()
        for tensor, array in zip(self.model.inputs, input_arrays, strict=True):
            interpreter.set_tensor(tensor.index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(tensor.index) for tensor in self.model.outputs]

    @property
    def is_stateful(self) -> bool:
        """Whether the model keeps state between calls."""
        return any(t.is_variable for t in self.model.tensors) or any(
            op.traits.keeps_state for op in self.model.operators
        )


def run_on_zeros(model: Model, runtime: Runtime, threads: int) -> tuple[Any, list[Array]]:
    """An interpreter for `model` in the shapes of its file, run once on zeros, and its inputs.

    Where the model refuses zeros as data (an integer division), it is run on ones.

    Raises:
        InputError: the runtime refuses the model.
    """
    for name, tensor in model.inputs_by_name.items():
        check_type(model.path, name, tensor)
    with wrap_runtime_errors(model.path, runtime):
        interpreter = Session(model, runtime, threads).open_interpreter([tensor.shape for tensor in model.inputs])
        zero_arrays = [np.zeros(tensor.shape, tensor.dtype) for tensor in model.inputs]
        try:
            _invoke_once(interpreter, model, zero_arrays)
        except RuntimeError:
            one_arrays = [np.ones(tensor.shape, tensor.dtype) for tensor in model.inputs]
            _invoke_once(interpreter, model, one_arrays)
            return interpreter, one_arrays
    return interpreter, zero_arrays


def _run_sequences(session: Session, ports: StreamPorts, sequences: list[Array]) -> list[Array]:
    with wrap_runtime_errors(session.model.path, session.runtime):
        interpreter = session.open_interpreter([tensor.shape for tensor in session.model.inputs])
        return SequenceRunner(session.model, ports, lambda arrays: session.invoke(interpreter, arrays)).run(sequences)


def list_calls(model: Model, sequences: list[Array]) -> list[Array]:
    """What each input of a streaming model gets, states included, in all calls over whole sequences: (calls, ...).

    `sequences` as `convert_samples` gives them.

    Raises:
        InputError: the runtime refuses the model.
    """
    ports, session = read_stream_ports(model), Session(model, Runtime.BUILTIN, threads=1)
    assert ports is not None, "only streaming models have sequences"
    with wrap_runtime_errors(model.path, session.runtime):
        interpreter = session.open_interpreter([tensor.shape for tensor in model.inputs])
        return SequenceRunner(model, ports, lambda arrays: session.invoke(interpreter, arrays)).list_calls(sequences)


def _invoke_once(interpreter: Any, model: Model, input_arrays: list[Array]) -> None:
    for tensor, array in zip(model.inputs, input_arrays, strict=True):
        interpreter.set_tensor(tensor.index, array)
    interpreter.invoke()


def _run_samples(session: Session, input_arrays: list[Array], max_batch_size: int) -> tuple[list[Array], str]:
    batch_size = min(max_batch_size, len(input_arrays[0]))
    try:
        if batch_size < 2 or session.model.inputs[0].shape[:1] != (1,):
            raise _NoBatchError("" if batch_size < 2 else "the model's own batch is fixed")
        return _run_in_batches(session, input_arrays, batch_size), f"batches of {batch_size}"
    except _NoBatchError as reason:
        with wrap_runtime_errors(session.model.path, session.runtime):
            raw_outputs = _run_one_by_one(session, input_arrays)
        return raw_outputs, f"one by one: {reason}" if str(reason) else "one by one"


def _run_in_batches(session: Session, input_arrays: list[Array], batch_size: int) -> list[Array]:
    """All outputs; the last batch is padded with its last sample.

    Raises:
        _NoBatchError: the model refuses the size, or does not treat the first axis as samples.
    """
    if session.is_stateful:
        raise _NoBatchError("the model keeps state between calls")
    try:
        interpreter = session.open_interpreter([(batch_size, *array.shape[1:]) for array in input_arrays])
        first_outputs = session.invoke(interpreter, [array[:batch_size] for array in input_arrays])
    except (RuntimeError, ValueError) as error:
        raise _NoBatchError(f"a batch of {batch_size} is refused ({join_error_lines(error)})") from None
    _compare_with_single(session, input_arrays, first_outputs, batch_size)
    later_outputs = [
        session.invoke(interpreter, _take_batch(input_arrays, start, batch_size))
        for start in range(batch_size, len(input_arrays[0]), batch_size)
    ]
    return [
        np.concatenate(batches)[: len(input_arrays[0])] for batches in zip(first_outputs, *later_outputs, strict=True)
    ]


def _compare_with_single(
    session: Session, input_arrays: list[Array], batch_outputs: list[Array], batch_size: int
) -> None:
    if any(array.ndim == 0 or array.shape[0] != batch_size for array in batch_outputs):
        raise _NoBatchError("the first axis of an output does not follow the batch")
    # The last of the batch, because a model that mixes samples up often gets the first ones right.
    sample_indices = [0, batch_size - 1]
    with wrap_runtime_errors(session.model.path, session.runtime):
        single_outputs = _run_one_by_one(session, [array[sample_indices] for array in input_arrays])
    pairs = zip(single_outputs, (array[sample_indices] for array in batch_outputs), strict=True)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        raise _NoBatchError("a batch gives other numbers than single samples")


def _run_one_by_one(session: Session, input_arrays: list[Array]) -> list[Array]:
    """All outputs with the model's own batch, which is 1 for nearly all models."""
    model_batch_size = session.model.inputs[0].shape[0] if session.model.inputs and session.model.inputs[0].shape else 1
    interpreter = session.open_interpreter([(model_batch_size, *array.shape[1:]) for array in input_arrays])
    call_outputs = [
        session.invoke(interpreter, _take_batch(input_arrays, start, model_batch_size))
        for start in range(0, len(input_arrays[0]), model_batch_size)
    ]
    return [
        _join_batches(session.model, list(batches), model_batch_size)[: len(input_arrays[0])]
        for batches in zip(*call_outputs, strict=True)
    ]


def _join_batches(model: Model, batches: list[Array], model_batch_size: int) -> Array:
    """(samples, *shape): an output that has the batch axis is joined along it, any other gets one."""
    if batches[0].ndim and batches[0].shape[0] == model_batch_size:
        return np.concatenate(batches)
    if model_batch_size == 1:
        return np.stack(batches)
    raise InputError(
        f"{model.path}: an output of shape {batches[0].shape} does not follow the batch of {model_batch_size}"
    )


def _take_batch(input_arrays: list[Array], start: int, batch_size: int) -> list[Array]:
    """`size` samples from `start` on, the last one repeated where there are no more."""
    indices = np.minimum(np.arange(start, start + batch_size), len(input_arrays[0]) - 1)
    return [array[indices] for array in input_arrays]


@contextlib.contextmanager
def wrap_runtime_errors(path: Path, runtime: Runtime) -> Iterator[None]:
    """Turn the runtime's errors into an `InputError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: LiteRT {runtime} does not run this model: {join_error_lines(error)}") from None


def join_error_lines(error: Exception) -> str:
    """A native error message without its line breaks."""
    return " ".join(str(error).split())


@contextlib.contextmanager
def hide_delegate_notice() -> Iterator[None]:
    """Keep LiteRT's harmless delegate notice off stderr; everything else passes."""
    sys.stderr.flush()
    saved_stderr = os.dup(2)
    with tempfile.TemporaryFile() as capture_file:
        os.dup2(capture_file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved_stderr, 2)
            os.close(saved_stderr)
            capture_file.seek(0)
            for line in capture_file.read().decode(errors="surrogateescape").split("\n"):
                if line and DELEGATE_NOTICE not in line:
                    print_line(line, to_stderr=True)
