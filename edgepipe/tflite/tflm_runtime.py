"""TensorFlow Lite Micro on this host: the tensor arena a model needs, and its outputs, in a child process.

The PyPI package is built for 64-bit x86 Linux. Its arena is that of a 64-bit build: pointers and structures in the
*tail* are up to twice as large as on a 32-bit microcontroller, so the total is an upper bound there; the *head*, which
holds the activations, does not depend on the width of pointers.
"""

import re
import tempfile
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from edgepipe.core.arrays import Arrays
from edgepipe.core.errors import InputError, ToolError
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


def measure_arena(path: Path, device: str | None = None, timeout: float | None = None) -> Metric:
    """The metric `ram`: bytes of tensor arena that TensorFlow Lite Micro's allocator takes for the model.

    The model is given an arena far larger than it needs and the allocator's own record is read after one inference;
    `details` splits the total into head (activations) and tail (structures). Unavailable, with the reason, where the
    package is missing or TensorFlow Lite Micro refuses the model. `timeout` is in seconds, by default 10 and more for
    the model's MACs.

    Raises:
        InputError: the file is damaged.
    """
    model = reader.read(path)
    seconds = min(TIMEOUT_SECONDS, ARENA_SECONDS + model.macs / ARENA_MACS_PER_SECOND) if timeout is None else timeout
    reason = missing_reason()
    if reason:
        return unavailable_metric("ram", Dimension.BYTES, reason, device)
    try:
        request = {"path": str(path), "task": "arena"}
        answer = sandbox.get_shared().run(
            WORKER_MODULE, request, seconds, "TensorFlow Lite Micro", sandbox.memory_limit_for(path)
        )
    except child_process.ChildError as error:
        return unavailable_metric("ram", Dimension.BYTES, str(_explain_refusal(error)), device)
    bytes_by_section = {name: int(size) for name, size in _ALLOCATION_PATTERN.findall(answer["stderr"])}
    if set(bytes_by_section) != {"total", "head", "tail"}:
        return unavailable_metric(
            "ram", Dimension.BYTES, f"{_runtime_name()} prints its arena in an unknown format", device
        )
    return _arena_metric(bytes_by_section, device)


def _arena_metric(bytes_by_section: dict[str, int], device: str | None) -> Metric:
    return Metric(
        name="ram",
        value=bytes_by_section["total"],
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device,
        how=(
            f"tensor arena by {_runtime_name()}'s own allocator on this 64-bit host; "
            "on a 32-bit device the head is the same and the tail smaller, because pointers take half the bytes"
        ),
        details={
            "head": bytes_by_section["head"],
            "tail": bytes_by_section["tail"],
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
            raise _explain_refusal(error) from None
        with np.load(results_path, allow_pickle=False) as archive:
            raw_outputs = [archive[f"arr_{index}"] for index in range(len(own_outputs(model)))]
    return build_outputs(model, raw_outputs, f"{_runtime_name()}, one by one")


def _runtime_name() -> str:
    return f"TensorFlow Lite Micro {package_version('tflite-micro')}"


def _explain_refusal(error: child_process.ChildError) -> InputError:
    """The error with TensorFlow Lite Micro's own reason, which it writes to stderr, and what to do."""
    stderr_text = "; ".join(line.strip() for line in error.stderr.splitlines() if line.strip())
    if not error.is_refusal:
        return InputError(f"{error}; the model may still run on a device, but this host cannot tell")
    reason = f" ({stderr_text})" if stderr_text else ""
    return InputError(f"{error}{reason}; use layers whose operators TensorFlow Lite Micro has, or another runtime")
