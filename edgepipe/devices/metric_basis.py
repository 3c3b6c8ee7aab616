"""What the metrics of a profile were obtained on, and what a child profile changes of it.

A latency fit, a RAM estimate and a size of code hold for the system and the runtime that they were stated with. Their
basis is that of the profile that states them, so that a child cannot change the clock and keep the latency.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgepipe.core import units
from edgepipe.core.units import Dimension

METRIC_KEYS = ("latency", "ram", "flash")
BASIS_KEYS = ("system", "runtime")
ProfileData = Mapping[str, Any]


@dataclass(frozen=True)
class MetricBasis:
    """The system and the runtime that a metric was stated for, as written in the profiles."""

    profile_name: str  # of the first profile that is not abstract; empty before
    content: ProfileData  # by BASIS_KEYS

    def completed(self, profile_content: ProfileData) -> "MetricBasis":
        """With what abstract profiles left open; a profile that is not abstract has left nothing open."""
        if self.profile_name:
            return self
        return MetricBasis("", fill(self.content, _basis_content(profile_content)))


BasisByMetric = Mapping[str, MetricBasis]


def overlay_bases(
    lower_bases: BasisByMetric, upper_content: Any, upper_bases: BasisByMetric, merged_content: Any
) -> dict[str, MetricBasis]:
    """The bases where `upper` overrides `lower`: whoever states a metric last brings its basis."""
    if not isinstance(merged_content, dict) or not isinstance(upper_content, dict):
        return {}
    return {
        key: (upper_bases.get(key) or MetricBasis("", {}) if key in upper_content else lower_bases[key]).completed(
            merged_content
        )
        for key in METRIC_KEYS
        if key in upper_content or key in lower_bases
    }


def name_bases(bases: BasisByMetric, profile_name: str) -> dict[str, MetricBasis]:
    """The bases after a profile that is not abstract: from here on every difference is a change."""
    return {
        key: basis if basis.profile_name else MetricBasis(profile_name, basis.content) for key, basis in bases.items()
    }


def _basis_content(profile_content: ProfileData) -> ProfileData:
    return {key: copy.deepcopy(profile_content[key]) for key in BASIS_KEYS if key in profile_content}


def fill(content: Any, defaults: Any) -> Any:
    """`content` with what it lacks taken from `defaults`."""
    if not isinstance(content, Mapping) or not isinstance(defaults, Mapping):
        return content
    return {**defaults, **{key: fill(value, defaults.get(key)) for key, value in content.items()}}


@dataclass(frozen=True)
class Change:
    """One thing that a metric depends on and that differs from its basis."""

    field: str  # for example system.clock
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.field} is {self.now} instead of {self.before}"


CLOCK_FIELD = "system.clock"
_CORE_FIELDS = ("system.core", "system.architecture")
_RUNTIME_FIELDS = ("runtime.name", "runtime.version")
_ESTIMATE_FIELDS = (
    *_CORE_FIELDS, CLOCK_FIELD, *_RUNTIME_FIELDS, "runtime.release", "runtime.kernels", "runtime.threads",
    "system.npu", "system.memory.banks",
)  # fmt: skip
_FIELDS_BY_METHOD: Mapping[str, tuple[str, ...]] = {
    "fit": _ESTIMATE_FIELDS,
    "transfer": _ESTIMATE_FIELDS,
    "calibration": _ESTIMATE_FIELDS,
    "host": (*_CORE_FIELDS, CLOCK_FIELD, "runtime.name", "system.npu"),
    "vela": ("runtime.name", "system.npu", "system.memory.banks"),
    "tflite-micro": ("runtime.name",),
    "plan": _RUNTIME_FIELDS,
    "weights": _RUNTIME_FIELDS,
    "program": ("runtime.name", "system.architecture"),
}
_OPTIONAL_DEMANDS = ("runtime.release",)  # a profile without one leaves it open, so that one is no change


def find_changes(method: str | None, now: ProfileData, before: ProfileData) -> list[Change]:
    """What a metric obtained by `method` depends on and that differs between two profiles.

    Args:
        method: the profile's `by`.
        now: the validated content of the profile.
        before: the same with the basis of the metric.
    """
    return [
        change
        for field in _FIELDS_BY_METHOD.get(method or "", ())
        for change in _FIELD_FUNCTIONS.get(field, _scalar_changes)(field, now, before, method)
    ]


def _scalar_changes(field: str, now: ProfileData, before: ProfileData, _: str | None) -> Iterator[Change]:
    value_now, value_before = _value_at(now, field), _value_at(before, field)
    if value_before is None and field in _OPTIONAL_DEMANDS:
        return
    if value_now != value_before:
        yield Change(field, _show(field, value_before), _show(field, value_now))


def _thread_changes(field: str, now: ProfileData, before: ProfileData, method: str | None) -> Iterator[Change]:
    """Another number of threads, or fewer cores than threads; other cores are idle."""
    yield from _scalar_changes(field, now, before, method)
    cores_now, cores_before = _value_at(now, "system.cores"), _value_at(before, "system.cores")
    if cores_now is not None and cores_now < _value_at(now, field) and cores_now != cores_before:
        yield Change("system.cores", _show("system.cores", cores_before), f"{cores_now}, fewer than threads")


def _npu_changes(field: str, now: ProfileData, before: ProfileData, method: str | None) -> Iterator[Change]:
    npu_now, npu_before = _value_at(now, field), _value_at(before, field)
    if npu_now is None or npu_before is None:
        if npu_now != npu_before:
            yield Change(field, _show_npu(npu_before), _show_npu(npu_now))
        return
    for key in _npu_keys(npu_now, npu_before, method):
        if npu_now[key] != npu_before[key]:
            path = f"{field}.{key}"
            yield Change(path, _show(path, npu_before[key]), _show(path, npu_now[key]))


def _npu_keys(npu_now: ProfileData, npu_before: ProfileData, method: str | None) -> list[str]:
    """What counts: Vela compiles for its own settings and takes the clock of the profile, a fit knows nothing anew."""
    if method != "vela":
        return list(npu_now)
    return ["macs_per_cycle"] if npu_now["vela"] == npu_before["vela"] else []


def _bank_changes(field: str, now: ProfileData, before: ProfileData, _: str | None) -> Iterator[Change]:
    """Caches and bandwidths; where sizes of other memories matter, the place of the arena says so."""
    banks_now, banks_before = _value_at(now, field), _value_at(before, field)
    for describe, label in ((_describe_caches, "caches"), (_describe_bandwidths, "bandwidths")):
        text_now, text_before = describe(banks_now), describe(banks_before)
        if text_now != text_before:
            yield Change(f"{field} ({label})", text_before or "not stated", text_now or "not stated")


def _describe_caches(banks: list[ProfileData]) -> str:
    return ", ".join(units.show(bank["size"], Dimension.BYTES) for bank in banks if bank["kind"] == "cache")


def _describe_bandwidths(banks: list[ProfileData]) -> str:
    return ", ".join(f"{bank['bandwidth'] / 1e9:g} GB/s" for bank in banks if bank["bandwidth"])


def _show_npu(npu: ProfileData | None) -> str:
    return npu["name"] if npu else "none"


def _show(field: str, value: Any) -> str:
    if value is None:
        return "not stated"
    if field.endswith("clock"):
        return units.show(value, Dimension.FREQUENCY)
    return f"a list of {len(value)}" if isinstance(value, (tuple, list)) else str(value)


def _value_at(content: ProfileData, field: str) -> Any:
    value: Any = content
    for key in field.split("."):
        value = value[key]
    return value


_FIELD_FUNCTIONS = {
    "runtime.threads": _thread_changes,
    "system.npu": _npu_changes,
    "system.memory.banks": _bank_changes,
}
