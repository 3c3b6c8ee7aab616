"""Models that an estimate does not cover: what is counted from the file would be a number of another model."""

from edgepipe.devices.device_profile import MetricMethod
from edgepipe.tflite.model import Model

FILE_METHODS = ("file", "weights", "program")  # count what is in the file, whatever the sizes of activations
LATENCY_ESTIMATES = ("fit", "transfer", "calibration")
_COUNTED_BRANCHES = ("IF",)  # both branches count, which is more than one run of it takes


def uncovered_reason(method: MetricMethod | None, model: Model) -> str:
    """Why `method` gives no number for `model`, with the remedy; empty if it does."""
    if method in LATENCY_ESTIMATES and (names := _list_uncounted_operators(model)):
        return f"an estimate does not cover {', '.join(names)}, whose work is not in the file; measure it on the device"
    if method is None or method in FILE_METHODS or not model.open_size_reason:
        return ""
    if method == "host" and not has_open_input(model):
        return ""  # LiteRT computes the sizes when it runs
    return describe_open_sizes(model)


def has_open_input(model: Model) -> bool:
    """Whether a size of an input besides the batch is open, so that any inference may have another."""
    return any(-1 in tensor.shape_signature[1:] for tensor in model.inputs)


def describe_open_sizes(model: Model) -> str:
    """Why the sizes in the file are not those of an inference, with the remedy."""
    return (
        f"the file does not hold all sizes: {model.open_size_reason}; convert the model with a batch of 1 and a fixed "
        "input shape"
    )


def _list_uncounted_operators(model: Model) -> list[str]:
    return [name for name in model.uncounted_operator_names if name not in _COUNTED_BRANCHES]
