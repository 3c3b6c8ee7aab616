"""What a device lets a mix of types be made of."""

from edgepipe.compress.quantizer.layerwise_quantizer import LayerPrecision
from edgepipe.devices.device_profile import Device

COMPUTE_DTYPES: dict[LayerPrecision, str] = {
    "int16": "int16",
    "float16": "float32",
}  # float16 weights are computed with in float32


def allowed_precisions(device: Device | None) -> tuple[list[LayerPrecision], list[str]]:
    """What layers may be promoted to, the cheapest first; and why not to the others. Without a device, to anything."""
    reasons = {
        precision: "" if device is None else _rejection_reason(device, precision) for precision in COMPUTE_DTYPES
    }
    return [precision for precision, reason in reasons.items() if not reason], [
        reason for reason in reasons.values() if reason
    ]


def _rejection_reason(device: Device, precision: LayerPrecision) -> str:
    """Why `device` should not be given layers of this level; empty if nothing speaks against it."""
    dtype, npu = COMPUTE_DTYPES[precision], device.system.npu
    if dtype == "float32" and device.integer_only:
        return f"no layer is promoted to {precision}: {device.name} is for integers only"
    if dtype not in device.dtypes:
        return f"no layer is promoted to {precision}: {device.runtime.name} on {device.name} does not take {dtype}"
    if npu is not None and dtype not in npu.dtypes:
        return f"no layer is promoted to {precision}: {npu.name} of {device.name} does not compute on {dtype}"
    return ""
