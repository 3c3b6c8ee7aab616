#!/usr/bin/env python3
"""Runs a .tflite on this device and prints one JSON document: what ran it, how fast, and what it computed.

    python3 runner.py MODEL [--golden FILE.npz] [--threads N] [--runs N] [--warm-up N]

edgepipe copies this file to devices. It needs numpy and ai-edge-litert or tflite-runtime, and nothing of edgepipe.
Syntax of Python 3.7 and numpy 1 or 2.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import glob
import json
import os
import platform
import re
import sys
import time
import zlib
from typing import Any, Dict, List, Optional, Tuple

SCHEMA = "edgepipe.runner/1"
MAX_TIMED_SECONDS = 10.0
MIN_TIMED_SECONDS = 0.3
MIN_RUNS = 3
ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}
THROTTLED_FILES = ("/sys/devices/platform/soc/soc:firmware/get_throttled",)
# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
THROTTLED_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


class NotSetUpError(Exception):
    """The device lacks a package; the message says which."""


def read_text(path: str) -> Optional[str]:
    """The content of a small file, or None."""
    try:
        with open(path, "rb") as stream:
            return stream.read(65536).decode("utf-8", "replace").strip("\0\n ")
    except (OSError, ValueError):
        return None


def read_number(path: str) -> Optional[int]:
    """The integer in a file, or None."""
    text = read_text(path)
    return int(text) if text and re.match(r"-?\d+$", text) else None


def load_runtime() -> Tuple[Any, str, str]:
    """The interpreter module, the name of its package and its release."""
    reasons = []
    for package, module_name in (("ai-edge-litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime")):
        try:
            module = __import__(module_name + ".interpreter", fromlist=["Interpreter"])
        except Exception as error:  # a wheel for another processor or numpy fails in its own ways
            reasons.append("%s: %s: %s" % (package, type(error).__name__, error))
            continue
        return module, package, package_version(package, module_name)
    raise NotSetUpError("; ".join(reasons))


def package_version(package: str, module_name: str) -> str:
    """The release of an installed package."""
    try:
        from importlib.metadata import version  # Python 3.8

        return version(package)
    except Exception:
        return str(getattr(__import__(module_name), "__version__", "unknown"))


def cpu_model() -> str:
    """The board or processor, as the system names it."""
    board = read_text("/proc/device-tree/model") or read_text("/sys/firmware/devicetree/base/model")
    if board:
        return board
    fields: Dict[str, str] = {}
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), " ".join(value.split()))
    for name in ("model name", "Model", "Hardware", "cpu model", "CPU part"):
        if fields.get(name):
            return fields[name]
    return platform.processor() or "unknown processor"


def elf_machine(path: str) -> Optional[str]:
    """The processor that a program file is for, or None."""
    try:
        with open(path, "rb") as stream:
            header = stream.read(20)
    except OSError:
        return None
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    is_little = header[5:6] == b"\x01"
    return ELF_MACHINES.get(int.from_bytes(header[18:20] if is_little else header[19:17:-1], "little"), "other")


def emulator() -> str:
    """What emulates this processor; empty on real hardware."""
    own, running = elf_machine(os.path.realpath(sys.executable)), elf_machine("/proc/thread-self/exe")
    if own and running and own != running:
        cpu = os.environ.get("QEMU_CPU")
        return "user-mode emulation of %s%s on %s" % (own, " (%s)" % cpu if cpu else "", running)
    board = cpu_model()
    return "virtual board %s" % board if "dummy-virt" in board or "QEMU" in board else ""


def hardware_state() -> Dict[str, Any]:
    """Governor, frequencies in Hz, temperatures in degrees Celsius and throttling at this moment."""
    cpus = sorted(glob.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    frequencies = [read_number(os.path.join(cpu, "scaling_cur_freq")) for cpu in cpus]
    governors = sorted({read_text(os.path.join(cpu, "scaling_governor")) or "" for cpu in cpus} - {""})
    temperatures = [read_number(path) for path in sorted(glob.glob("/sys/class/thermal/thermal_zone*/temp"))]
    return {
        "governor": ", ".join(governors) or None,
        "frequency_hz": [1000 * frequency for frequency in frequencies if frequency is not None],
        "temperature_c": [value / 1000.0 for value in temperatures if value is not None],
        "throttling": throttling(),
    }


def throttling() -> Optional[List[str]]:
    """What slows the processor now, by the board's firmware; None where it does not say."""
    for path in THROTTLED_FILES:
        text = read_text(path)
        if text:
            bits = int(text, 16)
            return [name for bit, name in sorted(THROTTLED_BITS.items()) if bits >> bit & 1]
    return None


def reset_peak_memory() -> Optional[int]:
    """Resident bytes now, with the peak set back to it; None where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        return None
    return status_bytes("VmRSS")


def status_bytes(name: str) -> Optional[int]:
    """A size from /proc/self/status in bytes, or None."""
    match = re.search(r"^%s:\s+(\d+) kB" % name, read_text("/proc/self/status") or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def pin(threads: int) -> List[int]:
    """Pin this process to the last cores, as many as threads; their numbers, empty where that is not possible."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    try:
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        if len(cores) < threads:
            return []
        os.sched_setaffinity(0, cores)
    except OSError:
        return []
    return cores


