"""The operators of `keras.ops` that a graph may hold: which there are, their functions, and their arguments as JSON."""

import operator
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# keras.ops functions by the name of their Operation class; each computes and nothing else: none draws at random, calls
# Python code it is given, or gives tensors whose shape depends on values
OPERATORS = frozenset(
    [
        "Abs", "Absolute", "AdaptiveAveragePool", "AdaptiveMaxPool", "Add", "All", "Amax", "Amin", "Any", "Append",
        "Arange", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctan2", "Arctanh", "Argmax", "Argmin",
        "Argsort", "ArraySplit", "Average", "AveragePool", "BatchNorm", "BitwiseAnd", "BitwiseInvert", "BitwiseNot",
        "BitwiseOr", "BitwiseXor", "BroadcastTo", "Cast", "Cbrt", "Ceil", "Celu", "Clip", "Concatenate", "Conv",
        "ConvTranspose", "Copy", "Cos", "Cosh", "CountNonzero", "CropImages", "Cross", "Cumprod", "Cumsum",
        "DepthToSpace", "DepthwiseConv", "Diag", "Diagonal", "Diff", "Digitize", "Divide", "DivideNoNan", "Dot",
        "DotProductAttention", "Dstack", "Einsum", "Elu", "Equal", "Erf", "Exp", "Exp2", "ExpandDims", "Expm1",
        "Flip", "Fliplr", "Flipud", "Floor", "FloorDivide", "FullLike", "Gelu", "GetItem", "Glu", "Greater",
        "GreaterEqual", "HardShrink", "HardSigmoid", "HardSilu", "HardTanh", "Heaviside", "Hsplit", "Hstack",
        "Hypot", "Inner", "Isclose", "Isfinite", "Isinf", "Isnan", "LayerNorm", "LeakyRelu", "Less", "LessEqual",
        "Linspace", "Log", "Log10", "Log1p", "Log2", "LogSigmoid", "LogSoftmax", "Logaddexp", "LogicalAnd",
        "LogicalNot", "LogicalOr", "LogicalXor", "Logsumexp", "Matmul", "Max", "MaxPool", "Maximum", "Mean",
        "Median", "Meshgrid", "Min", "Minimum", "Mod", "Moments", "Moveaxis", "MultiHot", "Multiply", "NanToNum",
        "Negative", "Norm", "Normalize", "NotEqual", "OneHot", "OnesLike", "Outer", "Pad", "PadImages", "Polar",
        "Power", "Prod", "RGBToGrayscale", "RGBToHSV", "RMSNorm", "Ravel", "Reciprocal", "Relu", "Relu6", "Repeat",
        "Reshape", "Resize", "Roll", "Rot90", "Round", "Rsqrt", "SaturateCast", "Selu", "SeparableConv", "Sigmoid",
        "Sign", "Silu", "Sin", "Sinc", "Sinh", "Slice", "SliceUpdate", "SoftShrink", "Softmax", "Softplus",
        "Softsign", "Sort", "SpaceToDepth", "SparsePlus", "SparseSigmoid", "Sparsemax", "Split", "Sqrt", "Square",
        "Squareplus", "Squeeze", "Stack", "Std", "StopGradient", "Subtract", "Sum", "Swapaxes", "Take",
        "TakeAlongAxis", "Tan", "Tanh", "TanhShrink", "Tensordot", "Threshold", "Tile", "TopK", "Trace",
        "Transpose", "Tril", "Triu", "TrueDivide", "Trunc", "Unfold", "Unstack", "Var", "Vdot", "Vsplit", "Vstack",
        "Where", "ZerosLike",
    ]
)  # fmt: skip
_FUNCTIONS = {
    "BatchNorm": "batch_normalization",
    "CropImages": "image.crop_images",
    "LayerNorm": "layer_normalization",
    "PadImages": "image.pad_images",
    "RGBToGrayscale": "image.rgb_to_grayscale",
    "RGBToHSV": "image.rgb_to_hsv",
    "RMSNorm": "rms_normalization",
    "Resize": "image.resize",
}


def function(name: str) -> Callable[..., Any]:
    """What the operator `name` computes: a function of `keras.ops`, or taking an item."""
    if name == "GetItem":
        return operator.getitem
    if name == "Einsum":
        return _einsum
    found: Any = keras.ops
    for part in _FUNCTIONS.get(name, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()).split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _einsum(*operands: Any, subscripts: str) -> Any:
    return keras.ops.einsum(subscripts, *operands)


def is_tensor(value: Any) -> bool:
    """Whether `value` is a symbolic tensor of either Keras, or a weight of a Keras 3 layer."""
    # tf_keras has no public test for its own; eager tensors of TensorFlow carry no history
    return isinstance(value, (keras.KerasTensor, keras.Variable)) or hasattr(value, "_keras_history")


def encode(value: Any, tensors: list[Any]) -> Any:
    """`value` as JSON; a tensor becomes `{"tensor": i}` and is appended to `tensors`.

    Raises:
        TypeError: something that JSON cannot hold, such as a function.
    """
    if is_tensor(value):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, slice):
        return {"slice": [encode(part, tensors) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(part, tensors) for part in value]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, (np.ndarray, tf.Tensor)):
        return {"array": np.asarray(value).tolist(), "dtype": np.asarray(value).dtype.name}
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or isinstance(plain, (bool, int, float, str)):
        return plain
    raise TypeError(f"a {type(value).__name__} among its arguments")


def decode(value: Any, tensors: Any) -> Any:
    """The argument that `encode` turned into `value`, tensors put back in."""
    if not isinstance(value, dict):
        return value
    ((tag, inner),) = ((key, value[key]) for key in value if key != "dtype")
    if tag == "tensor":
        return tensors[inner]
    if tag == "array":
        return np.array(inner, value["dtype"])
    if tag == "ellipsis":
        return ...
    parts = [decode(part, tensors) for part in inner]
    return slice(*parts) if tag == "slice" else tuple(parts) if tag == "tuple" else parts


def apply(name: str, stored: dict[str, Any], tensors: Any) -> Any:
    """The operator `name` on `tensors` and the stored arguments `{"args": .., "kwargs": ..}`."""
    args = [decode(value, tensors) for value in stored["args"]]
    named = {key: decode(value, tensors) for key, value in stored["kwargs"].items()}
    return function(name)(*args, **named)
