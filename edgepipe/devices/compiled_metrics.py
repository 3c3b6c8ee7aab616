"""The metrics of a .tflite that a compiler has been through, as far as the file itself holds them."""

from edgepipe.core import units
from edgepipe.core.metric import Evidence, Metric, exact_metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Device
from edgepipe.tflite.compiled_file import CompiledFile
from edgepipe.tflite.model import Model

MAX_LISTED_OPERATORS = 8  # operators on the core that a reason names


def compiled_metric(name: str, compiled_file: CompiledFile, model: Model, device: Device) -> Metric:
    """`latency`, `ram`, `flash` or `npu_operators` of a file that is compiled for the accelerator of `device`."""
    if name == "flash":
        explanation = f"bytes of the .tflite, {compiled_file.text()}; the runtime's own code is not in it"
        return exact_metric("flash", model.bytes, Dimension.BYTES, explanation, device.name)
    if name == "ram":
        return _ram_metric(compiled_file, device)
    if name == "npu_operators":
        return _npu_share_metric(compiled_file, device)
    reason = f"the file is {compiled_file.text()} and holds no times; give the .tflite before that"
    return unavailable_metric(name, Dimension.SECONDS, reason, device.name)


def _ram_metric(compiled_file: CompiledFile, device: Device) -> Metric:
    """Scratch memory; where Vela has two, the slower is DRAM and holds the weights as well (Dedicated_Sram)."""
    if compiled_file.scratch_bytes is None:
        reason = f"the file is {compiled_file.text()}, and its program is in a format that is not published"
        return unavailable_metric("ram", Dimension.BYTES, reason, device.name)
    fast_bytes, slow_bytes = compiled_file.fast_scratch_bytes, compiled_file.scratch_bytes
    details = {"sram": slow_bytes}
    explanation = "scratch memory as Vela placed tensors, read from the file"
    if fast_bytes:
        details = {"sram": fast_bytes, "dram": slow_bytes + compiled_file.weight_bytes}
        dram_text = units.show(details["dram"], Dimension.BYTES)
        explanation += f" ({units.show(fast_bytes, Dimension.BYTES)} SRAM, {dram_text} DRAM with the weights)"
    return Metric(
        name="ram",
        value=sum(details.values()),
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device.name,
        how=f"{explanation}; without the runtime's own structures",
        details=details,
    )


def _npu_share_metric(compiled_file: CompiledFile, device: Device) -> Metric:
    """All of them if none is left; else the file does not say of how many."""
    if not compiled_file.cpu_operators:
        explanation = f"the file is {compiled_file.text()}, and no other operator is in it"
        return exact_metric("npu_operators", 1.0, Dimension.FRACTION, explanation, device.name)
    labels = [operator.location for operator in compiled_file.cpu_operators]
    names_text = ", ".join(labels[:MAX_LISTED_OPERATORS])
    names_text += f" and {len(labels) - MAX_LISTED_OPERATORS} more" if len(labels) > MAX_LISTED_OPERATORS else ""
    reason = (
        f"the file is {compiled_file.text()}: on the {device.system.core} run {names_text}; how many operators were "
        "compiled is not in it, give the .tflite before that"
    )
    return unavailable_metric("npu_operators", Dimension.FRACTION, reason, device.name)
