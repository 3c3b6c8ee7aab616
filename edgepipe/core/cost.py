"""What a stage costs: wall time, CPU time and peak memory of this process and its children."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from edgepipe.core.metric import Record

_STATUS_FILE = Path("/proc/self/status")
_CLEAR_REFS_FILE = Path("/proc/self/clear_refs")


class Cost(Record):
    """Seconds and bytes that a stage took."""

    wall: float = Field(default=0.0, description="seconds")
    cpu: float = Field(default=0.0, description="CPU seconds, child processes included")
    peak_memory: int | None = Field(default=None, description="bytes resident at the peak of the stage")
    how: str = Field(default="", description="how the peak was measured")


class CostMeter:
    """Receives the cost when the measured block ends."""

    cost = Cost()


@contextmanager
def measure_cost() -> Iterator[CostMeter]:
    """Measure the block; `CostMeter.cost` is set at its end."""
    meter, peak_description = CostMeter(), _reset_peak_memory()
    wall_start, cpu_start = time.perf_counter(), _cpu_seconds()
    yield meter
    meter.cost = Cost(
        wall=time.perf_counter() - wall_start,
        cpu=_cpu_seconds() - cpu_start,
        peak_memory=_peak_memory_bytes(),
        how=peak_description,
    )


def _cpu_seconds() -> float:
    own_usage, child_usage = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own_usage.ru_utime + own_usage.ru_stime + child_usage.ru_utime + child_usage.ru_stime


def _reset_peak_memory() -> str:
    # Writing 5 resets the kernel's high-water mark (man 5 proc), so that the peak is this stage's own.
    try:
        _CLEAR_REFS_FILE.write_text("5")
    except OSError as error:
        return f"peak of the whole process so far: its high-water mark could not be reset ({error.strerror})"
    return "peak resident memory of this process during the stage (VmHWM)"


def _peak_memory_bytes() -> int | None:
    if _STATUS_FILE.exists():
        line = next((line for line in _STATUS_FILE.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, where there is no /proc
