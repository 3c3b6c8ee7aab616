"""The precisions that a device supports in a mixed-precision model."""

from edgepipe.compress.quantizer.layerwise_quantizer import LayerPrecision
from edgepipe.devices.device_profile import Device

# float16 weights are computed with in float32
COMPUTE_DTYPES: dict[LayerPrecision, str] = {"int16": "int16", "float16": "float32"}


def allowed_precisions(device: Device | None) -> tuple[list[LayerPrecision], list[str]]:
    """The precisions that layers may be promoted to, cheapest first, and why not to the others. No device: all."""
    reason_by_precision = {
        precision: "" if device is None else _rejection_reason(device, precision) for precision in COMPUTE_DTYPES
    }
    return [precision for precision, reason in reason_by_precision.items() if not reason], [
        reason for reason in reason_by_precision.values() if reason
    ]


def _rejection_reason(device: Device, precision: LayerPrecision) -> str:
    """Why `device` cannot run layers of this precision; empty if it can."""
    dtype, npu = COMPUTE_DTYPES[precision], device.system.npu
    if dtype == "float32" and device.integer_only:
        return f"no layer is promoted to {precision}: {device.name} is for integers only"
    if dtype not in device.dtypes:
        return f"no layer is promoted to {precision}: {device.runtime.name} on {device.name} does not take {dtype}"
    if npu is not None and dtype not in npu.dtypes:
        return f"no layer is promoted to {precision}: {npu.name} of {device.name} does not compute on {dtype}"
    return ""
