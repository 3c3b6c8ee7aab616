"""Device profiles as tables and JSON: `edgepipe device list` and `edgepipe device show`."""

import math
from collections.abc import Iterable
from pathlib import Path

from edgepipe.core import units
from edgepipe.core.config import KeyPath
from edgepipe.core.escape import json_text
from edgepipe.core.units import Dimension
from edgepipe.devices import citations, device_profile
from edgepipe.devices.calibration.calibration_record import DeviceCalibration, PredictionErrors
from edgepipe.devices.latency.latency_record import LatencyFit
from edgepipe.render.report_tables import TextTable


def list_tables() -> list[TextTable]:
    """All non-abstract devices."""
    rows = []
    for name in device_profile.device_names():
        device = device_profile.load(name, Path.cwd())
        memory = device.system.memory
        clock = units.show(device.system.clock, Dimension.FREQUENCY) if device.system.clock else ""
        size_texts = [units.show(size, Dimension.BYTES) if size else "" for size in (memory.ram, memory.flash)]
        rows.append((name, device.system.core, clock, *size_texts, _runtime_text(device), str(device.latency.evidence)))
    columns = ("device", "core", "clock", "RAM", "flash", "runtime", "latency")
    return [TextTable("Devices", columns, tuple(rows), frozenset({2, 3, 4}))]


def _runtime_text(device: device_profile.Device) -> str:
    threads = device.runtime.threads
    return device.runtime.name + (f", {threads} threads" if threads > 1 else "")


def list_document() -> str:
    """The same as one JSON document."""
    devices = {
        name: device_profile.load(name, Path.cwd()).model_dump(mode="json") for name in device_profile.device_names()
    }
    return json_text({"schema": "edgepipe.devices/1", "devices": devices})


def tables(name: str) -> list[TextTable]:
    """One device, each number with its unit and source."""
    device = device_profile.load(name, Path.cwd())
    number_by_path = device_profile.stated_numbers_by_path(device)
    profile_rows = (*_system_rows(device), *_memory_rows(device), *_runtime_rows(device), *_metric_rows(device))
    rows = tuple((label, text, _source_text(device, path, number_by_path)) for label, text, path in profile_rows)
    return [TextTable(f"{device.name}: {device.description}", ("property", "value", "source"), rows)]


NO_SOURCE = "no source given"
_ProfileRow = tuple[str, str, str]  # label, value as text, and its dotted path in the profile


def _calibration_rows(calibration: DeviceCalibration) -> list[_ProfileRow]:
    suite_measurement, (low, high) = calibration.measured, calibration.interval
    model_count_text = units.plural(suite_measurement.models, "model")
    labelled_texts = [
        ("calibrated", f"on {model_count_text} ({suite_measurement.suite}), {suite_measurement.at}"),
        ("calibrated with", f"{suite_measurement.runtime}, {units.plural(suite_measurement.threads, 'thread')}"),
        ("calibration host", suite_measurement.host),
        ("90 % interval", f"{low:.3f} to {high:.3f} times the estimate"),
        *((f"error, {label}", errors_text(errors)) for label, errors in (
            ("composites, 5-fold", calibration.within),
            ("composites, group held out", calibration.across),
            ("operators, 5-fold", calibration.operators),
        )),
        *(("not run", refusal) for refusal in suite_measurement.refused),
    ]  # fmt: skip
    return [(label, text, "latency.calibration") for label, text in labelled_texts]


def calibration_table(name: str) -> TextTable:
    """Prediction errors of each group of the suite: 5-fold, and by a fit without any model of the group."""
    calibration = device_profile.load(name, Path.cwd()).latency.calibration
    errors_by_group = calibration.groups if calibration else {}
    rows = tuple((group, *_percent_texts(e.within), *_percent_texts(e.across)) for group, e in errors_by_group.items())
    columns = ("group", "models", "median", "p90", "unseen models", "median", "p90")
    return TextTable("Errors by group, 5-fold and with the whole group unseen", columns, rows, frozenset(range(1, 7)))


def _percent_texts(errors: PredictionErrors | None) -> tuple[str, str, str]:
    if errors is None:
        return "", "no other group has its operator", ""
    return str(errors.models), f"{errors.median * 100:.1f} %", f"{errors.p90 * 100:.1f} %"


def errors_text(errors: PredictionErrors) -> str:
    """For example `median 2.1 %, p90 6.0 %, worst 25.1 % of 216`."""
    return (
        f"median {errors.median * 100:.1f} %, p90 {errors.p90 * 100:.1f} %, worst {errors.worst * 100:.1f} % "
        f"of {errors.models}"
    )


def _source_text(device: device_profile.Device, path: str, number_paths: Iterable[KeyPath]) -> str:
    """The sources of the value at `path`; a number without one is marked, a text without one is not."""
    key_path = citations.parse_path(path)
    number_sources = {
        citations.find_citation(device.sources, n) for n in number_paths if n[: len(key_path)] == key_path
    }
    sources = number_sources | {citations.find_citation(device.sources, key_path)}
    cited_sources = sorted(source for source in sources if source is not None)
    return "; ".join([*cited_sources, *([NO_SOURCE] if None in number_sources else [])])


