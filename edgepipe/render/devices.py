"""Device profiles as tables and JSON: `edgepipe device list` and `edgepipe device show`."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.config import KeyPath
from edgepipe.core.units import Dimension
from edgepipe.devices import citations, device_profile
from edgepipe.devices.calibration.calibration_record import DeviceCalibration, PredictionErrors
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.render.report_tables import Rows


def list_tables() -> list[Rows]:
    """All devices that are no mere parents."""
    rows = []
    for name in device_profile.names():
        found = device_profile.load(name, Path.cwd())
        memory = found.system.memory
        clock = units.show(found.system.clock, Dimension.FREQUENCY) if found.system.clock else ""
        sizes = [units.show(size, Dimension.BYTES) if size else "" for size in (memory.ram, memory.flash)]
        rows.append((name, found.system.core, clock, *sizes, _run_by(found), str(found.latency.evidence)))
    columns = ("device", "core", "clock", "RAM", "flash", "runtime", "latency")
    return [Rows("Devices", columns, tuple(rows), frozenset({2, 3, 4}))]


def _run_by(found: device_profile.Device) -> str:
    threads = found.runtime.threads
    return found.runtime.name + (f", {threads} threads" if threads > 1 else "")


def list_document() -> str:
    """The same as one JSON document."""
    found = {name: device_profile.load(name, Path.cwd()).model_dump(mode="json") for name in device_profile.names()}
    return json.dumps({"schema": "edgepipe.devices/1", "devices": found}, indent=2)


def tables(name: str) -> list[Rows]:
    """One device, each number with its unit and where it comes from."""
    found = device_profile.load(name, Path.cwd())
    numbers = device_profile.stated_numbers(found)
    rows = [
        (what, value, _source(found, path, numbers))
        for what, value, path in (*_system(found), *_memory(found), *_runtime(found), *_metrics(found))
    ]
    columns = ("what", "value", "source")
    return [Rows(f"{found.name}: {found.description}", columns, tuple(rows))]


NO_SOURCE = "no source given"
_Fact = tuple[str, str, str]  # what, the value as a person reads it, and the dotted path of it in the profile


def _calibration(found: DeviceCalibration) -> list[_Fact]:
    about, (low, high) = found.measured, found.interval
    told = [
        ("calibrated", f"{about.models} models ({about.suite}), {about.at}"),
        ("calibrated with", f"{about.runtime}, {about.threads} thread(s)"),
        ("calibrated on", about.host),
        ("90 % interval", f"{low:.3f} to {high:.3f} times the estimate"),
        *((f"error, {label}", errors_text(errors)) for label, errors in (
            ("composites, 5-fold", found.within),
            ("composites, group held out", found.across),
            ("operators, 5-fold", found.operators),
        )),
        *(("not run", refused) for refused in about.refused),
    ]  # fmt: skip
    return [(what, value, "latency.calibration") for what, value in told]


def calibration_table(name: str) -> Rows:
    """How well each group of the suite is predicted, by fits that saw four fifths of it and by one that saw none."""
    found = device_profile.load(name, Path.cwd()).latency.calibration
    groups = found.groups if found else {}
    rows = tuple((group, *_percents(e.within), *_percents(e.across)) for group, e in groups.items())
    columns = ("group", "models", "median", "p90", "unseen models", "median", "p90")
    return Rows("Errors by group, 5-fold and with the whole group unseen", columns, rows, frozenset(range(1, 7)))


def _percents(errors: PredictionErrors | None) -> tuple[str, str, str]:
    if errors is None:
        return "", "its operator is nowhere else", ""
    return str(errors.models), f"{errors.median * 100:.1f} %", f"{errors.p90 * 100:.1f} %"


def errors_text(errors: PredictionErrors) -> str:
    """For example `median 2.1 %, p90 6.0 %, worst 25.1 % of 216`."""
    return (
        f"median {errors.median * 100:.1f} %, p90 {errors.p90 * 100:.1f} %, worst {errors.worst * 100:.1f} % "
        f"of {errors.models}"
    )


def _source(found: device_profile.Device, path: str, numbers: Iterable[KeyPath]) -> str:
    """Where the value at `path` comes from; of a text that nobody gave a source for, nothing."""
    steps = citations.parse_path(path)
    below = {citations.source_of(found.sources, number) for number in numbers if number[: len(steps)] == steps}
    given = sorted(text for text in below | {citations.source_of(found.sources, steps)} if text is not None)
    return "; ".join([*given, *([NO_SOURCE] if None in below else [])])


def _system(found: device_profile.Device) -> list[_Fact]:
    system, npu = found.system, found.system.npu
    rows = [("core", f"{system.core} ({system.architecture})", "system.core")]
    rows += [("cores", f"{system.cores}", "system.cores")] if system.cores else []
    rows += [("clock", units.show(system.clock, Dimension.FREQUENCY), "system.clock")] if system.clock else []
    if npu is not None:
        names = "all" if npu.operators is None else f"{len(npu.operators)}: {', '.join(npu.operators)}"
        rows += [("NPU", npu.name, "system.npu.name")]
        rows += [("NPU clock", units.show(npu.clock, Dimension.FREQUENCY), "system.npu.clock")] if npu.clock else []
        rows += (
            [("NPU MACs a cycle", f"{npu.macs_per_cycle}", "system.npu.macs_per_cycle")] if npu.macs_per_cycle else []
        )
        rows += [("NPU channels", f"blocks of {npu.channels}", "system.npu.channels")] if npu.channels else []
        rows += [("NPU operators", names, "system.npu.operators")]
        rows += [("NPU types", ", ".join(npu.dtypes), "system.npu.dtypes")]
        rows += [("NPU rules", ", ".join(npu.rules), "system.npu.rules")] if npu.rules else []
        rows += _vela(npu.vela) if npu.vela else []
    return rows


def _vela(vela: device_profile.VelaOptions) -> list[_Fact]:
    invoke = units.show(vela.invoke, Dimension.SECONDS)
    told = f"{vela.accelerator}, {vela.system_config}, {vela.memory_mode}; an invoke costs {invoke}"
    return [("Vela", told, "system.npu.vela")]


def _memory(found: device_profile.Device) -> list[_Fact]:
    memory = found.system.memory
    rows = [("RAM", units.show(memory.ram, Dimension.BYTES), "system.memory.ram")] if memory.ram else []
    rows += [("flash", units.show(memory.flash, Dimension.BYTES), "system.memory.flash")] if memory.flash else []
    return rows + [
        (f"  {bank.name}", _bank(bank), f"system.memory.banks.{place}") for place, bank in enumerate(memory.banks)
    ]


def _bank(bank: device_profile.MemoryBank) -> str:
    kind = f"{bank.kind}, outside the chip" if bank.external else bank.kind
    speed = f", {bank.bandwidth / 1e9:g} GB/s" if bank.bandwidth else ""
    return f"{units.show(bank.size, Dimension.BYTES)} {kind}{speed}"


def _runtime(found: device_profile.Device) -> list[_Fact]:
    runtime = found.runtime
    kernels = f" with {runtime.kernels}" if runtime.kernels else ""
    types = ", ".join(found.dtypes) + ("; integer only" if found.integer_only else "")
    names = "all" if found.operators is None else f"{len(found.operators)}: {', '.join(found.operators)}"
    rows = [("runtime", f"{runtime.name} {runtime.version}{kernels}", "runtime.version")]
    rows += [("threads", f"{runtime.threads}", "runtime.threads")]
    rows += [("runtime's code", units.show(runtime.code, Dimension.BYTES), "runtime.code")] if runtime.code else []
    rows += [("runtime's RAM", units.show(runtime.ram, Dimension.BYTES), "runtime.ram")] if runtime.ram else []
    rows += [("rules", ", ".join(found.rules), "rules")] if found.rules else []
    return [*rows, ("types", types, "dtypes"), ("operators", names, "operators")]


def _metrics(found: device_profile.Device) -> list[_Fact]:
    named = (("latency", found.latency), ("ram", found.ram), ("flash", found.flash))
    rows = [(f"how {name} is obtained", _obtained(obtained), name) for name, obtained in named]
    return [*rows, *(_calibration(found.latency.calibration) if found.latency.calibration else ())]


def _obtained(obtained: device_profile.MetricSource) -> str:
    if obtained.by is None:
        return f"{obtained.evidence}: {obtained.reason}"
    parts = [f"{obtained.evidence} by {obtained.by}"]
    if obtained.fit or obtained.transfer:
        return parts[0] + ": " + (_fit(obtained.fit) if obtained.fit else _transfer(obtained.transfer))
    parts += [f"{obtained.ratio:g} of the planned arena"] if obtained.ratio else []
    parts += [units.show(obtained.plus, Dimension.BYTES)] if obtained.plus else []
    parts += [f"{units.show(obtained.per_operator, Dimension.BYTES)} an operator"] if obtained.per_operator else []
    told = ", ".join(parts[:1]) + (f": {' + '.join(parts[1:])}" if parts[1:] else "")
    spread = f"; {obtained.interval[0]:g} to {obtained.interval[1]:g} times that was seen" if obtained.interval else ""
    return told + spread + (f" on {obtained.points} models" if obtained.points else "")


def _fit(fit: LatencyFit) -> str:
    error = fit.error and ", ".join(
        f"{name} {units.show(share, Dimension.FRACTION)}"
        for name, share in (("median", fit.error.median), ("90 % within", fit.error.p90), ("worst", fit.error.worst))
    )
    span = " to ".join(units.show(seconds, Dimension.SECONDS) for seconds in fit.seconds)
    held_out = f"; error with the family held out: {error}" if error else "; one family, none could be held out"
    return f"{fit.points} {fit.dtype} models of {span}, {fit.kind}{held_out}; {fit.source}"


def _transfer(carry: device_profile.LatencyTransfer | None) -> str:
    assert carry is not None, "one of fit and transfer is there"
    about = f"{carry.points} measurements" if carry.points else "no measurement"
    return (
        f"from {carry.device} by clock and a factor of {carry.scale:g}, {about}, error x/÷ {math.exp(carry.error):.2f}"
        f"; {carry.source}"
    )


def document(name: str) -> str:
    """The same as one JSON document."""
    return json.dumps(
        {"schema": "edgepipe.device/1", **device_profile.load(name, Path.cwd()).model_dump(mode="json")}, indent=2
    )
