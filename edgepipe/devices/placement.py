"""Where each operator of a model runs on a device - NPU, GPU, core or nowhere - why, and what would change it.

The check is static: operator names, types and the profile's rules, and for the Edge TPU what Coral's published pairs of
models show. Further limits of a compiler, such as on shapes, are for the compiler to report; an operator for which
nothing known settles the placement is open, and counts for either bound of the share that the NPU runs.
"""

from dataclasses import replace
from enum import StrEnum
from functools import cache

from edgepipe.core import units
from edgepipe.core.units import Dimension
from edgepipe.devices.accelerator_rules import RULE_BY_NAME
from edgepipe.devices.compiled_placement import place_compiled
from edgepipe.devices.device_profile import Device, Npu, OperatorNames
from edgepipe.devices.edgetpu.compiled_pairs import read_pairs
from edgepipe.devices.edgetpu.mapping_limits import Mapping, MappingLimits, MappingState, learn_limits
from edgepipe.devices.operator_placement import OperatorPlacement, Processor, RuleViolation
from edgepipe.tflite.compiled_file import read_compiled_file
from edgepipe.tflite.integer_check import FLEX_PREFIX
from edgepipe.tflite.model import FLOAT_TYPES, Model, Operator, Tensor, TensorKey

MAX_LISTED_TENSORS = 3  # tensors that a reason names; the rest are counted
PROFILE_BASIS = "the lists and rules of the profile"
PARTITION_BASIS = (
    "Coral's documentation and published pairs: whatever depends on an operator on the CPU runs there, too"
)
NOTABLE_WASTE = 0.25  # share of an operator's MACs spent on padded channels from which it is reported


class OpenChoice(StrEnum):
    """Where the operators run whose placement is open."""

    LIKELY = "likely"
    NPU = "NPU"
    CPU = "CPU"


def place_operators(
    device: Device, model: Model, choice: OpenChoice = OpenChoice.LIKELY, limits: MappingLimits | None = None
) -> tuple[OperatorPlacement, ...]:
    """Where each operator of `model` runs on `device`, in the order of the operators.

    Args:
        device: the resolved profile.
        model: the model.
        choice: where the operators run that are open.
        limits: what is known of the compiler; None: what all published pairs show, if the profile learns from them.
    """
    npu = device.system.npu
    if npu is None:
        return tuple(
            _place_on_core(operator, _worst_violation(core_violations(device, model, operator)))
            for operator in model.operators
        )
    compiled_file = read_compiled_file(model)
    if compiled_file is not None and compiled_file.code in device.custom_operators:
        return tuple(place_compiled(device, npu, compiled_file, operator) for operator in model.operators)
    if npu.learned_from == "coral-pairs":
        limits = limits or _all_limits()
    placer = _NpuPlacer(device, npu, model, choice, limits)
    return tuple(placer.place(operator) for operator in model.operators)


def npu_share_bounds(device: Device, model: Model) -> tuple[float, float, float]:
    """The share of operators on the NPU: as is likely, at least and at most."""
    likely, low, high = (
        sum(placement.runs_on is Processor.NPU for placement in place_operators(device, model, choice))
        / max(1, len(model.operators))
        for choice in (OpenChoice.LIKELY, OpenChoice.CPU, OpenChoice.NPU)
    )
    return likely, low, high


@cache
def _all_limits() -> MappingLimits:
    return learn_limits(read_pairs())


class _NpuPlacer:
    """Places the operators of one model one after the other; keeps where the compiler's only partition ends."""

    def __init__(
        self, device: Device, npu: Npu, model: Model, choice: OpenChoice, limits: MappingLimits | None
    ) -> None:
        self.device = device
        self.npu = npu
        self.model = model
        self.choice = choice
        self.limits = limits
        self.ended_keys: set[TensorKey] = set()  # tensors computed on the core, whose readers run there, too
        self.leading_keys = {tensor.key for tensor in model.inputs}  # nothing on the NPU leads to them

    def place(self, operator: Operator) -> OperatorPlacement:
        """Where the next operator runs."""
        mapping = self._judge_mapping(operator)
        violation = _npu_violation(self.device, self.npu, self.model, operator, mapping) or self._behind_violation(
            operator
        )
        is_open = violation is None and mapping is not None and mapping.state.is_open
        if violation is None and mapping is not None and not self._is_mapped(mapping.state):
            violation = _mapping_violation(self.device, self.npu, self.model, operator, mapping)
        placement = self._place(operator, violation)
        if placement.runs_on is not Processor.NPU:
            self._end_partition(operator)
        return replace(placement, basis=_describe_basis(mapping, violation), is_open=is_open)

    def _judge_mapping(self, operator: Operator) -> Mapping | None:
        if self.limits is None or operator.is_custom:
            return None
        return self.limits.judge(operator, _is_listed(operator, self.npu.operators))

    def _is_mapped(self, state: MappingState) -> bool:
        if state.is_open and self.choice is not OpenChoice.LIKELY:
            return self.choice is OpenChoice.NPU
        return state in (MappingState.MAPPED, MappingState.OPEN_MAPPED)

    def _place(self, operator: Operator, npu_violation: RuleViolation | None) -> OperatorPlacement:
        if npu_violation is None:
            reason, suggestion = _describe_padding(self.npu, operator)
            return OperatorPlacement(operator.location, Processor.NPU, reason, suggestion)
        if npu_violation.runs_on_gpu:
            return _place_by(operator, Processor.GPU, npu_violation)
        core_violation = _worst_violation(core_violations(self.device, self.model, operator))
        if core_violation is not None and core_violation.rule_name != "integer-only":
            return _place_by(operator, Processor.UNSUPPORTED, core_violation)
        return _place_by(operator, Processor.CPU, npu_violation)

    def _behind_violation(self, operator: Operator) -> RuleViolation | None:
        if self.npu.partitions != "one":
            return None
        core_input = next((t for t in operator.inputs if t is not None and t.key in self.ended_keys), None)
        if core_input is None:
            return None
        reason = (
            f"{self.npu.name} runs a single partition, which ended before: '{core_input.name}' is computed on the core"
        )
        return RuleViolation("behind", reason, "change the operators upstream of it")

    def _end_partition(self, operator: Operator) -> None:
        """What reads the outputs of an operator on the core runs there, unless it only prepares the inputs."""
        output_keys = {tensor.key for tensor in operator.outputs if tensor is not None}
        is_leading = all(t is None or t.is_constant or t.key in self.leading_keys for t in operator.inputs)
        if is_leading and self._may_lead(operator):
            self.leading_keys |= output_keys
        else:
            self.ended_keys |= output_keys

    def _may_lead(self, operator: Operator) -> bool:
        """Whether the partition may start after `operator`; for kinds never seen there it is open, likely not."""
        return self.limits is not None and (operator.name in self.limits.leading_names or self.choice is OpenChoice.NPU)


