"""Where each operator of a model runs on a device - NPU, GPU, core or nowhere - why, and what would change it.

The check is static: operator names, types and the profile's rules. Further limits of a compiler, such as on shapes,
are for the compiler to report.
"""

from dataclasses import dataclass
from enum import StrEnum

from edgepipe.core import units
from edgepipe.core.units import Dimension
from edgepipe.devices.accelerator_rules import RULE_BY_NAME
from edgepipe.devices.device_profile import Device, Npu, OperatorNames
from edgepipe.tflite.integer_check import FLEX_PREFIX
from edgepipe.tflite.model import FLOAT_TYPES, Model, Operator, Tensor

MAX_LISTED_TENSORS = 3  # tensors that a reason names; the rest are counted
TARGET_BY_CUSTOM_CODE = {"ethos-u": "an Ethos-U, by Vela", "edgetpu-custom-op": "the Edge TPU"}  # what compilers emit
NOTABLE_WASTE = 0.25  # share of an operator's MACs spent on padded channels from which it is reported


class Processor(StrEnum):
    """What computes an operator."""

    NPU = "NPU"
    GPU = "GPU"
    CPU = "CPU"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class OperatorPlacement:
    """Where one operator runs, why not elsewhere, and the change that would move it."""

    operator_label: str
    runs_on: Processor
    reason: str = ""
    suggestion: str = ""
    rule_name: str = (
        ""  # the violated rule: operator, dtype, integer-only, npu-operator, npu-dtype, behind, or one of RULE_BY_NAME
    )


@dataclass(frozen=True)
class RuleViolation:
    """A rule that an operator violates; `gpu`: the operator then runs on the GPU instead of the core."""

    rule_name: str
    reason: str
    suggestion: str
    runs_on_gpu: bool = False


def place_operators(device: Device, model: Model) -> tuple[OperatorPlacement, ...]:
    """Where each operator of `model` runs on `device`, in the order of the operators."""
    cpu_tensor_keys: set[tuple[int, int]] = (
        set()
    )  # tensors computed on the core; matters to compilers with a single partition
    placements = []
    for operator in model.operators:
        placement = _place_operator(device, model, operator, cpu_tensor_keys)
        if placement.runs_on is not Processor.NPU:
            cpu_tensor_keys |= {(t.subgraph_index, t.index) for t in operator.outputs if t is not None}
        placements.append(placement)
    return tuple(placements)


def _place_operator(
    device: Device, model: Model, operator: Operator, cpu_tensor_keys: set[tuple[int, int]]
) -> OperatorPlacement:
    npu = device.system.npu
    core_violation = _worst_violation(core_violations(device, model, operator))
    if npu is None:
        return _place_on_core(operator, core_violation)
    npu_violation = _npu_violation(device, npu, model, operator) or _partition_violation(npu, operator, cpu_tensor_keys)
    if npu_violation is None:
        reason, suggestion = _describe_padding(npu, operator)
        return OperatorPlacement(operator.location, Processor.NPU, reason, suggestion)
    if npu_violation.runs_on_gpu:
        return OperatorPlacement(
            operator.location, Processor.GPU, npu_violation.reason, npu_violation.suggestion, npu_violation.rule_name
        )
    if core_violation is not None and core_violation.rule_name != "integer-only":
        return OperatorPlacement(
            operator.location,
            Processor.UNSUPPORTED,
            core_violation.reason,
            core_violation.suggestion,
            core_violation.rule_name,
        )
    return OperatorPlacement(
        operator.location, Processor.CPU, npu_violation.reason, npu_violation.suggestion, npu_violation.rule_name
    )


def _place_on_core(operator: Operator, violation: RuleViolation | None) -> OperatorPlacement:
    if violation is None:
        return OperatorPlacement(operator.location, Processor.CPU)
    # Floats would still run on an integer-only core, in slow software emulation.
    processor = Processor.CPU if violation.rule_name == "integer-only" else Processor.UNSUPPORTED
    return OperatorPlacement(operator.location, processor, violation.reason, violation.suggestion, violation.rule_name)


def _worst_violation(violations: list[RuleViolation]) -> RuleViolation | None:
    """The first that prevents the operator from running; `integer-only` comes last, because floats would still run."""
    return min(violations, key=lambda violation: violation.rule_name == "integer-only", default=None)


