"""What edgepipe has - stages, devices, kept results - as tables and JSON, told from the code itself."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from edgepipe import units
from edgepipe.cache import Cache, default_root
from edgepipe.config import Options, Quantity
from edgepipe.devices import profile
from edgepipe.devices.calibration.record import Calibration, Errors
from edgepipe.errors import InputError, did_you_mean
from edgepipe.report.rows import Rows
from edgepipe.stages import STAGES, stage_class
from edgepipe.units import Dimension


def stages(name: str | None) -> list[Rows]:
    """All stages, or the options of the stage `name`."""
    if name is not None:
        cls = _stage(name)
        rows = tuple((o["option"], o["type"], o["default"], o["meaning"]) for o in _options(cls))
        return [Rows(f"{name}: {_summary(cls)}", ("option", "type", "default", "meaning"), rows)]
    listed = [
        (name, _takes(stage_class(name)), _gives(stage_class(name)), _summary(stage_class(name))) for name in STAGES
    ]
    return [Rows("Stages", ("stage", "takes", "gives", "what it does"), tuple(listed))]


def stages_json(name: str | None) -> str:
    """The same as one JSON document."""
    names = [name] if name is not None else list(STAGES)
    body = {
        stage: {"summary": _summary(cls), "takes": list(cls.accepts), "gives": sorted(set(cls.accepts.values())),
                "options": _options(cls)}
        for stage in names
        for cls in [_stage(stage)]
    }  # fmt: skip
    return json.dumps({"schema": "edgepipe.stages/1", "stages": body}, indent=2)


def _stage(name: str) -> Any:
    if name not in STAGES:
        raise InputError(f"no stage '{name}'{did_you_mean(name, STAGES)}")
    return stage_class(name)


def _summary(cls: Any) -> str:
    return str(cls.__doc__).strip().splitlines()[0]


def _takes(cls: Any) -> str:
    return ", ".join(cls.accepts)


def _gives(cls: Any) -> str:
    given = sorted(set(cls.accepts.values()))
    return ", ".join(given) if given != sorted(cls.accepts) else "the same"


def _options(cls: Any, above: str = "") -> list[dict[str, str]]:
    told = []
    for name, field in cls.model_fields.items():
        option = {"option": above + name, "type": _type(field.annotation, field.metadata)}
        told.append({**option, "default": _default(field), "meaning": field.description or ""})
        for inner in filter(_is_options, (field.annotation, *get_args(field.annotation))):
            told += _options(inner, f"{above}{name}.")
    return told


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Options)


def _type(annotation: Any, marks: Iterable[Any] = ()) -> str:
    """`annotation` with the bounds that pydantic's `marks` set; a quantity by what it counts."""
    flat = [inner for mark in marks for inner in getattr(mark, "metadata", [mark])]
    name = next((str(mark.dimension) for mark in flat if isinstance(mark, Quantity)), None) or _type_name(annotation)
    bounds = [f"{sign} {getattr(mark, key)}" for mark in flat for key, sign in _BOUNDS if hasattr(mark, key)]
    return " ".join([name, *bounds])


_BOUNDS = (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))


def _type_name(annotation: Any) -> str:
    arguments = get_args(annotation)
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    names = {bool: "true | false", int: "integer", float: "number", str: "text", type(None): "null", dict: "mapping"}
    origin = getattr(annotation, "__origin__", None)
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__, annotation.__metadata__)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if _is_options(annotation):
        return "mapping"
    if arguments and origin is not dict:
        return " | ".join(_type_name(argument) for argument in arguments)
    return names.get(origin or annotation, str(getattr(annotation, "__name__", annotation)))


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else json.dumps(value)


def devices() -> list[Rows]:
    """All devices that are no mere parents."""
    rows = []
    for name in profile.names():
        found = profile.load(name, Path.cwd())
        memory = found.system.memory
        clock = units.show(found.system.clock, Dimension.FREQUENCY) if found.system.clock else ""
        sizes = [units.show(size, Dimension.BYTES) if size else "" for size in (memory.ram, memory.flash)]
        rows.append((name, found.system.core, clock, *sizes, found.runtime.name, str(found.latency.evidence)))
    columns = ("device", "core", "clock", "RAM", "flash", "runtime", "latency")
    return [Rows("Devices", columns, tuple(rows), frozenset({2, 3, 4}))]


def devices_json() -> str:
    """The same as one JSON document."""
    found = {name: profile.load(name, Path.cwd()).model_dump(mode="json") for name in profile.names()}
    return json.dumps({"schema": "edgepipe.devices/1", "devices": found}, indent=2)