def _place_by(operator: Operator, processor: Processor, violation: RuleViolation) -> OperatorPlacement:
    return OperatorPlacement(operator.location, processor, violation.reason, violation.suggestion, violation.rule_name)


def _describe_basis(mapping: Mapping | None, violation: RuleViolation | None) -> str:
    if violation is not None and violation.rule_name == "behind":
        return PARTITION_BASIS
    if mapping is None or (violation is not None and violation.rule_name != "npu-mapping"):
        return PROFILE_BASIS
    return mapping.basis


def _place_on_core(operator: Operator, violation: RuleViolation | None) -> OperatorPlacement:
    if violation is None:
        return OperatorPlacement(operator.location, Processor.CPU, basis=PROFILE_BASIS)
    # Floats would still run on an integer-only core, in slow software emulation.
    processor = Processor.CPU if violation.rule_name == "integer-only" else Processor.UNSUPPORTED
    return replace(_place_by(operator, processor, violation), basis=PROFILE_BASIS)


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
        suggestion = _suggest_for_custom(model, operator)
    else:
        is_supported = _is_listed(operator, device.operators) or (
            npu is not None and _is_listed(operator, npu.operators)
        )
        suggestion = suggest_replacement(model, operator, device.operators)
    observation = f"{runtime_text} on {device.name} has no operator {operator.name}"
    return [] if is_supported else [RuleViolation("operator", observation, suggestion)]


def _suggest_for_custom(model: Model, operator: Operator) -> str:
    """What to do about a custom operator that the runtime is not built with."""
    compiled_file = read_compiled_file(model)
    if compiled_file is not None and operator.name == compiled_file.code:
        return f"the file is {compiled_file.text()}; give the .tflite before that"
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


def _npu_violation(
    device: Device, npu: Npu, model: Model, operator: Operator, mapping: Mapping | None
) -> RuleViolation | None:
    """What prevents an operator from running on the accelerator by the lists and rules of the profile."""
    core_name = device.system.core
    if mapping is None and (operator.is_custom or not _is_listed(operator, npu.operators)):
        suggestion = suggest_replacement(model, operator, npu.operators)
        observation = f"{npu.name} does not support {operator.name}: it runs on the {core_name}"
        return RuleViolation("npu-operator", observation, suggestion)
    unsupported_tensors = [tensor for tensor in operator.tensors if not _computes_on(npu, tensor)]
    if unsupported_tensors:
        observation = (
            f"{npu.name} does not compute on {_describe_dtypes(unsupported_tensors)}: it runs on the {core_name}"
        )
        return RuleViolation("npu-dtype", observation, _suggest_dtype(npu, unsupported_tensors))
    return next(iter(_rule_violations(npu.rules, npu.name, model, operator)), None)


def _computes_on(npu: Npu, tensor: Tensor) -> bool:
    """Constants are the compiler's to convert; states may have types of their own."""
    return tensor.is_constant or tensor.dtype in (npu.state_dtypes if tensor.is_variable else ()) + npu.dtypes


def _mapping_violation(device: Device, npu: Npu, model: Model, operator: Operator, mapping: Mapping) -> RuleViolation:
    verb = "likely runs" if mapping.state.is_open else "runs"
    return RuleViolation(
        "npu-mapping",
        f"{operator.name} {verb} on the {device.system.core} instead of the {npu.name}: {mapping.basis}",
        suggest_replacement(model, operator, npu.operators),
    )


def _suggest_dtype(npu: Npu, tensors: list[Tensor]) -> str:
    has_float = any(tensor.dtype in FLOAT_TYPES for tensor in tensors)
    return f"{npu.name} computes on {', '.join(npu.dtypes)}" + (
        "; convert to full-integer int8, inputs and outputs included" if has_float else ""
    )


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
