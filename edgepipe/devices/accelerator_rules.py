"""What accelerators and runtimes require of an operator beyond its name and tensor types.

A profile names the rules that apply to it. The docstring of a rule is shown to the user; the function returns what
violates the rule, or an empty string if nothing does.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgepipe.tflite.model import Model, Operator, Tensor

MAX_SOFTMAX_ELEMENTS = 16_000  # elements; coral.ai/docs/edgetpu/models-intro, "Supported operations"
MEAN_DEPTH_MULTIPLE = 4  # an averaged depth must be a multiple of it; the same table
_NO_ACTIVATION_CODE = 0  # ActivationFunctionType.NONE of TFLite's schema
_ACTIVATION_NAMES = ("none", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")  # the same enumeration
_MAX_LISTED_VIOLATIONS = 3


@dataclass(frozen=True)
class OperatorRule:
    """A requirement on one operator.

    Attributes:
        find_violation: describes what violates the rule; an empty string if nothing does.
        suggestion: what the user can do about a violation.
        gpu: an operator that violates the rule runs on the GPU instead of the core.
    """

    describe_violation: Callable[[Model, Operator], str]
    suggestion: str
    runs_on_gpu: bool = False

    @property
    def text(self) -> str:
        """The rule as shown to the user."""
        return (
            str(self.describe_violation.__doc__)
            .format(max_softmax_elements=f"{MAX_SOFTMAX_ELEMENTS:,}", mean_depth_multiple=MEAN_DEPTH_MULTIPLE)
            .rstrip(".")
        )


def static_shapes_violation(model: Model, operator: Operator) -> str:
    """every dimension but the batch is known before the model runs, and the batch stays the batch"""
    # Keras leaves the batch dimension open; every tool uses the 1 from the tensor's shape.
    open_tensor = next((tensor for tensor in operator.tensors if tensor.key in model.open_sizes), None)
    if open_tensor is None:
        return ""
    return f"'{open_tensor.name}' is {_format_shape(open_tensor.stated_shape)}: {model.open_sizes[open_tensor.key]}"


def batch_violation(model: Model, operator: Operator) -> str:
    """the model takes one sample at a time: the first dimension of its inputs is 1"""
    model_inputs = [t for t in operator.inputs if t is not None and t in model.inputs]
    return _join_violations(
        f"'{t.name}' is {_format_shape(t.shape)}" for t in model_inputs if len(t.shape) > 1 and t.shape[0] != 1
    )


def parameter_violation(_: Model, operator: Operator) -> str:
    """weights and biases are constants"""
    parameter_tensors = (operator.input(position) for position in operator.traits.parameter_positions)
    return _join_violations(
        f"'{t.name}' is computed while the model runs" for t in parameter_tensors if t is not None and not t.is_constant
    )


def dimension_violation(_: Model, operator: Operator) -> str:
    """only the three innermost dimensions of a tensor are larger than 1"""
    activation_tensors = (t for t in operator.tensors if not t.is_constant)
    return _join_violations(
        f"'{t.name}' is {_format_shape(t.shape)}" for t in activation_tensors if math.prod(t.shape[:-3]) > 1
    )


def activation_violation(_: Model, operator: Operator) -> str:
    """pooling and concatenation have no fused activation"""
    activation_code = operator.options.get("fusedActivationFunction", _NO_ACTIVATION_CODE)
    if (
        operator.name not in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION")
        or activation_code == _NO_ACTIVATION_CODE
    ):
        return ""
    if isinstance(activation_code, int) and activation_code < len(_ACTIVATION_NAMES):
        return f"{_ACTIVATION_NAMES[activation_code]} is fused into it"
    return f"{activation_code} is fused into it"


def dilation_violation(_: Model, operator: Operator) -> str:
    """a convolution has the same dilation in height and width"""
    height, width = (operator.options.get(f"dilation{side}Factor", 1) for side in "HW")
    return f"{height} x {width}" if height != width else ""


def output_row_violation(_: Model, operator: Operator) -> str:
    """a fully connected layer outputs one row"""
    outputs = (t for t in operator.outputs if t is not None and operator.name == "FULLY_CONNECTED")
    return _join_violations(f"'{t.name}' is {_format_shape(t.shape)}" for t in outputs if math.prod(t.shape[:-1]) > 1)


def concat_constant_violation(model: Model, operator: Operator) -> str:
    """a constant is concatenated with only one other tensor, and is all zeros"""
    constant_tensors = [t for t in operator.tensors if t.is_constant]
    if operator.name != "CONCATENATION" or not constant_tensors:
        return ""
    if len(operator.inputs) != 2:
        return f"{len(operator.inputs)} inputs, of which '{constant_tensors[0].name}' is a constant"
    return _join_violations(
        f"'{t.name}' is not all zeros" for t in constant_tensors if model.count_zeros(t) < t.element_count
    )


def softmax_size_violation(_: Model, operator: Operator) -> str:
    """softmax runs over one dimension of at most {max_softmax_elements} elements"""
    tensor = operator.input(0)
    if operator.name != "SOFTMAX" or tensor is None:
        return ""
    is_allowed_size = tensor.element_count <= MAX_SOFTMAX_ELEMENTS and tensor.element_count == max(
        tensor.shape, default=1
    )
    return "" if is_allowed_size else f"'{tensor.name}' is {_format_shape(tensor.shape)}"


def batch_axis_violation(model: Model, operator: Operator) -> str:
    """no operator reduces, packs, splits or pads the batch dimension"""
    tensor = operator.input(1 if operator.name == "SPLIT" else 0)
    if (
        tensor is None or operator.name not in _AXES_READER_BY_OPERATOR or len(tensor.shape) < 2
    ):  # a vector has no batch
        return ""
    rank = len(tensor.shape) + (operator.name == "PACK")
    axes = [axis % rank for axis in _AXES_READER_BY_OPERATOR[operator.name](model, operator)]
    return f"axis 0 of '{tensor.name}'" if 0 in axes else ""


def mean_depth_violation(model: Model, operator: Operator) -> str:
    """a depth that is averaged is a multiple of {mean_depth_multiple}"""
    tensor = operator.input(0)
    if operator.name != "MEAN" or tensor is None or not tensor.shape:
        return ""
    axes = [axis % len(tensor.shape) for axis in _constant_values(model, operator.input(1))]
    misaligned_depth = len(tensor.shape) - 1 in axes and tensor.shape[-1] % MEAN_DEPTH_MULTIPLE
    return f"'{tensor.name}' is {_format_shape(tensor.shape)}" if misaligned_depth else ""


def slice_violation(model: Model, operator: Operator) -> str:
    """a slice has strides of 1, adds no dimensions and has no ellipsis"""
    if operator.name != "STRIDED_SLICE":
        return ""
    strides = _constant_values(model, operator.input(3))
    set_mask_names = [name for name in ("ellipsisMask", "newAxisMask") if operator.options.get(name)]
    return (
        f"strides {_format_shape(strides)}"
        if set(strides) != {1}
        else f"{set_mask_names[0]} is set"
        if set_mask_names
        else ""
    )


def prelu_slope_violation(_: Model, operator: Operator) -> str:
    """PReLU has one slope per channel"""
    slope_tensor = operator.input(1)
    if operator.name != "PRELU" or slope_tensor is None or math.prod(slope_tensor.shape[:-1]) == 1:
        return ""
    return f"'{slope_tensor.name}' is {_format_shape(slope_tensor.shape)}"


def per_channel_violation(_: Model, operator: Operator) -> str:
    """weights are quantized per tensor, with a single scale"""
    weight_tensors = [
        t for t in operator.tensors if t.is_constant and t.quantization is not None and t.dtype in ("int8", "uint8")
    ]
    per_channel_tensors = (t for t in weight_tensors if t.quantization is not None and t.quantization.is_per_axis)
    return _join_violations(
        f"'{t.name}' has {len(t.quantization.scales) if t.quantization else 0} scales" for t in per_channel_tensors
    )


_SLICE_SUGGESTION = "slice without strides, and reshape separately"
_BATCH_SUGGESTION = "keep the batch of 1, and operate on the other dimensions"
RULE_BY_NAME = {
    "static-shapes": OperatorRule(
        static_shapes_violation, "convert the model with a batch of 1 and a fixed input shape"
    ),
    "batch-one": OperatorRule(batch_violation, "convert the model with a batch of 1"),
    "constant-parameters": OperatorRule(parameter_violation, "convert the model with its weights frozen"),
    "three-dimensions": OperatorRule(dimension_violation, "use a batch of 1 and tensors of height, width and channels"),
    "plain-activation": OperatorRule(activation_violation, "put the activation into a layer of its own, or drop it"),
    "equal-dilation": OperatorRule(dilation_violation, "use the same dilation in both dimensions"),
    "one-row": OperatorRule(output_row_violation, "flatten before the dense layer, or use a 1 x 1 convolution"),
    "zero-padding": OperatorRule(concat_constant_violation, "pad with zeros instead of concatenating a constant"),
    "softmax-size": OperatorRule(softmax_size_violation, "leave the softmax to the application, or flatten its input"),
    "keeps-batch": OperatorRule(batch_axis_violation, _BATCH_SUGGESTION),
    "mean-depth": OperatorRule(mean_depth_violation, f"pad the channels to a multiple of {MEAN_DEPTH_MULTIPLE}"),
    "unit-strides": OperatorRule(slice_violation, _SLICE_SUGGESTION),
    "prelu-per-channel": OperatorRule(
        prelu_slope_violation, "share the slopes over height and width: shared_axes=[1, 2]"
    ),
    "per-tensor": OperatorRule(per_channel_violation, "quantize weights per tensor, not per channel", runs_on_gpu=True),
}


def _constant_values(model: Model, tensor: Tensor | None) -> tuple[int, ...]:
    """The values of a small constant; empty if it is absent or computed at run time."""
    if tensor is None or not tensor.is_constant:
        return ()
    return tuple(int(element) for element in np.ravel(model.read_values(tensor)))


def _reduced_axes(model: Model, operator: Operator) -> tuple[int, ...]:
    return _constant_values(model, operator.input(1))


def _padded_axes(model: Model, operator: Operator) -> tuple[int, ...]:
    padding_amounts = _constant_values(model, operator.input(1))
    return tuple(axis for axis in range(len(padding_amounts) // 2) if any(padding_amounts[2 * axis : 2 * axis + 2]))


def _packed_axis(_: Model, operator: Operator) -> tuple[int, ...]:
    axis = operator.options.get("axis", 0)
    return (axis,) if isinstance(axis, int) else ()


def _split_axis(model: Model, operator: Operator) -> tuple[int, ...]:
    return _constant_values(model, operator.input(0))


_AXES_READER_BY_OPERATOR: dict[str, Callable[[Model, Operator], tuple[int, ...]]] = {
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), _reduced_axes),
    "PAD": _padded_axes,
    "PACK": _packed_axis,
    "SPLIT": _split_axis,
}


def _join_violations(violations: Iterable[str]) -> str:
    violation_texts = list(violations)
    return ", ".join(violation_texts[:_MAX_LISTED_VIOLATIONS]) + (
        f" and {len(violation_texts) - _MAX_LISTED_VIOLATIONS} more"
        if len(violation_texts) > _MAX_LISTED_VIOLATIONS
        else ""
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join("?" if size < 0 else str(size) for size in shape) or "a scalar"
