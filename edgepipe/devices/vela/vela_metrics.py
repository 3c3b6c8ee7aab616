"""The metrics of a model on an Arm Ethos-U, and the operators that the NPU does not run, as reported by Vela."""

from collections import Counter
from dataclasses import dataclass

from edgepipe.core import units
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Judgement, Metric, exact_metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.devices.compiled_metrics import compiled_metric
from edgepipe.devices.compiled_placement import compiled_for_another
from edgepipe.devices.device_profile import Device, Npu
from edgepipe.devices.placement import suggest_replacement
from edgepipe.devices.vela import vela_compiler
from edgepipe.devices.vela.vela_compiler import VelaRefusedError
from edgepipe.devices.vela.vela_result import VelaCompilation, VelaPlacement
from edgepipe.tflite.compiled_file import VELA_CODE, CompiledFile, read_compiled_file
from edgepipe.tflite.model import Model

UNKNOWN_OPERATOR_REASON = "Unsupported opType"  # in Vela's words
MAX_LISTED_OPERATORS = 8  # operators named in a metric's text; `details` names all of them
UNIT_BY_METRIC = {
    "latency": Dimension.SECONDS,
    "ram": Dimension.BYTES,
    "flash": Dimension.BYTES,
    "npu_operators": Dimension.FRACTION,
}


@dataclass(frozen=True)
class VelaAnalysis:
    """Vela's results for a model on one device; without `compilation`, `reason` says why there are none."""

    model: Model
    device: Device
    npu: Npu
    compilation: VelaCompilation | None
    reason: str = ""
    refusal_finding: Finding | None = None
    cache_note: str = ""  # why the result could not be cached
    compiled_file: CompiledFile | None = None  # what the file says of itself, if it is compiled for this accelerator

    def metric(self, name: str) -> Metric:
        """`latency`, `ram`, `flash` or `npu_operators`; unavailable with the reason if Vela has no value."""
        if self.compiled_file is not None:
            return compiled_metric(name, self.compiled_file, self.model, self.device)
        if self.compilation is None:
            return unavailable_metric(name, UNIT_BY_METRIC[name], self.reason, self.device.name)
        function_by_metric = {
            "latency": _latency_metric,
            "ram": _ram_metric,
            "flash": _flash_metric,
            "npu_operators": _npu_share_metric,
        }
        return function_by_metric[name](self.compilation, self.device, self.npu)

    def seconds_by_operator(self) -> dict[str, float]:
        """Seconds of each operator on the NPU, by location; operators that Vela fuses count for the one it names."""
        if self.compilation is None:
            return {}
        clock, cycles_by_operator = self.npu.clock or self.compilation.clock, Counter[str]()
        for layer in self.compilation.layers:
            cycles_by_operator[layer.operator] += layer.cycles
        return {operator_label: cycles / clock for operator_label, cycles in cycles_by_operator.items()}

    @property
    def fallback_findings(self) -> list[Finding]:
        """One finding for each operator that the NPU does not run."""
        fallback_placements = self.compilation.fallback_placements if self.compilation is not None else ()
        return [_fallback_finding(self.model, placement, self.device, self.npu) for placement in fallback_placements]


def analyze(model: Model, device: Device, cache: Cache | None = None) -> VelaAnalysis:
    """Compile `model` for `device`, which must have `system.npu.vela`, or take the result from the cache.

    Raises:
        InputError: the profile has settings that Vela does not know or that contradict each other; names the profile.
    """
    npu, vela_settings = device.system.npu, vela_compiler.device_settings(device)
    assert npu is not None, "only called for devices with an NPU"
    assert vela_settings is not None, "only called for devices with `system.npu.vela`"
    compiled_file = read_compiled_file(model)
    if compiled_file is not None:
        return _analyze_compiled(model, device, npu, compiled_file)
    if reason := vela_compiler.unavailable_reason():
        return VelaAnalysis(model, device, npu, None, reason, _unknown_finding(model, reason, "install it and repeat"))
    try:
        compiled_model = vela_compiler.compile_model(model, vela_settings, cache)
    except VelaRefusedError as error:
        finding = Finding(
            rule="vela",
            place=model.path.name,
            observed=str(error),
            suggestion="this version of Vela cannot compile it; try another, or replace the unsupported operators",
        )
        return VelaAnalysis(model, device, npu, None, str(error), finding)
    except InputError as error:
        raise InputError(f"device '{device.name}': {error}") from None
    return VelaAnalysis(model, device, npu, compiled_model.compilation, cache_note=compiled_model.cache_note)


