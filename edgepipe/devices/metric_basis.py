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

    profile_name: str  # of the first profile that is not abstract; empty until then
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
    basis_text: str
    current_text: str

    def __str__(self) -> str:
        return f"{self.field} is {self.current_text} instead of {self.basis_text}"


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


def find_changes(method: str | None, current: ProfileData, basis: ProfileData) -> list[Change]:
    """What a metric obtained by `method` depends on and that differs between two profiles.

    Args:
        method: the profile's `by`.
        current: the validated content of the profile.
        basis: the same with the basis of the metric.
    """
    return [
        change
        for field in _FIELDS_BY_METHOD.get(method or "", ())
        for change in _FIELD_FUNCTIONS.get(field, _scalar_changes)(field, current, basis, method)
    ]


def _scalar_changes(field: str, current: ProfileData, basis: ProfileData, _: str | None) -> Iterator[Change]:
    current_value, basis_value = _value_at(current, field), _value_at(basis, field)
    if basis_value is None and field in _OPTIONAL_DEMANDS:
        return
    if current_value != basis_value:
        yield Change(field, _show(field, basis_value), _show(field, current_value))


def _thread_changes(field: str, current: ProfileData, basis: ProfileData, method: str | None) -> Iterator[Change]:
    """Another number of threads, or fewer cores than threads; other cores are idle."""
    yield from _scalar_changes(field, current, basis, method)
    current_cores, basis_cores = _value_at(current, "system.cores"), _value_at(basis, "system.cores")
    if current_cores is not None and current_cores < _value_at(current, field) and current_cores != basis_cores:
        yield Change("system.cores", _show("system.cores", basis_cores), f"{current_cores}, fewer than threads")


def _npu_changes(field: str, current: ProfileData, basis: ProfileData, method: str | None) -> Iterator[Change]:
    current_npu, basis_npu = _value_at(current, field), _value_at(basis, field)
    if current_npu is None or basis_npu is None:
        if current_npu != basis_npu:
            yield Change(field, _show_npu(basis_npu), _show_npu(current_npu))
        return
    for key in _npu_keys(current_npu, basis_npu, method):
        if current_npu[key] != basis_npu[key]:
            path = f"{field}.{key}"
            yield Change(path, _show(path, basis_npu[key]), _show(path, current_npu[key]))


def _npu_keys(current_npu: ProfileData, basis_npu: ProfileData, method: str | None) -> list[str]:
    """What counts: Vela compiles for its own settings and takes the clock of the profile, a fit knows nothing anew."""
    if method != "vela":
        return list(current_npu)
    return ["macs_per_cycle"] if current_npu["vela"] == basis_npu["vela"] else []


def _bank_changes(field: str, current: ProfileData, basis: ProfileData, _: str | None) -> Iterator[Change]:
    """Caches and bandwidths; where sizes of other memories matter, the place of the arena says so."""
    current_banks, basis_banks = _value_at(current, field), _value_at(basis, field)
    for describe, label in ((_describe_caches, "caches"), (_describe_bandwidths, "bandwidths")):
        current_text, basis_text = describe(current_banks), describe(basis_banks)
        if current_text != basis_text:
            yield Change(f"{field} ({label})", basis_text or "not stated", current_text or "not stated")


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
