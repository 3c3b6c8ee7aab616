"""What accelerators and runtimes demand of an operator besides its name and the types of its tensors.

A profile names the rules that hold for it. The docstring of a rule is what the user reads; the rule gives what it saw
where it is broken, and nothing where it holds.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgepipe.tflite.model import WEIGHTS, Model, Operator, Tensor

SOFTMAX_MOST = 16_000  # elements; coral.ai/docs/edgetpu/models-intro, "Supported operations"
MEAN_DEPTH = 4  # the depth that is averaged must be a multiple of it; the same table
_NO_ACTIVATION = 0  # ActivationFunctionType.NONE of TFLite's schema
_ACTIVATIONS = ("none", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")  # the same enumeration
_SHOWN = 3


@dataclass(frozen=True)
class Rule:
    """A demand on one operator: `seen` gives what breaks it, or nothing. `gpu`: it then runs on a GPU, not the core."""

    seen: Callable[[Model, Operator], str]
    suggestion: str
    gpu: bool = False

    @property
    def text(self) -> str:
        """The rule, in words."""
        return str(self.seen.__doc__).format(SOFTMAX_MOST=f"{SOFTMAX_MOST:,}", MEAN_DEPTH=MEAN_DEPTH).rstrip(".")


def static_shapes(_: Model, operator: Operator) -> str:
    """every dimension but the batch is known before the model runs"""
    # Keras leaves the batch open, and every tool takes the 1 that stands in the tensor's shape.
    return _first(f"'{t.name}' is {_shape(t.signature)}" for t in operator.tensors if -1 in t.signature[1:])


def batch_one(model: Model, operator: Operator) -> str:
    """the model takes one sample at a time: the first dimension of its inputs is 1"""
    given = [t for t in operator.inputs if t is not None and t in model.inputs]
    return _first(f"'{t.name}' is {_shape(t.shape)}" for t in given if len(t.shape) > 1 and t.shape[0] != 1)


def constant_parameters(_: Model, operator: Operator) -> str:
    """weights and biases are constants"""
    found = (operator.input(position) for position in WEIGHTS.get(operator.name, ()))
    return _first(f"'{t.name}' is computed while the model runs" for t in found if t is not None and not t.constant)


def three_dimensions(_: Model, operator: Operator) -> str:
    """only the three innermost dimensions of a tensor are larger than 1"""
    data = (t for t in operator.tensors if not t.constant)
    return _first(f"'{t.name}' is {_shape(t.shape)}" for t in data if math.prod(t.shape[:-3]) > 1)


def plain_activation(_: Model, operator: Operator) -> str:
    """pooling and concatenation have no fused activation"""
    fused = operator.options.get("fusedActivationFunction", _NO_ACTIVATION)
    if operator.name not in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "CONCATENATION") or fused == _NO_ACTIVATION:
        return ""
    return f"{_ACTIVATIONS[fused] if isinstance(fused, int) and fused < len(_ACTIVATIONS) else fused} is fused into it"


def equal_dilation(_: Model, operator: Operator) -> str:
    """a convolution is dilated alike in height and width"""
    height, width = (operator.options.get(f"dilation{side}Factor", 1) for side in "HW")
    return f"{height} x {width}" if height != width else ""


def one_row(_: Model, operator: Operator) -> str:
    """a fully connected layer gives one row"""
    rows = (t for t in operator.outputs if t is not None and operator.name == "FULLY_CONNECTED")
    return _first(f"'{t.name}' is {_shape(t.shape)}" for t in rows if math.prod(t.shape[:-1]) > 1)


def zero_padding(model: Model, operator: Operator) -> str:
    """a constant is concatenated only to one other tensor, and is all zeros"""
    constants = [t for t in operator.tensors if t.constant]
    if operator.name != "CONCATENATION" or not constants:
        return ""
    if len(operator.inputs) != 2:
        return f"{len(operator.inputs)} inputs, of which '{constants[0].name}' is a constant"
    return _first(f"'{t.name}' is not all zeros" for t in constants if model.zeros(t) < t.elements)


def softmax_size(_: Model, operator: Operator) -> str:
    """softmax is over one dimension of at most {SOFTMAX_MOST} elements"""
    data = operator.input(0)
    if operator.name != "SOFTMAX" or data is None:
        return ""
    fits = data.elements <= SOFTMAX_MOST and data.elements == max(data.shape, default=1)
    return "" if fits else f"'{data.name}' is {_shape(data.shape)}"


def keeps_batch(model: Model, operator: Operator) -> str:
    """nothing is reduced, packed, split or padded over the batch"""
    data = operator.input(1 if operator.name == "SPLIT" else 0)
    if data is None or operator.name not in _AXES or len(data.shape) < 2:  # a vector has no batch
        return ""
    rank = len(data.shape) + (operator.name == "PACK")
    axes = [axis % rank for axis in _AXES[operator.name](model, operator)]
    return f"axis 0 of '{data.name}'" if 0 in axes else ""


def mean_depth(model: Model, operator: Operator) -> str:
    """a mean over the depth has a depth that is a multiple of {MEAN_DEPTH}"""
    data = operator.input(0)
    if operator.name != "MEAN" or data is None or not data.shape:
        return ""
    axes = [axis % len(data.shape) for axis in _values(model, operator.input(1))]
    deep = len(data.shape) - 1 in axes and data.shape[-1] % MEAN_DEPTH
    return f"'{data.name}' is {_shape(data.shape)}" if deep else ""


def unit_strides(model: Model, operator: Operator) -> str:
    """a slice takes every element, and neither adds dimensions nor has an ellipsis"""
    if operator.name != "STRIDED_SLICE":
        return ""
    strides = _values(model, operator.input(3))
    masks = [name for name in ("ellipsisMask", "newAxisMask") if operator.options.get(name)]
    return f"strides {_shape(strides)}" if set(strides) != {1} else f"{masks[0]} is set" if masks else ""


def prelu_per_channel(_: Model, operator: Operator) -> str:
    """PReLU has one slope for each channel"""
    slopes = operator.input(1)
    if operator.name != "PRELU" or slopes is None or math.prod(slopes.shape[:-1]) == 1:
        return ""
    return f"'{slopes.name}' is {_shape(slopes.shape)}"


def per_tensor(_: Model, operator: Operator) -> str:
    """weights have one scale for the whole tensor"""
    scaled = [t for t in operator.tensors if t.constant and t.quantization is not None and t.dtype in ("int8", "uint8")]
    many = (t for t in scaled if t.quantization is not None and t.quantization.per_axis)
    return _first(f"'{t.name}' has {len(t.quantization.scales) if t.quantization else 0} scales" for t in many)


_SLICES = "slice without strides, and reshape apart"
_BATCH = "keep the batch of 1 as it is, and act on the other dimensions"
RULES = {
    "static-shapes": Rule(static_shapes, "give the model's input a fixed shape before converting it"),
    "batch-one": Rule(batch_one, "convert the model with a batch of 1"),
    "constant-parameters": Rule(constant_parameters, "convert the model with its weights frozen"),
    "three-dimensions": Rule(three_dimensions, "use a batch of 1 and tensors of height, width and channels"),
    "plain-activation": Rule(plain_activation, "put the activation into a layer of its own, or drop it"),
    "equal-dilation": Rule(equal_dilation, "dilate both dimensions alike"),
    "one-row": Rule(one_row, "flatten before the dense layer, or use a 1 x 1 convolution"),
    "zero-padding": Rule(zero_padding, "concatenate no constants; pad with zeros instead"),
    "softmax-size": Rule(softmax_size, "leave the softmax to the application, or flatten what it is taken over"),
    "keeps-batch": Rule(keeps_batch, _BATCH),
    "mean-depth": Rule(mean_depth, f"pad the channels to a multiple of {MEAN_DEPTH}"),
    "unit-strides": Rule(unit_strides, _SLICES),
    "prelu-per-channel": Rule(prelu_per_channel, "share the slopes over height and width: shared_axes=[1, 2]"),
    "per-tensor": Rule(per_tensor, "quantize weights per tensor, not per channel", gpu=True),
}


def _values(model: Model, tensor: Tensor | None) -> tuple[int, ...]:
    """The values of a small constant; none where it is absent, or computed while the model runs."""
    if tensor is None or not tensor.constant:
        return ()
    return tuple(int(value) for value in np.ravel(model.values(tensor)))


def _reduced(model: Model, operator: Operator) -> tuple[int, ...]:
    return _values(model, operator.input(1))


def _padded(model: Model, operator: Operator) -> tuple[int, ...]:
    amounts = _values(model, operator.input(1))
    return tuple(axis for axis in range(len(amounts) // 2) if any(amounts[2 * axis : 2 * axis + 2]))


def _packed(_: Model, operator: Operator) -> tuple[int, ...]:
    axis = operator.options.get("axis", 0)
    return (axis,) if isinstance(axis, int) else ()


def _split(model: Model, operator: Operator) -> tuple[int, ...]:
    return _values(model, operator.input(0))


_AXES: dict[str, Callable[[Model, Operator], tuple[int, ...]]] = {
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), _reduced),
    "PAD": _padded,
    "PACK": _packed,
    "SPLIT": _split,
}


def _first(seen: Iterable[str]) -> str:
    found = list(seen)
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join("?" if size < 0 else str(size) for size in shape) or "a scalar"
