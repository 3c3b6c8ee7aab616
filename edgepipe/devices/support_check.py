"""Which operators and tensors of a model a device cannot run, or not on its accelerator: each with rule and remedy."""

from edgepipe.core.metric import Finding, Judgement
from edgepipe.core.units import plural
from edgepipe.devices.device_profile import Device
from edgepipe.devices.operator_placement import OperatorPlacement, Processor
from edgepipe.devices.placement import core_violations, place_operators
from edgepipe.devices.runtimes.release_check import check_release
from edgepipe.devices.runtimes.releases import parse_release
from edgepipe.tflite.compiled_file import scratch_tensors
from edgepipe.tflite.model import Model, Operator, Tensor

OPEN_SIZES_RULE = "static-shapes"


def check_support(device: Device, model: Model) -> list[Finding]:
    """What prevents `model` from running on `device` or its accelerator; empty if nothing does.

    Checks operators, types and shapes against the profile, and against the release of the runtime if it names one. It
    neither runs a compiler nor checks memory.
    """
    findings = [
        Finding(
            rule=violation.rule_name,
            place=operator.location,
            observed=violation.reason,
            suggestion=violation.suggestion,
        )
        for operator in model.operators
        for violation in core_violations(device, model, operator)
    ]
    if device.runtime.release is not None:
        findings += check_release(parse_release(device.runtime.release), model)
    findings = [*_join_open_sizes(findings), *_unwritten_findings(model)]
    return findings + (_fallback_findings(place_operators(device, model)) if device.system.npu is not None else [])


def _join_open_sizes(findings: list[Finding]) -> list[Finding]:
    """The findings with one for all operators whose sizes are open for the same reason: the first of them."""
    open_findings = [finding for finding in findings if finding.rule == OPEN_SIZES_RULE]
    if len(open_findings) < 2:
        return findings
    count_text = plural(len(open_findings) - 1, "operator")
    first = open_findings[0]
    first = first.model_copy(update={"observed": f"{first.observed}; so have {count_text} more"})
    return [first, *(finding for finding in findings if finding.rule != OPEN_SIZES_RULE)]


def _unwritten_findings(model: Model) -> list[Finding]:
    """One finding per operator that reads what nothing has written; some runtimes run that, on what is in memory."""
    findings = []
    for subgraph in model.subgraphs:
        written_keys = {tensor.key for tensor in subgraph.inputs}
        for operator in subgraph.operators:
            for tensor in operator.inputs:
                if tensor is not None and tensor.key not in written_keys and _needs_writer(operator, tensor):
                    findings.append(_unwritten_finding(operator, tensor))
            written_keys |= {tensor.key for tensor in operator.outputs if tensor is not None}
    return findings


def _needs_writer(operator: Operator, tensor: Tensor) -> bool:
    if tensor.is_constant or tensor.is_variable or tensor in scratch_tensors(operator):
        return False
    return tensor.element_count > 0


def _unwritten_finding(operator: Operator, tensor: Tensor) -> Finding:
    return Finding(
        rule="unwritten",
        place=operator.location,
        observed=f"it reads '{tensor.name}', which is no input and which no operator before it writes",
        suggestion="convert the model again: the file is damaged",
    )


def _fallback_findings(placements: tuple[OperatorPlacement, ...]) -> list[Finding]:
    """One finding per operator that the accelerator does not support; dependent operators are only counted."""
    fallback_placements = [
        p for p in placements if p.runs_on in (Processor.CPU, Processor.GPU) and p.rule_name != "behind"
    ]
    findings = [
        Finding(
            rule="npu-fallback",
            place=p.operator_label,
            observed=p.reason,
            suggestion=p.suggestion,
            judgement=Judgement.UNKNOWN if p.is_open else Judgement.NOT_MET,
        )
        for p in fallback_placements
    ]
    behind_count = sum(p.rule_name == "behind" for p in placements)
    if behind_count and findings:
        verb = "runs" if behind_count == 1 else "run"
        suffix = f"; {plural(behind_count, 'operator')} downstream {verb} there too"
        findings[0] = findings[0].model_copy(update={"observed": findings[0].observed + suffix})
    return findings
