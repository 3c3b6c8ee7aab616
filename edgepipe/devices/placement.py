"""Where each operator of a model runs on a device - NPU, GPU, core, nowhere - why, and what would change it.

Static: names, types and the rules of the profile. What a compiler decides beyond these (its own limits on shapes, say)
is its to report.
"""

from dataclasses import dataclass
from enum import StrEnum

from edgepipe.core import units
from edgepipe.core.units import Dimension
from edgepipe.devices.accelerator_rules import RULES
from edgepipe.devices.device_profile import Device, Npu, Operators
from edgepipe.tflite.model import FLOATS, Model, Operator, Tensor

SHOWN = 3  # names of tensors that a reason lists; more are counted
NPU_CODES = ("ethos-u", "edgetpu-custom-op")  # what Vela and the Edge TPU compiler put in place of what they compiled
WASTE = 0.25  # share of an operator's MACs that padded channels may take before it is worth a word


class Where(StrEnum):
    """What computes an operator."""

    NPU = "NPU"
    GPU = "GPU"
    CPU = "CPU"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Placed:
    """One operator, where it runs, why not elsewhere, and the change that would bring it there."""

    operator: str
    where: Where
    reason: str = ""
    suggestion: str = ""
    rule: str = ""  # what it breaks: operator, dtype, integer-only, npu-operator, npu-dtype, behind, or one of RULES


@dataclass(frozen=True)
class Broken:
    """A rule that an operator breaks; `gpu`: a GPU then computes it, not the core."""

    rule: str
    reason: str
    suggestion: str
    gpu: bool = False


def placement(device: Device, model: Model) -> tuple[Placed, ...]:
    """Where each operator of `model` runs on `device`, in the order of the operators."""
    on_core: set[tuple[int, int]] = set()  # tensors that the core computes, for a compiler that makes one partition
    placed = []
    for operator in model.operators:
        found = _place(device, model, operator, on_core)
        if found.where is not Where.NPU:
            on_core |= {(t.subgraph, t.index) for t in operator.outputs if t is not None}
        placed.append(found)
    return tuple(placed)


def _place(device: Device, model: Model, operator: Operator, on_core: set[tuple[int, int]]) -> Placed:
    npu = device.system.npu
    core = _worst(core_problems(device, model, operator))
    if npu is None:
        return _on_core(operator, core)
    broken = _npu(device, npu, model, operator) or _behind(npu, operator, on_core)
    if broken is None:
        reason, suggestion = _padding(npu, operator)
        return Placed(operator.place, Where.NPU, reason, suggestion)
    if broken.gpu:
        return Placed(operator.place, Where.GPU, broken.reason, broken.suggestion, broken.rule)
    if core is not None and core.rule != "integer-only":
        return Placed(operator.place, Where.UNSUPPORTED, core.reason, core.suggestion, core.rule)
    return Placed(operator.place, Where.CPU, broken.reason, broken.suggestion, broken.rule)


def _on_core(operator: Operator, broken: Broken | None) -> Placed:
    if broken is None:
        return Placed(operator.place, Where.CPU)
    where = Where.CPU if broken.rule == "integer-only" else Where.UNSUPPORTED  # it would run, in slow software floats
    return Placed(operator.place, where, broken.reason, broken.suggestion, broken.rule)


def _worst(found: list[Broken]) -> Broken | None:
    """The first that keeps an operator from running at all; a float where only integers should be would still run."""
    return next((broken for broken in found if broken.rule != "integer-only"), next(iter(found), None))


def core_problems(device: Device, model: Model, operator: Operator) -> list[Broken]:
    """Everything that keeps an operator from running in the device's runtime."""
    runtime = f"{device.runtime.name} {device.runtime.version}"
    return [
        *_unknown(device, runtime, operator),
        *_types(device, operator),
        *_floats(device, operator),
        *_ruled(device.rules, runtime, model, operator),
    ]


def _unknown(device: Device, runtime: str, operator: Operator) -> list[Broken]:
    npu = device.system.npu
    if operator.custom:
        known = operator.name in device.custom_operators
        suggestion = "a custom operator needs a runtime built with it; replace the layer it comes from"
    else:
        known = _listed(operator, device.operators) or (npu is not None and _listed(operator, npu.operators))
        suggestion = replacement(operator, device.operators)
    observed = f"{runtime} on {device.name} has no operator {operator.name}"
    return [] if known else [Broken("operator", observed, suggestion)]


def _types(device: Device, operator: Operator) -> list[Broken]:
    wrong = [tensor for tensor in operator.tensors if tensor.dtype not in device.dtypes]
    if device.integer_only:
        wrong = [tensor for tensor in wrong if tensor.dtype not in FLOATS]  # the rule integer-only names these
    return [Broken("dtype", _list(wrong), f"{device.name} takes {', '.join(device.dtypes)}")] if wrong else []


def _floats(device: Device, operator: Operator) -> list[Broken]:
    wrong = [tensor for tensor in operator.tensors if tensor.dtype in FLOATS] if device.integer_only else []
    suggestion = "convert to full-integer int8, inputs and outputs included"
    return [Broken("integer-only", _list(wrong), suggestion)] if wrong else []


def _ruled(names: tuple[str, ...], owner: str, model: Model, operator: Operator) -> list[Broken]:
    seen = ((name, RULES[name], RULES[name].seen(model, operator)) for name in names)
    return [
        Broken(name, f"{owner} demands that {rule.text}; {what}", rule.suggestion, rule.gpu)
        for name, rule, what in seen
        if what
    ]


