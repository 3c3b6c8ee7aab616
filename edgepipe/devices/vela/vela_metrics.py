"""The metrics of a model on an Arm Ethos-U, and which of its operators the NPU does not run, as Vela tells them."""

from collections import Counter
from dataclasses import dataclass

from edgepipe.core import units
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Metric, exact, unavailable
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device, Npu
from edgepipe.devices.vela import vela_compiler
from edgepipe.devices.vela.vela_compiler import RefusedError
from edgepipe.devices.vela.vela_result import Compiled, Placement
from edgepipe.tflite.model import Model

SHOWN = 8  # operators that the text of a metric names; `details` names all
UNITS = {
    "latency": Dimension.SECONDS,
    "ram": Dimension.BYTES,
    "flash": Dimension.BYTES,
    "npu_operators": Dimension.FRACTION,
}


@dataclass(frozen=True)
class Told:
    """What Vela told about a model on one device; without `compiled` the reason says why it told nothing."""

    device: Device
    npu: Npu
    compiled: Compiled | None
    reason: str = ""
    crashed: Finding | None = None
    note: str = ""  # why the result could not be kept

    def metric(self, name: str) -> Metric:
        """`latency`, `ram`, `flash` or `npu_operators`; unavailable with the reason where Vela gave none."""
        if self.compiled is None:
            return unavailable(name, UNITS[name], self.reason, self.device.name)
        taken = {"latency": _latency, "ram": _ram, "flash": _flash, "npu_operators": _npu_operators}
        return taken[name](self.compiled, self.device, self.npu)

    def seconds(self) -> dict[str, float]:
        """What each operator on the NPU takes, by its place; those that Vela merges count for the one it names."""
        if self.compiled is None:
            return {}
        clock, found = self.npu.clock or self.compiled.clock, Counter[str]()
        for layer in self.compiled.layers:
            found[layer.operator] += layer.cycles
        return {place: cycles / clock for place, cycles in found.items()}

    @property
    def fallbacks(self) -> list[Finding]:
        """One finding for each operator that the NPU does not run."""
        placements = self.compiled.fallbacks if self.compiled is not None else ()
        return [_finding(placement, self.device, self.npu) for placement in placements]


def ask(model: Model, device: Device, cache: Cache | None = None) -> Told:
    """Compile `model` for `device`, which must have `system.npu.vela`, or take the result from the cache.

    Raises:
        InputError: the profile names settings that Vela does not know or that do not go together; it is named.
    """
    npu, to = device.system.npu, vela_compiler.settings(device)
    assert npu is not None, "only asked for devices with an NPU"
    assert to is not None, "only asked for devices with `system.npu.vela`"
    if reason := vela_compiler.missing():
        return Told(device, npu, None, reason)
    try:
        made = vela_compiler.compiled(model, to, cache)
    except RefusedError as error:
        finding = Finding(
            rule="vela",
            place=model.path.name,
            observed=str(error),
            suggestion="it cannot be deployed there with this version; try another, or replace the operators it lacks",
        )
        return Told(device, npu, None, str(error), finding)
    except InputError as error:
        raise InputError(f"device '{device.name}': {error}") from None
    return Told(device, npu, made.result, note=made.note)


def _latency(compiled: Compiled, device: Device, npu: Npu) -> Metric:
    """Seconds = cycles / clock + invoke. The clock is the profile's, else that of Vela's system configuration."""
    if reason := _no_time(compiled, device):
        return unavailable("latency", Dimension.SECONDS, reason, device.name)
    clock = npu.clock or compiled.clock
    invoke = npu.vela.invoke if npu.vela is not None else 0.0
    return Metric(
        name="latency",
        value=compiled.cycles / clock + invoke,
        unit=Dimension.SECONDS,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=_how(compiled, device, clock, invoke),
        details={
            "cycles": compiled.cycles,
            "npu_cycles": compiled.npu_cycles,
            "clock": clock,
            "invoke": invoke,
            "fallbacks": ", ".join(placement.place for placement in compiled.fallbacks),
            **{f"{memory.name} cycles": memory.cycles for memory in compiled.memories if memory.traffic},
            "version": compiled.version,
        },
    )


def _no_time(compiled: Compiled, device: Device) -> str:
    if compiled.subgraphs > 1:
        return (
            f"the model has {compiled.subgraphs} subgraphs (loops or branches): Vela counts the cycles of the last "
            "alone, and how often a loop runs is not in the file; unroll the loop"
        )
    if len(compiled.fallbacks) == len(compiled.placements):
        return f"no operator of the model runs on the NPU, and nothing here times the {device.system.core}"
    return ""


