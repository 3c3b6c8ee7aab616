"""Which operators and tensors of a model a device cannot run, or not where it should: each with a rule and a remedy."""

from edgepipe.core.metric import Finding
from edgepipe.devices.device_profile import Device
from edgepipe.devices.placement import Placed, Where, core_problems, placement
from edgepipe.tflite.model import Model


def check(device: Device, model: Model) -> list[Finding]:
    """What keeps `model` from running on `device`, or on its accelerator; empty if nothing does.

    Operators, types and shapes are held against the profile. What a compiler finds beyond that is its to report, and
    memory is the budget's.
    """
    found = [
        Finding(rule=broken.rule, place=operator.place, observed=broken.reason, suggestion=broken.suggestion)
        for operator in model.operators
        for broken in core_problems(device, model, operator)
    ]
    return found + (_fallbacks(placement(device, model)) if device.system.npu is not None else [])


def _fallbacks(placed: tuple[Placed, ...]) -> list[Finding]:
    """One finding for each operator that the accelerator refuses; those that follow it to the core are counted."""
    refused = [p for p in placed if p.where in (Where.CPU, Where.GPU) and p.rule != "behind"]
    found = [
        Finding(rule="npu-fallback", place=p.operator, observed=p.reason, suggestion=p.suggestion) for p in refused
    ]
    behind = sum(p.rule == "behind" for p in placed)
    if behind and found:
        more = f"; {behind} {'operator' if behind == 1 else 'operators'} behind it run there too"
        found[0] = found[0].model_copy(update={"observed": found[0].observed + more})
    return found
