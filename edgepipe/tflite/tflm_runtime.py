"""TensorFlow Lite Micro on this host: the tensor arena a model needs, and its outputs, in a child process.

The PyPI package is built for 64-bit x86 Linux. Its arena is that of a 64-bit build: pointers and structures in the
*tail* are up to twice as large as on a 32-bit microcontroller; the *head*, which holds the activations, does not depend
on the width of pointers. `tflm_memory.arena_32_bit` converts the record.
"""

import re
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import EdgepipeError, InputError, ToolError
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.tflite import child_process, reader, sandbox
from edgepipe.tflite.sample_conversion import ModelOutputs, build_outputs, convert_samples
from edgepipe.tflite.stream_ports import own_outputs

WORKER_MODULE = "edgepipe.tflite.tflm_worker"
TIMEOUT_SECONDS = 600.0  # the whole test set runs through reference-like kernels
ARENA_SECONDS, ARENA_MACS_PER_SECOND = 10.0, 2e7  # for one inference: ten seconds, and more for its MACs
INSTALL_HINT = "pip install 'edgepipe[micro]' (64-bit x86 Linux)"
_ALLOCATION_PATTERN = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


def missing_reason() -> str:
    """Why TensorFlow Lite Micro cannot run here, with the remedy; empty when it can."""
    try:
        package_version("tflite-micro")
    except PackageNotFoundError:
        return f"the package tflite-micro is not installed: {INSTALL_HINT}"
    return ""


@dataclass(frozen=True)
class ArenaRecord:
    """Bytes of the arena after one inference on zeros, as TensorFlow Lite Micro's allocator records them.

    All are None if the package prints them in a format that is not known.
    """

    total_bytes: int | None
    head_bytes: int | None
    tail_bytes: int | None


def run_on_zeros(path: Path, timeout: float | None = None) -> ArenaRecord:
    """Run the model once on zeros, in an arena far larger than it needs, and read the allocator's own record.

    `timeout` is in seconds, by default 10 and more for the model's MACs.

    Raises:
        InputError: the file is damaged.
        ToolError: the package is not installed.
        ChildError: TensorFlow Lite Micro refuses the model, with its words, or crashes or hangs on it.
    """
    model = reader.read(path)
    if reason := missing_reason():
        raise ToolError(reason)
    seconds = min(TIMEOUT_SECONDS, ARENA_SECONDS + model.macs / ARENA_MACS_PER_SECOND) if timeout is None else timeout
    request = {"path": str(path), "task": "arena"}
    try:
        answer = sandbox.get_shared().run(
            WORKER_MODULE, request, seconds, "TensorFlow Lite Micro", sandbox.memory_limit_for(path)
        )
    except child_process.ChildError as error:
        raise _explain_refusal(error) from None
    bytes_by_section = {name: int(size) for name, size in _ALLOCATION_PATTERN.findall(answer["stderr"])}
    if set(bytes_by_section) != {"total", "head", "tail"}:
        return ArenaRecord(None, None, None)
    return ArenaRecord(bytes_by_section["total"], bytes_by_section["head"], bytes_by_section["tail"])


def measure_arena(path: Path, device: str | None = None, timeout: float | None = None) -> Metric:
    """The metric `ram`: bytes of tensor arena that TensorFlow Lite Micro's allocator takes for the model.

    `details` splits the total into head (activations) and tail (structures). Unavailable, with the reason, where the
    package is missing or TensorFlow Lite Micro refuses the model. `timeout` is in seconds, as of `run_on_zeros`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        arena_record = run_on_zeros(path, timeout)
    except (child_process.ChildError, ToolError) as error:
        return unavailable_metric("ram", Dimension.BYTES, _with_remedy(error), device)
    return arena_metric(arena_record, device)


def arena_metric(arena_record: ArenaRecord, device: str | None) -> Metric:
    """The metric `ram` of what the allocator recorded."""
    if arena_record.total_bytes is None or arena_record.head_bytes is None or arena_record.tail_bytes is None:
        reason = f"{runtime_name()} prints its arena in an unknown format"
        return unavailable_metric("ram", Dimension.BYTES, reason, device)
    return Metric(
        name="ram",
        value=arena_record.total_bytes,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device,
        how=(
            f"tensor arena by {runtime_name()}'s own allocator on this 64-bit host; "
            "on a 32-bit device the head is the same and the tail smaller, because pointers take half the bytes"
        ),
        details={
            "head": arena_record.head_bytes,
            "tail": arena_record.tail_bytes,
            "version": package_version("tflite-micro"),
        },
    )


def predict(path: Path, x: Arrays, timeout: float = TIMEOUT_SECONDS) -> ModelOutputs:
    """Run all samples of `x` (as in `interpreter.predict`) through TensorFlow Lite Micro, one by one.

    Raises:
        InputError: a damaged file, samples that do not fit, or a model that it refuses or crashes on.
        ToolError: the package is not installed.
    """
    reason = missing_reason()
    if reason:
        raise ToolError(reason)
    model = reader.read(path)
    input_arrays = convert_samples(model, x)
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        samples_path, results_path = Path(folder) / "samples.npz", Path(folder) / "results.npz"
        np.savez(samples_path, *input_arrays)
        request = {"path": str(path), "task": "predict", "samples": str(samples_path), "results": str(results_path)}
        try:
            child_process.run(WORKER_MODULE, request, timeout, f"{path}: TensorFlow Lite Micro")
        except child_process.ChildError as error:
            raise InputError(_with_remedy(_explain_refusal(error))) from None
        with np.load(results_path, allow_pickle=False) as archive:
            raw_outputs = [archive[f"arr_{index}"] for index in range(len(own_outputs(model)))]
    return build_outputs(model, raw_outputs, f"{runtime_name()}, one by one")


def runtime_name() -> str:
    """Name and version of the package."""
    return f"TensorFlow Lite Micro {package_version('tflite-micro')}"


def _explain_refusal(error: child_process.ChildError) -> child_process.ChildError:
    """The error with TensorFlow Lite Micro's own reason, which it writes to stderr."""
    stderr_text = "; ".join(line.strip() for line in error.stderr.splitlines() if line.strip())
    reason = f" ({stderr_text})" if stderr_text and error.is_refusal else ""
    return child_process.ChildError(f"{error}{reason}", error.stderr, error.is_refusal, error.is_crash)


def _with_remedy(error: EdgepipeError) -> str:
    if not isinstance(error, child_process.ChildError):
        return str(error)
    if error.is_refusal:
        return f"{error}; use layers whose operators TensorFlow Lite Micro has, or another runtime"
    return f"{error}; the model may still run on a device, but this host cannot tell"
