"""What a device lets a mix of types be made of."""

from edgepipe.compress.quantizer.layerwise_quantizer import Level
from edgepipe.devices.device_profile import Device

DTYPES: dict[Level, str] = {"int16": "int16", "float16": "float32"}  # float16 weights are computed with in float32


def levels(device: Device | None) -> tuple[list[Level], list[str]]:
    """What layers may be promoted to, the cheapest first; and why not to the others. Without a device, to anything."""
    reasons = {level: "" if device is None else _against(device, level) for level in DTYPES}
    return [level for level, reason in reasons.items() if not reason], [reason for reason in reasons.values() if reason]


def _against(device: Device, level: Level) -> str:
    """Why `device` should not be given layers of this level; empty if nothing speaks against it."""
    dtype, npu = DTYPES[level], device.system.npu
    if dtype == "float32" and device.integer_only:
        return f"no layer is promoted to {level}: {device.name} is for integers only"
    if dtype not in device.dtypes:
        return f"no layer is promoted to {level}: {device.runtime.name} on {device.name} does not take {dtype}"
    if npu is not None and dtype not in npu.dtypes:
        return f"no layer is promoted to {level}: {npu.name} of {device.name} does not compute on {dtype}"
    return ""