def core_violations(device: Device, model: Model, operator: Operator) -> list[RuleViolation]:
    """Everything that prevents an operator from running in the device's runtime."""
    runtime_text = f"{device.runtime.name} {device.runtime.version}"
    return [
        *_operator_violations(device, runtime_text, model, operator),
        *_dtype_violations(device, operator),
        *_float_violations(device, operator),
        *_rule_violations(device.rules, runtime_text, model, operator),
    ]


def _operator_violations(device: Device, runtime_text: str, model: Model, operator: Operator) -> list[RuleViolation]:
    npu = device.system.npu
    if operator.is_custom:
        is_supported = operator.name in device.custom_operators
        suggestion = _suggest_for_custom(operator)
    else:
        is_supported = _is_listed(operator, device.operators) or (
            npu is not None and _is_listed(operator, npu.operators)
        )
        suggestion = suggest_replacement(model, operator, device.operators)
    observation = f"{runtime_text} on {device.name} has no operator {operator.name}"
    return [] if is_supported else [RuleViolation("operator", observation, suggestion)]


def _suggest_for_custom(operator: Operator) -> str:
    """What to do about a custom operator that the runtime is not built with."""
    if target := TARGET_BY_CUSTOM_CODE.get(operator.name):
        return f"the file is compiled for {target}; give the .tflite that it was compiled from"
    listing = "list it under custom_operators of the device's profile if its runtime is built with it"
    if operator.name.startswith(FLEX_PREFIX):
        return f"a kernel of TensorFlow's, which the Flex delegate runs: replace the layer it comes from, or {listing}"
    return f"a custom operator needs a runtime built with it: replace the layer it comes from, or {listing}"


def _dtype_violations(device: Device, operator: Operator) -> list[RuleViolation]:
    unsupported_tensors = [tensor for tensor in operator.tensors if tensor.dtype not in device.dtypes]
    if device.integer_only:  # the rule integer-only reports the float tensors
        unsupported_tensors = [tensor for tensor in unsupported_tensors if tensor.dtype not in FLOAT_TYPES]
    if not unsupported_tensors:
        return []
    suggestion = f"{device.name} takes {', '.join(device.dtypes)}"
    return [RuleViolation("dtype", _describe_dtypes(unsupported_tensors), suggestion)]


def _float_violations(device: Device, operator: Operator) -> list[RuleViolation]:
    float_tensors = (
        [tensor for tensor in operator.tensors if tensor.dtype in FLOAT_TYPES] if device.integer_only else []
    )
    suggestion = "convert to full-integer int8, inputs and outputs included"
    return [RuleViolation("integer-only", _describe_dtypes(float_tensors), suggestion)] if float_tensors else []


def _rule_violations(
    rule_names: tuple[str, ...], owner_name: str, model: Model, operator: Operator
) -> list[RuleViolation]:
    rule_checks = (
        (name, RULE_BY_NAME[name], RULE_BY_NAME[name].describe_violation(model, operator)) for name in rule_names
    )
    return [
        RuleViolation(
            name, f"{owner_name} requires that {rule.text}; {violation_text}", rule.suggestion, rule.runs_on_gpu
        )
        for name, rule, violation_text in rule_checks
        if violation_text
    ]


def _npu_violation(device: Device, npu: Npu, model: Model, operator: Operator) -> RuleViolation | None:
    """What prevents an operator from running on the accelerator."""
    core_name = device.system.core
    if operator.is_custom and operator.name in device.custom_operators and operator.name in TARGET_BY_CUSTOM_CODE:
        return None
    if operator.is_custom or not _is_listed(operator, npu.operators):
        suggestion = suggest_replacement(model, operator, npu.operators)
        observation = f"{npu.name} does not support {operator.name}: it runs on the {core_name}"
        return RuleViolation("npu-operator", observation, suggestion)
    unsupported_tensors = [
        tensor for tensor in operator.tensors if not tensor.is_constant and tensor.dtype not in npu.dtypes
    ]
    if unsupported_tensors:
        observation = (
            f"{npu.name} does not compute on {_describe_dtypes(unsupported_tensors)}: it runs on the {core_name}"
        )
        return RuleViolation("npu-dtype", observation, _suggest_dtype(npu, unsupported_tensors))
    return next(iter(_rule_violations(npu.rules, npu.name, model, operator)), None)


def _suggest_dtype(npu: Npu, tensors: list[Tensor]) -> str:
    has_float = any(tensor.dtype in FLOAT_TYPES for tensor in tensors)
    return f"{npu.name} computes on {', '.join(npu.dtypes)}" + (
        "; convert to full-integer int8, inputs and outputs included" if has_float else ""
    )


