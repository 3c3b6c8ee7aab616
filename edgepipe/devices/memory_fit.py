"""Whether a model fits the memory of a device: it does, it does not, or nothing here can tell."""

from edgepipe.core import units
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Judgement, Metric
from edgepipe.core.units import Dimension
from edgepipe.devices import estimate_limits
from edgepipe.devices.device_profile import Device
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model

COPY_FACTOR = 4  # an int8 tensor unpacked to float32 takes four times its bytes
MOVED_BATCH_FACTOR = 64  # a batch that an operator moved multiplies sizes by its blocks, 8 x 8 at most in practice
SMALL_RUNTIME_CODE = 128 * 1024  # an interpreter with few kernels, and a small application, may need this much flash
INTERPRETERS = ("tflite-micro", "vela")  # runtimes whose code is in the same flash as the model
COUNTED_WITHOUT_CODE = ("file", "vela")  # methods of `flash` that count the model alone
FIX = "make the model smaller: fewer filters, a smaller input, pruned channels"


def memory_findings(device: Device, metrics: list[Metric], model: Model) -> list[Finding]:
    """`fits-ram` and `fits-flash` of `device`: broken, or unknown for want of a number or of a narrow interval."""
    limit_by_metric = {"ram": device.system.memory.ram, "flash": _flash_for_model(device)}
    findings = [
        _fit_finding(device, metric, limit, model)
        for metric in metrics
        if metric.device == device.name and (limit := limit_by_metric.get(metric.name))
    ]
    return [finding for finding in findings if finding is not None]


def _flash_for_model(device: Device) -> int | None:
    """The flash less the runtime's own code, if the profile states that and the metric does not hold it."""
    flash, code = device.system.memory.flash, device.runtime.code
    if flash is None or code is None or device.flash.by not in COUNTED_WITHOUT_CODE:
        return flash
    return max(flash - code, 1)  # a limit of 0 would be none


def _fit_finding(device: Device, metric: Metric, limit: int, model: Model) -> Finding | None:
    if metric.value is None:
        return _unknown_finding(device, metric, limit, model)
    low, high = metric.interval or (metric.value, metric.value)
    if high <= limit:
        return _uncounted_code_finding(device, metric, limit - high)
    limit_text = units.show(limit, Dimension.BYTES)
    peak_text = _describe_peak(model) if metric.name == "ram" else ""
    return Finding(
        rule=f"fits-{metric.name}",
        place=device.name,
        observed=f"{metric.text()} of {metric.name} needed, the device has {limit_text}{_code_text(device, metric)}"
        f"{peak_text}",
        suggestion=_fix(device, metric, limit),
        judgement=Judgement.NOT_MET if low > limit else Judgement.UNKNOWN,
    )


def _fix(device: Device, metric: Metric, limit: int) -> str:
    low = metric.interval[0] if metric.interval else metric.value or 0
    if metric.name == "flash" and device.flash.by == "program" and low <= limit:
        return f"state the size of the runtime's code, from the linker's map, as `runtime.code`; or {FIX}"
    return FIX


def _code_text(device: Device, metric: Metric) -> str:
    if metric.name != "flash" or device.system.memory.flash == _flash_for_model(device):
        return ""
    return f" besides {units.show(device.runtime.code or 0, Dimension.BYTES)} of the runtime's code"


def _uncounted_code_finding(device: Device, metric: Metric, free_bytes: float) -> Finding | None:
    """The model fits, but the code that runs it has to fit as well and nobody counted it."""
    is_counted = device.flash.by not in COUNTED_WITHOUT_CODE or device.runtime.code is not None
    has_room = is_counted or device.runtime.name not in INTERPRETERS or free_bytes >= SMALL_RUNTIME_CODE
    if metric.name != "flash" or has_room:
        return None
    free_text = units.show(free_bytes, Dimension.BYTES)
    return Finding(
        rule="fits-flash",
        place=device.name,
        observed=f"{metric.text()} of flash needed for the model, which leaves {free_text} for the runtime's code",
        suggestion="state the size of that code as `runtime.code`, or take flash `by: program`; or " + FIX,
        judgement=Judgement.UNKNOWN,
    )


def _unknown_finding(device: Device, metric: Metric, limit: int, model: Model) -> Finding | None:
    """None where everything in the file fits many times over, as on a system with gigabytes."""
    whole_bytes = COPY_FACTOR * sum(tensor.bytes for tensor in model.tensors)
    if model.open_size_reason:
        whole_bytes *= MOVED_BATCH_FACTOR
    if whole_bytes <= limit and not estimate_limits.has_open_input(model):
        return None
    return Finding(
        rule=f"fits-{metric.name}",
        place=device.name,
        observed=f"the device has {units.show(limit, Dimension.BYTES)}, and the {metric.name} needed is unknown: "
        f"{metric.how}",
        suggestion="measure it on the device",
        judgement=Judgement.UNKNOWN,
    )


def _describe_peak(model: Model) -> str:
    try:
        arena_plan = plan_arena(model)
    except InputError as error:
        return f"; the peak cannot be located: {error}"
    peak_location = arena_plan.peak_operator.location if arena_plan.peak_operator else "the inputs"
    live_bytes_text = units.show(arena_plan.naive_peak_bytes, Dimension.BYTES)
    return f"; the peak is at {peak_location}, with {live_bytes_text} of live tensors"
