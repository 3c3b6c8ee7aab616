"""What identifies this machine, so that a measured latency is never taken for another machine's."""

import functools
import os
import platform
from pathlib import Path

from edgepipe.core.artifact import json_digest
from edgepipe.core.metric import Record
from edgepipe.core.units import plural

CPU_INFO = Path("/proc/cpuinfo")
_CPU_NAME_FIELDS = ("model name", "Model", "Hardware", "cpu model", "CPU part")  # x86, Raspberry Pi, other ARM, MIPS


class Host(Record):
    """The processor, how many of its cores this process may use, the architecture and the operating system."""

    cpu: str
    cores: int
    machine: str
    kernel: str

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, for cache keys."""
        return json_digest(self.model_dump())

    def text(self) -> str:
        """For example `AMD EPYC 7763, 2 cores, x86_64, Linux 6.1.0`."""
        return f"{self.cpu}, {plural(self.cores, 'core')}, {self.machine}, {self.kernel}"


@functools.cache
def fingerprint() -> Host:
    """The machine this process runs on."""
    return Host(
        cpu=_cpu_name(),
        cores=count_usable_cores(),
        machine=platform.machine(),
        kernel=f"{platform.system()} {platform.release()}",
    )


def count_usable_cores() -> int:
    """Cores that this process may use; all cores where the system has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    cpu_info: dict[str, str] = {}
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, text = line.partition(":")
            cpu_info.setdefault(name.strip(), " ".join(text.split()))
    cpu_names = [cpu_info[name] for name in _CPU_NAME_FIELDS if cpu_info.get(name)]
    return cpu_names[0] if cpu_names else platform.processor() or "unknown processor"