def _partition_violation(npu: Npu, operator: Operator, cpu_tensor_keys: set[tuple[int, int]]) -> RuleViolation | None:
    if npu.partitions != "one":
        return None
    core_input = next(
        (t for t in operator.inputs if t is not None and (t.subgraph_index, t.index) in cpu_tensor_keys), None
    )
    if core_input is None:
        return None
    reason = f"{npu.name} runs a single partition, starting at the inputs; '{core_input.name}' is computed on the core"
    return RuleViolation("behind", reason, "change the operators upstream of it")


def _describe_padding(npu: Npu, operator: Operator) -> tuple[str, str]:
    """Reason and suggestion if a notable share of the work is padding up to whole channel blocks; else empty."""
    output = next((tensor for tensor in operator.outputs if tensor is not None), None)
    if npu.channels is None or output is None or not output.shape or not operator.macs:
        return "", ""
    channels, block_channels = output.shape[-1], npu.channels
    padded_channels = -(-channels // block_channels) * block_channels
    wasted_share = 1 - channels / padded_channels
    if wasted_share < NOTABLE_WASTE:
        return "", ""
    waste_text = units.show(wasted_share, Dimension.FRACTION)
    reason = f"{npu.name} computes {block_channels} channels at a time: of {padded_channels}, {waste_text} are padding"
    return reason, f"{padded_channels} channels cost the same as {channels}"


# Replacements that cost little accuracy, closest first. Hard-swish by ReLU6: MobileNet-EdgeTPU, Google AI blog,
# 13 November 2019. The others approximate or decompose the same function.
REPLACEMENTS_BY_OPERATOR: dict[str, tuple[tuple[str, str], ...]] = {
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
    "SHAPE": (
        ("RESHAPE", "avoid dynamic shapes: give the model's input a fixed shape, so that SHAPE is constant-folded"),
    ),
    "TILE": (("CONCATENATION", "concatenate the tensor with itself"),),
    "TRANSPOSE": (("RESHAPE", "keep the layout (batch, height, width, channels) throughout"),),
    "ARG_MAX": (("SOFTMAX", "leave the arg-max to the application"),),
    "SOFTMAX": (("RESHAPE", "leave the softmax to the application: the order of the classes stays the same"),),
    "SVDF": (("DEPTHWISE_CONV_2D", "use a depthwise and a dense layer over a window of frames in place of SVDF"),),
}


def suggest_replacement(model: Model, operator: Operator, supported_names: OperatorNames) -> str:
    """What to do about an operator that is not in `supported_names`."""
    if suggestion := _suggest_by_place(model, operator):
        return suggestion
    for name, suggestion in REPLACEMENTS_BY_OPERATOR.get(operator.name, ()):
        if supported_names is None or name in supported_names:
            return suggestion
    return "replace its layer by one whose operators the device supports"


def _suggest_by_place(model: Model, operator: Operator) -> str:
    """What to do about an operator that stands for something else, depending on where it stands; empty for others."""
    if operator.name == "WHILE":
        return (
            "it is a recurrent layer or a loop: give the input a fixed length and unroll it (unroll=True in Keras; "
            "`edgepipe convert` unrolls by itself)"
        )
    if operator.name == "DEQUANTIZE":
        if any(tensor in model.outputs for tensor in operator.outputs):
            return "convert with int8 outputs: the application scales them"
        return f"it leads to a part in float: quantize {_list_readers(model, operator)}, or replace that layer"
    if operator.name == "QUANTIZE":
        if any(tensor in model.inputs for tensor in operator.inputs):
            return "convert with int8 inputs, quantized where the data comes from"
        return "give the layers before and after it the same scale, or quantize the part in float before it"
    return ""


def _list_readers(model: Model, operator: Operator) -> str:
    readers = [reader.location for reader in model.operators if set(reader.inputs) & set(operator.outputs)]
    return " and ".join(readers[:2]) or "what reads it"


def _is_listed(operator: Operator, operator_names: tuple[str, ...] | None) -> bool:
    return not operator.is_custom and (operator_names is None or operator.name in operator_names)


def _describe_dtypes(tensors: list[Tensor]) -> str:
    text = ", ".join(f"'{tensor.name}' is {tensor.dtype}" for tensor in tensors[:MAX_LISTED_TENSORS])
    return text + (f" and {len(tensors) - MAX_LISTED_TENSORS} more" if len(tensors) > MAX_LISTED_TENSORS else "")
