"""The operators of `keras.ops` that a graph may hold: their names, their functions, and their arguments as JSON."""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgepipe.models.keras_types import AnyKerasVariable, KerasLayer, KerasTensor, Tensor, TensorTree


class Constant(keras.Operation):  # type: ignore[misc]
    """A constant or a weight as a symbolic tensor: a graph holds only what depends on one of its inputs, the anchor."""

    def call(self, anchor: Tensor, value: Tensor | AnyKerasVariable) -> Tensor:
        """`value`, whatever the anchor is."""
        return keras.ops.convert_to_tensor(value)

    def compute_output_spec(self, anchor: KerasTensor, value: Tensor | AnyKerasVariable) -> KerasTensor:
        """The shape and type of `value`."""
        return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))


# keras.ops functions by the name of their Operation class. All are pure: none is random, calls Python code from its
# arguments, or returns tensors whose shape depends on values
OPERATOR_NAMES = frozenset(
    [
        "Abs", "Absolute", "AdaptiveAveragePool", "AdaptiveMaxPool", "Add", "All", "Amax", "Amin", "Any", "Append",
        "Arange", "Arccos", "Arccosh", "Arcsin", "Arcsinh", "Arctan", "Arctan2", "Arctanh", "Argmax", "Argmin",
        "Argsort", "ArraySplit", "Average", "AveragePool", "BatchNorm", "BitwiseAnd", "BitwiseInvert", "BitwiseNot",
        "BitwiseOr", "BitwiseXor", "BroadcastTo", "CDist", "Cast", "Cbrt", "Ceil", "Celu", "Clip", "Concatenate",
        "Constant", "Conv", "ConvTranspose", "ConvertToTensor", "Copy", "Cos", "Cosh", "CountNonzero", "CropImages",
        "Cross", "Cumprod", "Cumsum", "Deg2rad", "DepthToSpace", "DepthwiseConv", "Diag", "Diagonal", "Diff",
        "Digitize", "Divide", "DivideNoNan", "Dot", "DotProductAttention", "Dsplit", "Dstack", "Einsum", "Elu", "Equal",
        "Erf", "Erfc", "Exp", "Exp2", "ExpandDims", "Expm1", "ExtractPatches", "ExtractSequences", "FFT", "FFT2",
        "Fabs", "Flip", "Fliplr", "Flipud", "Floor", "FloorDivide", "Fmax", "Fmin", "Fmod", "FullLike", "Gelu",
        "GetItem", "Glu", "Greater", "GreaterEqual", "HSVToRGB", "HardShrink", "HardSigmoid", "HardSilu", "HardTanh",
        "Heaviside", "Hsplit", "Hstack", "Hypot", "IRFFT", "ISTFT", "Inner", "Isclose", "Isfinite", "Isinf", "Isnan",
        "LayerNorm", "LeakyRelu", "Less", "LessEqual", "Linspace", "Log", "Log10", "Log1p", "Log2",
        "LogSigmoid", "LogSoftmax", "Logaddexp", "Logaddexp2", "LogicalAnd", "LogicalNot", "LogicalOr", "LogicalXor",
        "Logsumexp", "Matmul", "Max", "MaxPool", "Maximum", "Mean", "Median", "Meshgrid", "Min", "Minimum", "Mod",
        "Moments", "Moveaxis", "MultiHot", "Multiply", "NanToNum", "Negative", "Norm", "Normalize", "NotEqual",
        "OneHot", "OnesLike", "Outer", "Pad", "PadImages", "Polar", "Power", "Prod", "Ptp", "RFFT", "RGBToGrayscale",
        "RGBToHSV", "RMSNorm", "Rad2deg", "Ravel", "Reciprocal", "Relu", "Relu6", "Repeat", "Reshape", "Resize", "Roll",
        "Rot90", "Round", "Rsqrt", "STFT", "SaturateCast", "Scatter", "ScatterUpdate", "Selu", "SeparableConv",
        "Sigmoid", "Sign", "Silu", "Sin", "Sinc", "Sinh", "Slice", "SliceUpdate", "SobelEdges", "SoftShrink", "Softmax",
        "Softplus", "Softsign", "Sort", "SpaceToDepth", "SparsePlus", "SparseSigmoid", "Sparsemax", "Split", "Sqrt",
        "Square", "Squareplus", "Squeeze", "Stack", "Std", "StopGradient", "Subtract", "Sum", "Swapaxes", "Take",
        "TakeAlongAxis", "Tan", "Tanh", "TanhShrink", "Tensordot", "Threshold", "Tile", "TopK", "Trace", "Transpose",
        "Tril", "Triu", "TrueDivide", "Trunc", "Unfold", "Unstack", "Var", "Vdot", "Vsplit", "Vstack", "Where",
        "ZerosLike",
    ]
)  # fmt: skip
_FUNCTION_NAME_BY_OPERATOR = {
    "BatchNorm": "batch_normalization",
    "CDist": "cdist",
    "CropImages": "image.crop_images",
    "ExtractPatches": "image.extract_patches",
    "FFT": "fft",
    "FFT2": "fft2",
    "HSVToRGB": "image.hsv_to_rgb",
    "IRFFT": "irfft",
    "ISTFT": "istft",
    "LayerNorm": "layer_normalization",
    "PadImages": "image.pad_images",
    "RFFT": "rfft",
    "RGBToGrayscale": "image.rgb_to_grayscale",
    "RGBToHSV": "image.rgb_to_hsv",
    "RMSNorm": "rms_normalization",
    "Resize": "image.resize",
    "STFT": "stft",
    "SobelEdges": "image.sobel_edges",
}