def device(name: str) -> list[Rows]:
    """One device, with the unit of every number and where it comes from."""
    found = profile.load(name, Path.cwd())
    system, memory = found.system, found.system.memory
    rows = [
        (
            "core",
            f"{system.core} ({system.architecture})" + (f", {system.cores} cores" if (system.cores or 1) > 1 else ""),
        ),
        *((("clock", units.show(system.clock, Dimension.FREQUENCY)),) if system.clock else ()),
        *((("RAM", units.show(memory.ram, Dimension.BYTES)),) if memory.ram else ()),
        *((("flash", units.show(memory.flash, Dimension.BYTES)),) if memory.flash else ()),
        *((("NPU", _npu(system.npu)),) if system.npu else ()),
        ("runtime", f"{found.runtime.name} {found.runtime.version}, {found.runtime.threads} thread(s)"),
        ("types", ", ".join(found.dtypes) + ("; integer only" if found.integer_only else "")),
        ("operators", "all" if found.operators is None else f"{len(found.operators)}: {', '.join(found.operators)}"),
        *((metric, _obtained(getattr(found, metric))) for metric in ("latency", "ram", "flash")),
        *(_calibration(found.latency.calibration) if found.latency.calibration else ()),
        *(("source", source) for source in found.sources),
    ]
    return [Rows(f"{found.name}: {found.description}", ("what", "value"), tuple(rows))]


def _calibration(found: Calibration) -> list[tuple[str, str]]:
    about, (low, high) = found.measured, found.interval
    return [
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


def calibration_groups(name: str) -> Rows:
    """How well each group of the suite is predicted, by fits that saw four fifths of it and by one that saw none."""
    found = profile.load(name, Path.cwd()).latency.calibration
    groups = found.groups if found else {}
    rows = tuple((group, *_percents(e.within), *_percents(e.across)) for group, e in groups.items())
    columns = ("group", "models", "median", "p90", "unseen models", "median", "p90")
    return Rows("Errors by group, 5-fold and with the whole group unseen", columns, rows, frozenset(range(1, 7)))


def _percents(errors: Errors | None) -> tuple[str, str, str]:
    if errors is None:
        return "", "its operator is nowhere else", ""
    return str(errors.models), f"{errors.median * 100:.1f} %", f"{errors.p90 * 100:.1f} %"


def errors_text(errors: Errors) -> str:
    """For example `median 2.1 %, p90 6.0 %, worst 25.1 % of 216`."""
    return (
        f"median {errors.median * 100:.1f} %, p90 {errors.p90 * 100:.1f} %, worst {errors.worst * 100:.1f} % "
        f"of {errors.models}"
    )


def _npu(npu: Any) -> str:
    clock = f", {units.show(npu.clock, Dimension.FREQUENCY)}" if npu.clock else ""
    return f"{npu.name}{clock}" + (f", {npu.macs_per_cycle} MACs a cycle" if npu.macs_per_cycle else "")


def _obtained(obtained: Any) -> str:
    return f"{obtained.evidence} by {obtained.by}" if obtained.by else f"{obtained.evidence}: {obtained.reason}"


def device_json(name: str) -> str:
    """The same as one JSON document."""
    return json.dumps(
        {"schema": "edgepipe.device/1", **profile.load(name, Path.cwd()).model_dump(mode="json")}, indent=2
    )


def cache(folder: str | None) -> list[Rows]:
    """What the cache keeps, the newest first."""
    kept = _cache(folder)
    rows = tuple(
        (entry.key[:12], entry.stage, str(entry.kind), units.show(kept.bytes(entry.key), Dimension.BYTES),
         datetime.fromtimestamp(entry.created, UTC).isoformat(timespec="seconds"))
        for entry in kept.all()
    )  # fmt: skip
    return [Rows(f"{kept.root}: {len(rows)} entries", ("key", "stage", "kind", "size", "made"), rows, frozenset({3}))]


def cache_json(folder: str | None) -> str:
    """The same as one JSON document."""
    kept = _cache(folder)
    entries = [
        {"key": e.key, "stage": e.stage, "kind": e.kind, "bytes": kept.bytes(e.key), "created": e.created}
        for e in kept.all()
    ]
    return json.dumps({"schema": "edgepipe.cache/1", "root": str(kept.root), "entries": entries}, indent=2)


def _cache(folder: str | None) -> Cache:
    return Cache(Path(folder) if folder else default_root())