def _analyze_compiled(model: Model, device: Device, npu: Npu, compiled_file: CompiledFile) -> VelaAnalysis:
    """What a compiled file says of itself; it is never compiled again."""
    remedy = f"give the .tflite before {compiled_file.compiler}"
    if compiled_file.code == VELA_CODE and not compiled_file.accelerators:
        reason = "Vela has compiled this file already, and its commands do not say in a known way for which accelerator"
        return VelaAnalysis(model, device, npu, None, reason, _unknown_finding(model, reason, remedy))
    if compiled_for_another(device, compiled_file):
        target = npu.vela.accelerator if npu.vela is not None else npu.name
        reason = f"the file is {compiled_file.text()}, not for {target}"
        suggestion = f"{remedy}, or compile that for {target}"
        finding = Finding(rule="vela", place=model.path.name, observed=reason, suggestion=suggestion)
        return VelaAnalysis(model, device, npu, None, reason, finding)
    return VelaAnalysis(model, device, npu, None, compiled_file=compiled_file)


def _unknown_finding(model: Model, reason: str, suggestion: str) -> Finding:
    return Finding(
        rule="vela",
        place=model.path.name,
        observed=f"not compiled: {reason}",
        suggestion=suggestion,
        judgement=Judgement.UNKNOWN,
    )


def _latency_metric(compilation: VelaCompilation, device: Device, npu: Npu) -> Metric:
    """Seconds = cycles / clock + invoke. The clock is from the profile, otherwise from Vela's system configuration."""
    if reason := _untimed_reason(compilation, device):
        return unavailable_metric("latency", Dimension.SECONDS, reason, device.name)
    clock = npu.clock or compilation.clock
    invoke_seconds = npu.vela.invoke if npu.vela is not None else 0.0
    return Metric(
        name="latency",
        value=compilation.cycles / clock + invoke_seconds,
        unit=Dimension.SECONDS,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=_explain_latency(compilation, device, clock, invoke_seconds),
        details={
            "cycles": compilation.cycles,
            "npu_cycles": compilation.npu_cycles,
            "clock": clock,
            "invoke": invoke_seconds,
            "fallbacks": ", ".join(placement.place for placement in compilation.fallback_placements),
            **{f"{memory.name} cycles": memory.cycles for memory in compilation.memories if memory.traffic},
            "version": compilation.version,
        },
    )


def _untimed_reason(compilation: VelaCompilation, device: Device) -> str:
    if compilation.subgraphs > 1:
        return (
            f"the model has {compilation.subgraphs} subgraphs (loops or branches): Vela only counts the cycles of the "
            "last one, and the file does not say how often a loop runs; unroll the loop"
        )
    if len(compilation.fallback_placements) == len(compilation.placements):
        return f"no operator of the model runs on the NPU, and edgepipe cannot time the {device.system.core}"
    return ""


def _explain_latency(compilation: VelaCompilation, device: Device, clock: float, invoke_seconds: float) -> str:
    frequency_text = units.show(clock, Dimension.FREQUENCY)
    clauses = [f"{compilation.cycles:,} cycles at {frequency_text} by {_describe_cycle_model(compilation)}"]
    if clock != compilation.clock:
        clauses.append(f"whose memories are modelled for {units.show(compilation.clock, Dimension.FREQUENCY)}")
    clauses.append(
        f"plus {units.show(invoke_seconds, Dimension.SECONDS)} to invoke"
        if invoke_seconds
        else "excluding driver overhead"
    )
    if compilation.fallback_placements:
        clauses.append(
            f"NOT included: the time of {_list_operators(compilation.fallback_placements)} on the {device.system.core}"
        )
    return "; ".join(clauses)


def _describe_cycle_model(compilation: VelaCompilation) -> str:
    return f"the cycle model of Vela {compilation.version} ({compilation.settings.text()})"


def _list_operators(placements: tuple[VelaPlacement, ...]) -> str:
    suffix = f" and {len(placements) - MAX_LISTED_OPERATORS} more" if len(placements) > MAX_LISTED_OPERATORS else ""
    return ", ".join(placement.place for placement in placements[:MAX_LISTED_OPERATORS]) + suffix


