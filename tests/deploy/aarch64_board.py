"""A stand-in for a Raspberry Pi 4: the aarch64 runtime, executed by qemu behind a real ssh server.

Debian's arm64 Python and the aarch64 wheels are put into the user's cache folder once. Two traps: XNNPACK computes
wrong results on qemu's default CPU, which has SVE, so the CPU is named; and LiteRT crashes on the host's own
/proc/cpuinfo, so the root has one of a Pi.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PACKAGES = ("ai-edge-litert==2.3.0", "numpy==2.4.6")
PROGRAMS = {"qemu-aarch64-static": "qemu-user-static", "mmdebstrap": "mmdebstrap"}
ENVIRONMENT = dict(os.environ)  # before any test names another home folder, which pip's configuration is in
CPU = "cortex-a72"
CACHE = Path(ENVIRONMENT.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = CACHE / "edgepipe-tests" / f"aarch64-{'-'.join(PACKAGES)}"


def build() -> Path:
    """The folder with the root and the packages; skips the test where it cannot be built."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program} (Debian: {package})")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / "complete").exists():
            _build_root(FOLDER / "root")
            _install_wheels(FOLDER / "site")
            _place_hardware_files(FOLDER / "root")
            (FOLDER / "complete").touch()
    return FOLDER


def _build_root(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    include = "--include=python3,libstdc++6,libgomp1"
    _run(["mmdebstrap", "--mode=auto", "--arch=arm64", "--variant=extract", include, "bookworm", str(root)])


def _install_wheels(site: Path) -> None:
    shutil.rmtree(site, ignore_errors=True)
    platforms = [f"--platform=manylinux_{tag}_aarch64" for tag in ("2_27", "2_28")]
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", "--target", str(site), "--quiet"]
    _run([sys.executable, "-m", "pip", "install", *options, *platforms, *PACKAGES])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    if done.returncode:
        pytest.skip(f"the aarch64 board cannot be built here: {command[0]}: {done.stderr.strip()[-300:]}")


def _place_hardware_files(root: Path) -> None:
    """What a Pi 4 says of its processor, as pytorch/cpuinfo and the runner read it."""
    board = "Raspberry Pi 4 Model B Rev 1.4"
    cpu_lines = ["BogoMIPS\t: 108.00", "Features\t: fp asimd evtstrm crc32 cpuid", "CPU implementer\t: 0x41",
                 "CPU architecture: 8", "CPU variant\t: 0x0", "CPU part\t: 0xd08", "CPU revision\t: 3"]  # fmt: skip
    cores = "\n".join("\n".join([f"processor\t: {core}", *cpu_lines, ""]) for core in range(4))
    files = {
        "proc/cpuinfo": f"{cores}\nHardware\t: BCM2835\nRevision\t: c03114\nModel\t\t: {board}\n",
        "proc/device-tree/model": f"{board}\0",
        "sys/class/thermal/thermal_zone0/temp": "61322\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",  # now and earlier: under-voltage, throttled
        **{f"sys/devices/system/cpu/{name}": "0-3\n" for name in ("possible", "present", "online")},
        "sys/devices/system/cpu/kernel_max": "3\n",
    }
    for core in range(4):
        folder = f"sys/devices/system/cpu/cpu{core}"
        files |= {
            f"{folder}/cpufreq/scaling_governor": "ondemand\n",
            f"{folder}/cpufreq/scaling_cur_freq": "1500000\n",
            f"{folder}/cpufreq/cpuinfo_max_freq": "1800000\n",
            f"{folder}/cpufreq/cpuinfo_min_freq": "600000\n",
            f"{folder}/topology/physical_package_id": "0\n",
            f"{folder}/topology/cluster_cpus_list": "0-3\n",
            f"{folder}/topology/core_siblings_list": "0-3\n",
        }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@contextmanager
def python_program(folder: Path) -> Iterator[Path]:
    """A `python3` for the server's PATH that is the aarch64 one."""
    board = build()
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "python3"
    root = board / "root"
    program.write_text(
        f"#!/bin/sh\nexport QEMU_CPU={CPU} PYTHONPATH={board}/site\n"
        f'exec qemu-aarch64-static -L {root} {root}/usr/bin/python3.11 "$@"\n'
    )
    program.chmod(0o755)
    yield program
