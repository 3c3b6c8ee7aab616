"""What a piece of work cost: wall time, CPU time and peak memory of this process and its children."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from edgepipe.core.metric import Record

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Cost(Record):
    """Seconds and bytes that a stage took."""

    wall: float = Field(default=0.0, description="seconds")
    cpu: float = Field(default=0.0, description="CPU seconds, child processes included")
    peak_memory: int | None = Field(default=None, description="bytes resident at the peak of the stage")
    how: str = Field(default="", description="how the peak was taken")


class Meter:
    """Filled in when the measured block has ended."""

    cost = Cost()


@contextmanager
def measured() -> Iterator[Meter]:
    """Measure the block; `Meter.cost` is set at its end."""
    meter, how = Meter(), _reset_peak()
    wall, cpu = time.perf_counter(), _cpu()
    yield meter
    meter.cost = Cost(wall=time.perf_counter() - wall, cpu=_cpu() - cpu, peak_memory=_peak(), how=how)


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _reset_peak() -> str:
    # Writing 5 resets the kernel's high-water mark (man 5 proc), so that the peak is this stage's own.
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        return f"peak of the whole process so far: its high-water mark could not be reset ({error.strerror})"
    return "peak resident memory of this process during the stage (VmHWM)"


def _peak() -> int | None:
    if _STATUS.exists():
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return int(line.split()[1]) * 1024 if line else None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, where there is no /proc
