"""The time of each operator as the runtime runs it, from the profiler that LiteRT's library exports.

The names are the runtime's: a delegate fuses operators and splits others, so there is no row for a fused padding or
activation. What is timed is the compiled-model interface of LiteRT with its CPU accelerator, which runs the same
XNNPACK kernels as the interpreter. Interface: `litert/c/litert_profiler.h` and `litert_profiler_event.h` of LiteRT.
"""

from pathlib import Path

from pydantic import Field

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.core.references import installed_version
from edgepipe.tflite import child_process, reader
from edgepipe.tflite.child_process import ChildError

KNOWN_VERSION_PREFIXES = (
    "2.3.",
)  # whose C interface was read and tried; another one may lay out its events differently
DEFAULT_RUNS = 100
TIMEOUT_SECONDS = 120.0


class OperatorTime(Record):
    """One operator of the runtime, in the order of execution; seconds averaged over the runs."""

    name: str = Field(description="the kernel, as the runtime calls it")
    seconds: float = Field(description="timed in whole microseconds, so the mean of many runs has a finer resolution")
    delegated: bool = Field(description="whether a delegate (XNNPACK) runs it")


class OperatorTimes(Record):
    """The operators of one inference, or why there are none."""

    operators: tuple[OperatorTime, ...] = ()
    total: float | None = Field(default=None, description="seconds of one whole inference under the profiler")
    runs: int = 0
    threads: int = 1
    version: str = ""
    reason: str = Field(default="", description="why nothing was timed, and what would make it possible")


def measure(path: Path, threads: int = 1, runs: int = DEFAULT_RUNS) -> OperatorTimes:
    """The time of each operator of `path` on this host; empty with a `reason` where the runtime offers no profiler.

    Raises:
        InputError: the file is damaged, or the numbers are not positive.
    """
    if min(threads, runs) < 1:
        raise InputError(f"threads and runs are at least 1; found {threads}, {runs}")
    reader.read(path)
    litert_version = installed_version("ai-edge-litert")
    if not litert_version.startswith(KNOWN_VERSION_PREFIXES):
        known_versions = ", ".join(f"ai-edge-litert {prefix}x" for prefix in KNOWN_VERSION_PREFIXES)
        return OperatorTimes(
            reason=f"the profiler's interface is known for {known_versions}, found {litert_version}; "
            "install one of the former"
        )
    request = {"path": str(path), "threads": threads, "runs": runs}
    try:
        answer = child_process.run(
            "edgepipe.tflite.operator_latency_worker", request, TIMEOUT_SECONDS, f"{path}: profiling"
        )
    except ChildError as error:
        return OperatorTimes(reason=f"the runtime's profiler does not work for this model: {error}")
    operator_times = answer["times"]
    return OperatorTimes.model_validate(
        {**operator_times, "version": f"ai-edge-litert {litert_version}", "threads": threads}
    )