def _ram_metric(compilation: VelaCompilation, device: Device, npu: Npu) -> Metric:
    """Peak bytes of SRAM and DRAM. The DRAM includes the weights."""
    if compilation.subgraphs > 1:
        reason = f"the model has {compilation.subgraphs} subgraphs, and Vela only reports the memory of the last one"
        return unavailable_metric("ram", Dimension.BYTES, reason, device.name)
    if len(compilation.fallback_placements) == len(compilation.placements):
        reason = f"no operator of the model runs on {npu.name}: Vela places no tensor of it"
        return unavailable_metric("ram", Dimension.BYTES, reason, device.name)
    sram_bytes, dram_bytes = compilation.peak_bytes("SRAM"), compilation.peak_bytes("DRAM")
    split_text = (
        f" ({units.show(sram_bytes, Dimension.BYTES)} SRAM, {units.show(dram_bytes, Dimension.BYTES)} DRAM)"
        if dram_bytes
        else ""
    )
    weights_note = "; includes the weights, in DRAM" if dram_bytes else "; the weights stay in flash"
    return Metric(
        name="ram",
        value=sram_bytes + dram_bytes,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=f"peak memory{split_text} as Vela {compilation.version} places tensors{weights_note}; "
        "without the runtime's own structures",
        details={"sram": sram_bytes, "dram": dram_bytes, "version": compilation.version},
    )


def _flash_metric(compilation: VelaCompilation, device: Device, npu: Npu) -> Metric:
    explanation = (
        f"bytes of the .tflite that Vela {compilation.version} compiles for {compilation.settings.accelerator}"
    )
    return Metric(
        name="flash",
        value=compilation.size,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=f"{explanation}; the runtime's own code is not in it",
        details={
            "weights": compilation.encoded_weights,
            "weights_before": compilation.original_weights,
            "version": compilation.version,
        },
    )


def _npu_share_metric(compilation: VelaCompilation, device: Device, npu: Npu) -> Metric:
    """The share of the model's operators that run on the NPU, including those that Vela fuses into others."""
    operator_count, fallback_placements = len(compilation.placements), compilation.fallback_placements
    if not operator_count:
        return unavailable_metric("npu_operators", Dimension.FRACTION, "the model has no operators", device.name)
    npu_operator_count = operator_count - len(fallback_placements)
    explanation = (
        f"{npu_operator_count} of {operator_count} operators, as Vela {compilation.version} compiles the model"
    )
    explanation += (
        f"; on the {device.system.core}: {_list_operators(fallback_placements)}" if fallback_placements else ""
    )
    return exact_metric(
        "npu_operators",
        npu_operator_count / operator_count,
        Dimension.FRACTION,
        explanation,
        device.name,
    )


def _fallback_finding(model: Model, placement: VelaPlacement, device: Device, npu: Npu) -> Finding:
    consequence = f"it runs on the {device.system.core}"
    if device.operators is not None and placement.operator not in (*device.operators, *device.custom_operators):
        consequence = (
            f"and {device.runtime.name} has no kernel for it on the {device.system.core}: the model does not run"
        )
    return Finding(
        rule="npu-fallback",
        place=placement.place,
        observed=f"Vela leaves it to the core: {_explain_fallback(placement, npu)}; {consequence}",
        suggestion=_suggest_change(model, placement, npu),
        device=device.name,
    )


def _explain_fallback(placement: VelaPlacement, npu: Npu) -> str:
    """Vela's reason; one that only says that it does not know the operator, in words."""
    if _is_unlisted(placement, npu):
        return f"{npu.name} does not compute {placement.operator} ({placement.reason})"
    return placement.reason


def _is_unlisted(placement: VelaPlacement, npu: Npu) -> bool:
    return UNKNOWN_OPERATOR_REASON in placement.reason or (
        npu.operators is not None and placement.operator not in npu.operators
    )


def _suggest_change(model: Model, placement: VelaPlacement, npu: Npu) -> str:
    if "Float32" in placement.reason:
        return "convert to full-integer int8, inputs and outputs included"
    operator = next((operator for operator in model.operators if operator.location == placement.place), None)
    if operator is not None and _is_unlisted(placement, npu):
        return suggest_replacement(model, operator, npu.operators)
    return f"change what the reason names; see vela --supported-ops-report for the limits of {npu.name}"