def _system_rows(device: device_profile.Device) -> list[_ProfileRow]:
    system, npu = device.system, device.system.npu
    rows = [("core", f"{system.core} ({system.architecture})", "system.core")]
    rows += [("cores", f"{system.cores}", "system.cores")] if system.cores else []
    rows += [("clock", units.show(system.clock, Dimension.FREQUENCY), "system.clock")] if system.clock else []
    if npu is not None:
        operators_text = "all" if npu.operators is None else f"{len(npu.operators)}: {', '.join(npu.operators)}"
        rows += [("NPU", npu.name, "system.npu.name")]
        rows += [("NPU clock", units.show(npu.clock, Dimension.FREQUENCY), "system.npu.clock")] if npu.clock else []
        macs_per_cycle = npu.macs_per_cycle
        rows += [("NPU MACs per cycle", f"{macs_per_cycle}", "system.npu.macs_per_cycle")] if macs_per_cycle else []
        rows += [("NPU channels", f"blocks of {npu.channels}", "system.npu.channels")] if npu.channels else []
        rows += [("NPU operators", operators_text, "system.npu.operators")]
        rows += [("NPU types", ", ".join(npu.dtypes), "system.npu.dtypes")]
        rows += [("NPU rules", ", ".join(npu.rules), "system.npu.rules")] if npu.rules else []
        rows += _vela_rows(npu.vela) if npu.vela else []
    return rows


def _vela_rows(vela: device_profile.VelaOptions) -> list[_ProfileRow]:
    invoke_text = units.show(vela.invoke, Dimension.SECONDS)
    text = f"{vela.accelerator}, {vela.system_config}, {vela.memory_mode}; driver overhead per invoke {invoke_text}"
    return [("Vela", text, "system.npu.vela")]


def _memory_rows(device: device_profile.Device) -> list[_ProfileRow]:
    memory = device.system.memory
    rows = [("RAM", units.show(memory.ram, Dimension.BYTES), "system.memory.ram")] if memory.ram else []
    rows += [("flash", units.show(memory.flash, Dimension.BYTES), "system.memory.flash")] if memory.flash else []
    return rows + [
        (f"  {bank.name}", _bank_text(bank), f"system.memory.banks.{index}") for index, bank in enumerate(memory.banks)
    ]


def _bank_text(bank: device_profile.MemoryBank) -> str:
    kind = f"{bank.kind}, off-chip" if bank.external else bank.kind
    speed = f", {bank.bandwidth / 1e9:g} GB/s" if bank.bandwidth else ""
    return f"{units.show(bank.size, Dimension.BYTES)} {kind}{speed}"


def _runtime_rows(device: device_profile.Device) -> list[_ProfileRow]:
    runtime = device.runtime
    kernels_text = f" with {runtime.kernels}" if runtime.kernels else ""
    types_text = ", ".join(device.dtypes) + ("; integer only" if device.integer_only else "")
    operators_text = "all" if device.operators is None else f"{len(device.operators)}: {', '.join(device.operators)}"
    rows = [("runtime", f"{runtime.name} {runtime.version}{kernels_text}", "runtime.version")]
    rows += [("threads", f"{runtime.threads}", "runtime.threads")]
    rows += [("runtime code", units.show(runtime.code, Dimension.BYTES), "runtime.code")] if runtime.code else []
    rows += [("runtime RAM", units.show(runtime.ram, Dimension.BYTES), "runtime.ram")] if runtime.ram else []
    rows += [("rules", ", ".join(device.rules), "rules")] if device.rules else []
    return [*rows, ("types", types_text, "dtypes"), ("operators", operators_text, "operators")]


def _metric_rows(device: device_profile.Device) -> list[_ProfileRow]:
    metric_sources = (("latency", device.latency), ("ram", device.ram), ("flash", device.flash))
    rows = [(name, _metric_source_text(source), name) for name, source in metric_sources]
    return [*rows, *(_calibration_rows(device.latency.calibration) if device.latency.calibration else ())]


def _metric_source_text(source: device_profile.MetricSource) -> str:
    if source.by is None:
        return f"{source.evidence}: {source.reason}"
    method_text = f"{source.evidence} by {source.by}"
    if source.fit or source.transfer:
        return f"{method_text}: {_fit_text(source.fit) if source.fit else _transfer_text(source.transfer)}"
    formula_terms = [f"{source.ratio:g} of the planned arena"] if source.ratio else []
    formula_terms += [units.show(source.plus, Dimension.BYTES)] if source.plus else []
    formula_terms += [f"{units.show(source.per_operator, Dimension.BYTES)} per operator"] if source.per_operator else []
    formula = f": {' + '.join(formula_terms)}" if formula_terms else ""
    interval_text = f"; {source.interval[0]:g} to {source.interval[1]:g} times that observed" if source.interval else ""
    support_text = f" on {units.plural(source.points, 'model')}" if source.points else ""
    return method_text + formula + interval_text + support_text


def _fit_text(fit: LatencyFit) -> str:
    error_text = fit.error and ", ".join(
        f"{name} {units.show(share, Dimension.FRACTION)}"
        for name, share in (("median", fit.error.median), ("90 % within", fit.error.p90), ("worst", fit.error.worst))
    )
    range_text = " to ".join(units.show(seconds, Dimension.SECONDS) for seconds in fit.seconds)
    held_out_text = (
        f"; error on unseen model families: {error_text}" if error_text else "; one model family, so none was held out"
    )
    return f"{fit.points} {fit.dtype} models of {range_text}, {fit.kind}{held_out_text}; {fit.source}"


def _transfer_text(transfer: device_profile.LatencyTransfer | None) -> str:
    assert transfer is not None, "an estimate has a fit or a transfer"
    support_text = units.plural(transfer.points, "measurement") if transfer.points else "no measurement"
    return (
        f"from {transfer.device} by clock and a factor of {transfer.scale:g}, {support_text}, error x/÷ "
        f"{math.exp(transfer.error):.2f}; {transfer.source}"
    )


def document(name: str) -> str:
    """The same as one JSON document."""
    return json_text({"schema": "edgepipe.device/1", **device_profile.load(name, Path.cwd()).model_dump(mode="json")})