def _how(compiled: Compiled, device: Device, clock: float, invoke: float) -> str:
    parts = [f"{compiled.cycles:,} cycles at {units.show(clock, Dimension.FREQUENCY)} by {_by(compiled)}"]
    if clock != compiled.clock:
        parts.append(f"whose memories are modelled for {units.show(compiled.clock, Dimension.FREQUENCY)}")
    parts.append(f"plus {units.show(invoke, Dimension.SECONDS)} to invoke" if invoke else "the invocation not counted")
    if compiled.fallbacks:
        parts.append(f"NOT in it: the time of {_named(compiled.fallbacks)} on the {device.system.core}")
    return "; ".join(parts)


def _by(compiled: Compiled) -> str:
    return f"the cycle model of Vela {compiled.version} ({compiled.settings.text()})"


def _named(placements: tuple[Placement, ...]) -> str:
    more = f" and {len(placements) - SHOWN} more" if len(placements) > SHOWN else ""
    return ", ".join(placement.place for placement in placements[:SHOWN]) + more


def _ram(compiled: Compiled, device: Device, npu: Npu) -> Metric:
    """Bytes of SRAM and DRAM at the peak. What Vela keeps in DRAM holds the weights too."""
    if compiled.subgraphs > 1:
        reason = f"the model has {compiled.subgraphs} subgraphs, and Vela tells the memory of the last alone"
        return unavailable("ram", Dimension.BYTES, reason, device.name)
    if len(compiled.fallbacks) == len(compiled.placements):
        reason = f"no operator of the model runs on {npu.name}: Vela places no tensor of it"
        return unavailable("ram", Dimension.BYTES, reason, device.name)
    sram, dram = compiled.used("SRAM"), compiled.used("DRAM")
    where = f" ({units.show(sram, Dimension.BYTES)} SRAM, {units.show(dram, Dimension.BYTES)} DRAM)" if dram else ""
    weights = "; the weights lie in DRAM and are counted" if dram else "; the weights stay in flash"
    return Metric(
        name="ram",
        value=sram + dram,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=f"memory at the peak{where} as Vela {compiled.version} places tensors{weights}; the runtime's own "
        "structures are not in it",
        details={"sram": sram, "dram": dram, "version": compiled.version},
    )


def _flash(compiled: Compiled, device: Device, npu: Npu) -> Metric:
    how = f"bytes of the .tflite that Vela {compiled.version} compiles for {compiled.settings.accelerator}"
    return Metric(
        name="flash",
        value=compiled.size,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=f"{how}; the runtime's own code is not in it",
        details={
            "weights": compiled.encoded_weights,
            "weights_before": compiled.original_weights,
            "version": compiled.version,
        },
    )


def _npu_operators(compiled: Compiled, device: Device, npu: Npu) -> Metric:
    """The share of the model's operators that run on the NPU, those that Vela folds into others among them."""
    of, left = len(compiled.placements), compiled.fallbacks
    if not of:
        return unavailable("npu_operators", Dimension.FRACTION, "the model has no operators", device.name)
    how = f"{of - len(left)} of {of} operators, as Vela {compiled.version} compiles the model"
    how += f"; on the {device.system.core}: {_named(left)}" if left else ""
    return exact("npu_operators", (of - len(left)) / of, Dimension.FRACTION, how, device.name)


def _finding(placement: Placement, device: Device, npu: Npu) -> Finding:
    runs = f"it runs on the {device.system.core}"
    if device.operators is not None and placement.operator not in (*device.operators, *device.custom_operators):
        runs = f"and {device.runtime.name} has no kernel for it on the {device.system.core}: the model does not run"
    return Finding(
        rule="npu-fallback",
        place=placement.place,
        observed=f"{device.name}: Vela leaves it to the core: {placement.reason}; {runs}",
        suggestion=_suggestion(placement, npu),
    )


def _suggestion(placement: Placement, npu: Npu) -> str:
    if "Float32" in placement.reason or placement.operator == "DEQUANTIZE":
        return "convert to full-integer int8, inputs and outputs included"
    if "Unsupported opType" in placement.reason:
        return f"replace the layer it comes from by one whose operators {npu.name} takes"
    return f"change what the reason names; the limits of {npu.name}: vela --supported-ops-report"