def encode(array: Any) -> Dict[str, Any]:
    """An array as JSON."""
    content = base64.b64encode(zlib.compress(array.tobytes(), 1)).decode("ascii")
    return {"dtype": str(array.dtype), "shape": list(array.shape), "zlib": content}


def invoke(interpreter: Any, calls: List[Any], index: int) -> None:
    """Run call `index` of `calls`, one array for each input with a leading axis of calls."""
    for detail, arrays in zip(interpreter.get_input_details(), calls):
        interpreter.set_tensor(detail["index"], arrays[index])
    interpreter.invoke()


def open_interpreter(module: Any, path: str, threads: int, calls: List[Any]) -> Any:
    """An allocated interpreter whose inputs have the shapes of `calls`."""
    interpreter = module.Interpreter(model_path=path, num_threads=threads)
    details = interpreter.get_input_details()
    if calls and len(calls) != len(details):
        raise ValueError("%d inputs in the golden vectors, %d in the model" % (len(calls), len(details)))
    for detail, arrays in zip(details, calls):
        if list(detail["shape"]) != list(arrays.shape[1:]):
            interpreter.resize_tensor_input(detail["index"], arrays.shape[1:])
    interpreter.allocate_tensors()
    return interpreter


def run_golden(numpy: Any, interpreter: Any, calls: List[Any]) -> List[Dict[str, Any]]:
    """The outputs of all calls: for each output of the model an array (calls, ...)."""
    outputs: List[List[Any]] = [[] for _ in interpreter.get_output_details()]
    for index in range(len(calls[0]) if calls else 0):
        if hasattr(interpreter, "reset_all_variables"):
            interpreter.reset_all_variables()
        invoke(interpreter, calls, index)
        for collected, detail in zip(outputs, interpreter.get_output_details()):
            collected.append(numpy.array(interpreter.get_tensor(detail["index"])))
    return [encode(numpy.stack(collected)) for collected in outputs if collected]


def measure(numpy: Any, interpreter: Any, runs: int, warm_up: int) -> Dict[str, Any]:
    """Percentiles of the seconds of `invoke`."""
    for _ in range(warm_up):
        interpreter.invoke()
    seconds: List[float] = []
    begin = now = time.perf_counter()
    while len(seconds) < MIN_RUNS or (
        now - begin < MAX_TIMED_SECONDS and (len(seconds) < runs or now - begin < MIN_TIMED_SECONDS)
    ):
        start = time.perf_counter()
        interpreter.invoke()
        now = time.perf_counter()
        seconds.append(now - start)
    p5, p50, p95 = [float(value) for value in numpy.percentile(seconds, (5, 50, 95))]
    return {"p5": p5, "p50": p50, "p95": p95, "runs": len(seconds), "warm_up": warm_up}


def describe_host() -> Dict[str, Any]:
    """What identifies this device."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "kernel": "%s %s" % (platform.system(), platform.release()),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "python": platform.python_version(),
        "emulator": emulator(),
    }


def run(arguments: argparse.Namespace) -> Dict[str, Any]:
    """The whole document."""
    document: Dict[str, Any] = {"schema": SCHEMA, "host": describe_host(), "before": hardware_state()}
    try:
        import numpy
    except Exception as error:
        raise NotSetUpError("numpy: %s: %s" % (type(error).__name__, error)) from None
    module, package, version = load_runtime()
    document["runtime"] = {"package": package, "version": version, "numpy": numpy.__version__}
    calls = load_golden(numpy, arguments.golden)
    resident_bytes = reset_peak_memory()
    start = time.perf_counter()
    try:
        interpreter = open_interpreter(module, arguments.model, arguments.threads, calls)
        loaded = time.perf_counter()
        fill_inputs(numpy, interpreter, calls)
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        document["refused"] = " ".join(str(error).split())
        return document
    first = time.perf_counter()
    document.update(load_seconds=loaded - start, first_seconds=first - loaded)
    document["outputs"] = run_golden(numpy, interpreter, calls)
    document["cores"] = pin(arguments.threads)
    document["latency"] = measure(numpy, interpreter, arguments.runs, arguments.warm_up)
    document["threads"] = arguments.threads
    peak_bytes = status_bytes("VmHWM")
    document["memory"] = peak_bytes - resident_bytes if peak_bytes and resident_bytes else None
    document["after"] = hardware_state()
    document["measured_at"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return document


def load_golden(numpy: Any, path: Optional[str]) -> List[Any]:
    """The calls in a .npz: one array for each input, in their order."""
    if not path:
        return []
    with numpy.load(path, allow_pickle=False) as arrays:
        return [arrays["input_%d" % index] for index in range(len(arrays.files))]


def fill_inputs(numpy: Any, interpreter: Any, calls: List[Any]) -> None:
    """The first call, or zeros."""
    for index, detail in enumerate(interpreter.get_input_details()):
        array = calls[index][0] if calls else numpy.zeros(detail["shape"], detail["dtype"])
        interpreter.set_tensor(detail["index"], array)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--golden", help=".npz with input_0, input_1, ..: (calls, *shape of the input)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Print the document as one line; native libraries that print to stdout are sent to stderr."""
    arguments = parse_arguments()
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        document = run(arguments)
    except NotSetUpError as error:
        document = {"schema": SCHEMA, "host": describe_host(), "missing": str(error)}
    except MemoryError:
        document = {"schema": SCHEMA, "host": describe_host(), "refused": "out of memory"}
    answer.write("\n" + json.dumps(document) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
