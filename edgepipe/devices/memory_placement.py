"""Where the activations and the model land: in the first memory that holds them, in the order of the profile.

Off-chip memory is slower by a factor that neither a fit nor a simulated arena knows. Where the on-chip memories, all
together, do not hold what is needed, that is said, is a finding unless it is allowed, and is outside of every fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgepipe.core import units
from edgepipe.core.metric import Finding, Judgement, Limit, Metric, judge
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device, MemoryBank, MetricSource

EXTERNAL_MEMORY_RULE = "external-memory"
_CONTENT_BY_METRIC = {"ram": "the activations", "flash": "the model"}
_LANDS_BY_METRIC = {"ram": "the activations land", "flash": "the model lands"}
_SUGGESTION = (
    "make the model smaller, or allow it: `system.memory.allow_external: true` in the profile, or a limit on the "
    "{name} of {device} above {on_chip}"
)


@dataclass(frozen=True)
class MemoryPlace:
    """Where an amount of memory lands on a device."""

    bank_names: tuple[str, ...]
    on_chip_bytes: int  # of all on-chip memories of the kind
    crosses: bool  # it lands off-chip although the device has on-chip memory of the kind

    @property
    def text(self) -> str:
        """For example `SRAM1` or `SRAM1 and SRAM2 together`."""
        *first_names, last_name = self.bank_names
        return f"{', '.join(first_names)} and {last_name} together" if first_names else last_name


def find_place(banks: Sequence[MemoryBank], kind: str, needed_bytes: float) -> MemoryPlace | None:
    """The first of `banks` that holds `needed_bytes`, on-chip ones also together; None if nothing holds them.

    Args:
        banks: as in the profile, fastest first.
        kind: `ram` or `flash`.
        needed_bytes: what has to be held.
    """
    on_chip_banks = [bank for bank in banks if bank.kind == kind and not bank.external]
    off_chip_banks = [bank for bank in banks if bank.kind == kind and bank.external]
    on_chip_bytes = sum_on_chip(banks, kind)
    if needed_bytes <= on_chip_bytes:
        return MemoryPlace(_first_fit(on_chip_banks, needed_bytes), on_chip_bytes, crosses=False)
    holding_bank = next((bank for bank in off_chip_banks if needed_bytes <= bank.size), None)
    return MemoryPlace((holding_bank.name,), on_chip_bytes, bool(on_chip_banks)) if holding_bank else None


def sum_on_chip(banks: Sequence[MemoryBank], kind: str) -> int:
    """The bytes of all on-chip memories of the kind; 0 if there are none."""
    return sum(bank.size for bank in banks if bank.kind == kind and not bank.external)


def _first_fit(banks: Sequence[MemoryBank], needed_bytes: float) -> tuple[str, ...]:
    for bank in banks:
        if needed_bytes <= bank.size:
            return (bank.name,)
    names: list[str] = []
    for bank in banks:
        names.append(bank.name)
        needed_bytes -= bank.size
        if needed_bytes <= 0:
            break
    return tuple(names)


def locate(metric: Metric, device: Device) -> Metric:
    """`metric`, if it is the RAM or flash of a device with stated memories, with where it lands in `how`."""
    if metric.value is None or not _is_placed(metric, device):
        return metric
    place = find_place(device.system.memory.banks, metric.name, metric.value)
    if place is None:
        return metric
    place_text = f"{_CONTENT_BY_METRIC[metric.name]} in {place.text}{', off-chip' if place.crosses else ''}"
    return metric.model_copy(
        update={"how": f"{metric.how}; {place_text}", "details": {**metric.details, "memory": place.text}}
    )


def _is_placed(metric: Metric, device: Device) -> bool:
    """Not what Vela compiled: its memory mode, which its numbers already hold, says what lands where."""
    if metric.name not in _CONTENT_BY_METRIC or metric.value is None:
        return False
    source: MetricSource = {"ram": device.ram, "flash": device.flash}[metric.name]
    return source.by != "vela"


def crossing_reason(metric: Metric, device: Device) -> str:
    """Why the numbers of on-chip memory do not hold: `metric` lands off-chip, or may; empty if it does not."""
    place = _crossed_place(metric, device)
    if place is None:
        return ""
    low = metric.interval[0] if metric.interval else metric.value or 0
    is_certain = low > place.on_chip_bytes
    lands_text = _LANDS_BY_METRIC[metric.name] if is_certain else f"{_CONTENT_BY_METRIC[metric.name]} may land"
    on_chip_text = units.show(place.on_chip_bytes, Dimension.BYTES)
    return (
        f"{metric.text()} of {metric.name} needed, {on_chip_text} are on-chip: {lands_text} in {place.text}, off-chip"
    )


def _crossed_place(metric: Metric, device: Device) -> MemoryPlace | None:
    if not _is_placed(metric, device):
        return None
    high = metric.interval[1] if metric.interval else metric.value
    place = find_place(device.system.memory.banks, metric.name, high or 0)
    return place if place is not None and place.crosses else None


@dataclass(frozen=True)
class PlacementFindings:
    """The `external-memory` findings of a device, and notes in their place where profile or budget allow it."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def placement_findings(device: Device, metrics: Sequence[Metric], limits: Sequence[Limit]) -> PlacementFindings:
    """What of `metrics` lands off-chip on `device` although it has on-chip memory."""
    reasons = [
        (metric, reason)
        for metric in metrics
        if metric.device == device.name and (reason := crossing_reason(metric, device))
    ]
    permissions = [_permission(metric, device, limits) for metric, _ in reasons]
    return PlacementFindings(
        tuple(
            _crossing_finding(metric, device, reason)
            for (metric, reason), permission in zip(reasons, permissions, strict=True)
            if not permission
        ),
        tuple(
            f"{device.name}: {reason}; {permission} allows it"
            for (_, reason), permission in zip(reasons, permissions, strict=True)
            if permission
        ),
    )


def _permission(metric: Metric, device: Device, limits: Sequence[Limit]) -> str:
    """What allows off-chip memory: the profile, or a limit that on-chip memory could not fill."""
    if device.system.memory.allow_external:
        return "the profile"
    place = _crossed_place(metric, device)
    device_limits = [limit for limit in limits if (limit.metric, limit.device) == (metric.name, device.name)]
    allows = place is not None and any(
        judge(limit, [metric]).met and limit.value > place.on_chip_bytes for limit in device_limits
    )
    return "the budget" if allows else ""


def _crossing_finding(metric: Metric, device: Device, reason: str) -> Finding:
    place = _crossed_place(metric, device)
    assert place is not None, "only called for what crosses"
    low = metric.interval[0] if metric.interval else metric.value or 0
    return Finding(
        rule=EXTERNAL_MEMORY_RULE,
        place=device.name,
        observed=reason,
        suggestion=_SUGGESTION.format(
            name=metric.name, device=device.name, on_chip=units.show(place.on_chip_bytes, Dimension.BYTES)
        ),
        judgement=Judgement.NOT_MET if low > place.on_chip_bytes else Judgement.UNKNOWN,
    )
