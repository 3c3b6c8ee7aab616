"""Which operators and tensors of a model a device cannot run: each named, with the rule, what was seen, what to do.

The docstring of a rule is what the user reads about it.
"""

from collections.abc import Callable, Iterator

from edgepipe.devices.profile import Device
from edgepipe.metric import Finding
from edgepipe.tflite.model import FLOATS, Model, Operator, Tensor

SHOWN = 3  # names of tensors that a finding lists; more are counted


def check(device: Device, model: Model) -> list[Finding]:
    """What keeps `model` from running on `device`, in the order of the operators; empty if nothing does.

    Operators and types are held against the lists of the profile. Limits on shapes and parameters are the compiler's
    or the runtime's to find, and memory is the budget's.
    """
    found = (finding for operator in model.operators for rule in RULES.values() for finding in rule(device, operator))
    return list(found)


def operator_known(device: Device, operator: Operator) -> Iterator[Finding]:
    """Every operator has a kernel in the device's runtime, or runs on its accelerator."""
    if operator.custom:
        known = operator.name in device.custom_operators
        suggestion = "a custom operator needs a runtime built with it; replace the layer it comes from"
    else:
        known = _listed(operator, device.operators) or (
            device.system.npu is not None and _listed(operator, device.system.npu.operators)
        )
        suggestion = "replace the layer it comes from by one whose operators the device lists"
    if not known:
        runtime = f"{device.runtime.name} {device.runtime.version}"
        yield Finding(
            rule="operator",
            place=operator.place,
            observed=f"{runtime} on {device.name} has no operator {operator.name}",
            suggestion=suggestion,
        )


def dtype_known(device: Device, operator: Operator) -> Iterator[Finding]:
    """Every tensor has a type that the device's runtime takes."""
    wrong = [tensor for tensor in operator.tensors if tensor.dtype not in device.dtypes]
    if device.integer_only:
        wrong = [tensor for tensor in wrong if tensor.dtype not in FLOATS]  # the rule integer-only names these
    if wrong:
        yield Finding(
            rule="dtype",
            place=operator.place,
            observed=_list(wrong),
            suggestion=f"{device.name} takes {', '.join(device.dtypes)}",
        )


def integer_only(device: Device, operator: Operator) -> Iterator[Finding]:
    """On an integer-only device no tensor is floating point."""
    wrong = [tensor for tensor in operator.tensors if tensor.dtype in FLOATS] if device.integer_only else []
    if wrong:
        yield Finding(
            rule="integer-only",
            place=operator.place,
            observed=_list(wrong),
            suggestion="convert to full-integer int8, inputs and outputs included",
        )


def on_npu(device: Device, operator: Operator) -> Iterator[Finding]:
    """On a device with an accelerator every operator runs on it; what it does not take runs on the core, far slower."""
    npu = device.system.npu
    if npu is None or operator.custom:
        return
    wrong = [tensor for tensor in operator.tensors if not tensor.constant and tensor.dtype not in npu.dtypes]
    if not _listed(operator, npu.operators):
        observed = f"{npu.name} does not take {operator.name}: it runs on the {device.system.core}"
    elif wrong:
        observed = f"{npu.name} does not compute on {_list(wrong)}: it runs on the {device.system.core}"
    else:
        return
    yield Finding(
        rule="npu-fallback",
        place=operator.place,
        observed=observed,
        suggestion=f"{npu.name} computes on {', '.join(npu.dtypes)}; see its operators in the profile",
    )


RULES: dict[str, Callable[[Device, Operator], Iterator[Finding]]] = {
    "operator": operator_known,
    "dtype": dtype_known,
    "integer-only": integer_only,
    "npu-fallback": on_npu,
}


def _listed(operator: Operator, names: tuple[str, ...] | None) -> bool:
    return names is None or operator.name in names


def _list(tensors: list[Tensor]) -> str:
    shown = ", ".join(f"'{tensor.name}' is {tensor.dtype}" for tensor in tensors[:SHOWN])
    return shown + (f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else "")
