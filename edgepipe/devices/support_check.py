"""Which operators and tensors of a model a device cannot run, or not where it should: each with a rule and a remedy."""

from edgepipe.core.metric import Finding
from edgepipe.devices.device_profile import Device
from edgepipe.devices.placement import OperatorPlacement, Processor, core_violations, place_operators
from edgepipe.tflite.model import Model


def check_support(device: Device, model: Model) -> list[Finding]:
    """What keeps `model` from running on `device`, or on its accelerator; empty if nothing does.

    Operators, types and shapes are held against the profile. What a compiler finds beyond that is its to report, and
    memory is the budget's.
    """
    findings = [
        Finding(
            rule=violation.rule, place=operator.location, observed=violation.reason, suggestion=violation.suggestion
        )
        for operator in model.operators
        for violation in core_violations(device, model, operator)
    ]
    return findings + (_fallback_findings(place_operators(device, model)) if device.system.npu is not None else [])


def _fallback_findings(placements: tuple[OperatorPlacement, ...]) -> list[Finding]:
    """One finding for each operator that the accelerator refuses; those that follow it to the core are counted."""
    fallbacks = [p for p in placements if p.runs_on in (Processor.CPU, Processor.GPU) and p.rule != "behind"]
    findings = [
        Finding(rule="npu-fallback", place=p.operator, observed=p.reason, suggestion=p.suggestion) for p in fallbacks
    ]
    behind_count = sum(p.rule == "behind" for p in placements)
    if behind_count and findings:
        suffix = f"; {behind_count} {'operator' if behind_count == 1 else 'operators'} behind it run there too"
        findings[0] = findings[0].model_copy(update={"observed": findings[0].observed + suffix})
    return findings