def _npu(device: Device, npu: Npu, model: Model, operator: Operator) -> Broken | None:
    """What keeps an operator from running on the accelerator."""
    core = device.system.core
    if operator.custom and operator.name in device.custom_operators and operator.name in NPU_CODES:
        return None
    if operator.custom or not _listed(operator, npu.operators):
        suggestion = replacement(operator, npu.operators)
        observed = f"{npu.name} does not take {operator.name}: it runs on the {core}"
        return Broken("npu-operator", observed, suggestion)
    wrong = [tensor for tensor in operator.tensors if not tensor.constant and tensor.dtype not in npu.dtypes]
    if wrong:
        observed = f"{npu.name} does not compute on {_list(wrong)}: it runs on the {core}"
        return Broken("npu-dtype", observed, _other_type(npu, wrong))
    return next(iter(_ruled(npu.rules, npu.name, model, operator)), None)


def _other_type(npu: Npu, wrong: list[Tensor]) -> str:
    floating = any(tensor.dtype in FLOATS for tensor in wrong)
    return f"{npu.name} computes on {', '.join(npu.dtypes)}" + (
        "; convert to full-integer int8, inputs and outputs included" if floating else ""
    )


def _behind(npu: Npu, operator: Operator, on_core: set[tuple[int, int]]) -> Broken | None:
    if npu.partitions != "one":
        return None
    late = [t for t in operator.inputs if t is not None and (t.subgraph, t.index) in on_core]
    reason = f"{npu.name} takes one part of a model, from its inputs on; '{{}}' is computed on the core before"
    return Broken("behind", reason.format(late[0].name), "change the operators before it") if late else None


def _padding(npu: Npu, operator: Operator) -> tuple[str, str]:
    """A word on channels that fill no whole block, where a good part of the work is for nothing."""
    output = next((tensor for tensor in operator.outputs if tensor is not None), None)
    if npu.channels is None or output is None or not output.shape or not operator.macs:
        return "", ""
    channels, block = output.shape[-1], npu.channels
    filled = -(-channels // block) * block
    waste = 1 - channels / filled
    if waste < WASTE:
        return "", ""
    share = units.show(waste, Dimension.FRACTION)
    reason = f"{npu.name} computes {block} channels at a time: of {filled}, {share} are padding"
    return reason, f"{filled} channels cost the same as {channels}"


# By what an operator can be replaced with little loss, the nearest first. Hard-swish by ReLU6: MobileNet-EdgeTPU,
# Google AI blog, 13 November 2019. The others approximate or take apart the same function.
INSTEAD: dict[str, tuple[tuple[str, str], ...]] = {
    "HARD_SWISH": (("RELU6", "use ReLU6 in place of hard-swish"), ("RELU", "use ReLU in place of hard-swish")),
    "ELU": (("RELU", "use ReLU in place of ELU"),),
    "GELU": (("RELU", "use ReLU in place of GELU"),),
    "LEAKY_RELU": (("PRELU", "use PReLU in place of leaky ReLU"), ("RELU", "use ReLU in place of leaky ReLU")),
    "PRELU": (("LEAKY_RELU", "use leaky ReLU in place of PReLU"), ("RELU", "use ReLU in place of PReLU")),
    "LOGISTIC": (("RELU6", "use hard-sigmoid, relu6(x + 3) / 6, in place of sigmoid"),),
    "TANH": (("RELU_N1_TO_1", "clip to -1 .. 1 in place of tanh"),),
    "DIV": (("MUL", "multiply by the reciprocal where the divisor is a constant"),),
    "SQUARE": (("MUL", "multiply the tensor by itself"),),
    "SQUARED_DIFFERENCE": (("MUL", "subtract, then multiply the result by itself"),),
    "MEAN": (("AVERAGE_POOL_2D", "average-pool over height and width in place of the mean"),),
    "BATCH_MATMUL": (("FULLY_CONNECTED", "use a dense layer, where one factor is a constant"),),
    "CONV_3D": (("CONV_2D", "split the 3D convolution into 2D ones"),),
    "TRANSPOSE_CONV": (("RESIZE_NEAREST_NEIGHBOR", "resize, then convolve, in place of the transposed convolution"),),
    "RESIZE_BILINEAR": (("RESIZE_NEAREST_NEIGHBOR", "resize to the nearest neighbour"),),
    "SPLIT_V": (("SPLIT", "split into equal parts"), ("STRIDED_SLICE", "slice in place of the split")),
    "UNPACK": (("STRIDED_SLICE", "slice in place of the unstacking"),),
    "PADV2": (("PAD", "pad with zeros"),),
    "MIRROR_PAD": (("PAD", "pad with zeros"),),
    "SHAPE": (("RESHAPE", "avoid dynamic shapes: give the model's input a fixed shape, so that SHAPE is folded"),),
    "TILE": (("CONCATENATION", "concatenate the tensor with itself"),),
    "TRANSPOSE": (("RESHAPE", "keep the layout (batch, height, width, channels) throughout"),),
    "ARG_MAX": (("SOFTMAX", "leave the arg-max to the application"),),
    "SOFTMAX": (("RESHAPE", "leave the softmax to the application: the order of the classes stays the same"),),
    "DEQUANTIZE": (("QUANTIZE", "convert with int8 outputs: the application scales them"),),
    "QUANTIZE": (("RESHAPE", "convert with int8 inputs, quantized where the data comes from"),),
}


def replacement(operator: Operator, known: Operators) -> str:
    """What to do about an operator that is not among `known`."""
    for name, suggestion in INSTEAD.get(operator.name, ()):
        if known is None or name in known:
            return suggestion
    return "replace the layer it comes from by one whose operators the device lists"


def _listed(operator: Operator, names: tuple[str, ...] | None) -> bool:
    return not operator.custom and (names is None or operator.name in names)


def _list(tensors: list[Tensor]) -> str:
    shown = ", ".join(f"'{tensor.name}' is {tensor.dtype}" for tensor in tensors[:SHOWN])
    return shown + (f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else "")