def operator_function(name: str) -> Callable[..., Any]:
    """The function of the operator `name`: one of `keras.ops`, or of this module."""
    if name in _FUNCTION_BY_OPERATOR:
        return _FUNCTION_BY_OPERATOR[name]
    ops_attribute: Any = keras.ops
    for attribute_name in _FUNCTION_NAME_BY_OPERATOR.get(name, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()).split(
        "."
    ):
        ops_attribute = getattr(ops_attribute, attribute_name)
    return ops_attribute  # type: ignore[no-any-return]


def _einsum(*operands: Tensor, subscripts: str) -> Tensor:
    return keras.ops.einsum(subscripts, *operands)


def _constant(anchor: Tensor, value: Tensor) -> Tensor:
    if not isinstance(anchor, keras.KerasTensor):
        return keras.ops.convert_to_tensor(value)
    zero = keras.ops.cast(keras.ops.max(keras.ops.zeros_like(anchor)), keras.backend.standardize_dtype(value.dtype))
    return keras.ops.add(zero, value)  # Keras 3 cuts off what no input leads to


def infer_open_size(shape: Sequence[int | None]) -> tuple[int, ...]:
    """A shape to reshape to, its open size left to be inferred: `ops.shape(x)` has one for the batch."""
    return tuple(-1 if size is None else size for size in shape)


def _reshape(tensor: Tensor, newshape: Sequence[int | None]) -> Tensor:
    return keras.ops.reshape(tensor, infer_open_size(newshape))


_FUNCTION_BY_OPERATOR: dict[str, Callable[..., Any]] = {
    "Constant": _constant,
    "Einsum": _einsum,
    "GetItem": operator.getitem,
    "Reshape": _reshape,
}


def is_tensor(argument: Any) -> bool:
    """Whether `argument` is a symbolic tensor of either Keras, or a weight of a Keras 3 layer."""
    # tf_keras has no public test for its symbolic tensors; TensorFlow's eager tensors have no history
    return isinstance(argument, (keras.KerasTensor, keras.Variable)) or hasattr(argument, "_keras_history")


def encode_argument(argument: Any, tensors: list[KerasTensor]) -> Any:
    """`argument` as JSON; a tensor becomes `{"tensor": i}` and is appended to `tensors`.

    Raises:
        TypeError: it holds something that JSON cannot, such as a function.
    """
    if is_tensor(argument):
        tensors.append(argument)
        return {"tensor": len(tensors) - 1}
    if isinstance(argument, slice):
        return {
            "slice": [encode_argument(element, tensors) for element in (argument.start, argument.stop, argument.step)]
        }
    if isinstance(argument, (tuple, list)):
        return {
            "tuple" if isinstance(argument, tuple) else "list": [
                encode_argument(element, tensors) for element in argument
            ]
        }
    if argument is Ellipsis:
        return {"ellipsis": True}
    if isinstance(argument, (np.ndarray, tf.Tensor)):
        return {"array": np.asarray(argument).tolist(), "dtype": np.asarray(argument).dtype.name}
    scalar = argument.item() if isinstance(argument, np.generic) else argument
    if scalar is None or isinstance(scalar, (bool, int, float, str)):
        return scalar
    raise TypeError(f"a {type(argument).__name__} among its arguments")


def decode_argument(encoded_argument: Any, tensors: Sequence[Tensor]) -> Any:
    """The inverse of `encode_argument`, with `tensors` in place of those it collected."""
    if not isinstance(encoded_argument, dict):
        return encoded_argument
    ((tag, payload),) = ((key, encoded_argument[key]) for key in encoded_argument if key != "dtype")
    if tag == "tensor":
        return tensors[payload]
    if tag == "array":
        return np.array(payload, encoded_argument["dtype"])
    if tag == "ellipsis":
        return ...
    elements = [decode_argument(element, tensors) for element in payload]
    return slice(*elements) if tag == "slice" else tuple(elements) if tag == "tuple" else elements


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a layer call as JSON, with the shapes and types of its tensors.

    Raises:
        TypeError: they hold something that JSON cannot.
    """
    tensors: list[KerasTensor] = []
    encoded_call = {
        "args": [encode_argument(argument, tensors) for argument in args],
        "kwargs": {key: encode_argument(argument, tensors) for key, argument in kwargs.items()},
    }
    specs = [[list(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)] for tensor in tensors]
    return {**encoded_call, "tensors": specs}


def run_encoded_call(layer: KerasLayer, encoded_call: dict[str, Any]) -> None:
    """Call a Keras 3 layer on symbolic tensors as `encode_call` has stored it."""
    tensors = [keras.KerasTensor(tuple(shape), dtype) for shape, dtype in encoded_call["tensors"]]
    args, kwargs = _decode_arguments(encoded_call, tensors)
    layer(*args, **kwargs)


def _decode_arguments(encoded_call: dict[str, Any], tensors: Sequence[Tensor]) -> tuple[list[Any], dict[str, Any]]:
    args = [decode_argument(encoded_argument, tensors) for encoded_argument in encoded_call["args"]]
    return args, {key: decode_argument(encoded, tensors) for key, encoded in encoded_call["kwargs"].items()}


def apply_operator(name: str, encoded_call: dict[str, Any], tensors: Sequence[Tensor]) -> TensorTree:
    """Apply the operator `name` to `tensors` and the stored arguments `{"args": .., "kwargs": ..}`."""
    args, kwargs = _decode_arguments(encoded_call, tensors)
    return operator_function(name)(*args, **kwargs)
