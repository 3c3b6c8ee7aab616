"""The few layers and activations that the bridge needs and tf_keras lacks; all are serializable by name."""

import json
import operator
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

PACKAGE = "edgepipe"
# the keras.ops functions a graph may hold, by the name of their Operation class; each computes and nothing else
OPERATORS = frozenset(
    [
        "Absolute", "Add", "All", "Amax", "Amin", "Any", "Argmax", "Argmin", "Average", "AveragePool", "Cast", "Clip",
        "Concatenate", "Cos", "Divide", "Einsum", "Elu", "Equal", "Exp", "ExpandDims", "Expm1", "Flip", "Floor", "Gelu",
        "GetItem", "Greater", "GreaterEqual", "HardSigmoid", "HardSilu", "LeakyRelu", "Less", "LessEqual", "Log",
        "Log1p", "LogSigmoid", "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "Logsumexp", "Matmul", "Max",
        "MaxPool", "Maximum", "Mean", "Min", "Minimum", "Moveaxis", "Multiply", "Negative", "NotEqual", "Pad", "Power",
        "Prod", "Reciprocal", "Relu", "Relu6", "Repeat", "Reshape", "Roll", "Rsqrt", "Selu", "Sigmoid", "Sign",
        "Silu", "Sin",
        "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Square", "Squeeze", "Stack", "Std", "Subtract", "Sum",
        "Swapaxes", "Take", "Tanh", "Tile", "Transpose", "TrueDivide", "Var", "Where",
    ]
)  # fmt: skip


@tf_keras.utils.register_keras_serializable(package=PACKAGE)  # type: ignore[untyped-decorator]
def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """relu6(x + 3) / 6, as Keras 3 defines it; tf_keras's own of that name is clip(0.2 x + 0.5, 0, 1)."""
    return tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable(package=PACKAGE)  # type: ignore[untyped-decorator]
def hard_silu(x: tf.Tensor) -> tf.Tensor:
    """x relu6(x + 3) / 6 (Howard et al. 2019, arXiv 1905.02244); becomes TFLite's HARD_SWISH."""
    return x * tf.nn.relu6(x + 3.0) / 6.0


@tf_keras.utils.register_keras_serializable(package=PACKAGE)  # type: ignore[untyped-decorator]
def leaky_relu(x: tf.Tensor) -> tf.Tensor:
    """max(x, 0.2 x), the slope of Keras 3's activation of that name."""
    return tf.nn.leaky_relu(x, alpha=0.2)


@tf_keras.utils.register_keras_serializable(package=PACKAGE)  # type: ignore[untyped-decorator]
def log_softmax(x: tf.Tensor) -> tf.Tensor:
    """x - log(sum(exp(x))) over the last axis."""
    return tf.nn.log_softmax(x)


@tf_keras.utils.register_keras_serializable(package=PACKAGE)
class Operator(tf_keras.layers.Layer):  # type: ignore[misc]
    """One node of `keras.ops` (`x * 2`, `keras.ops.mean(x, axis=1)`) as a layer, evaluated by keras.ops itself.

    `operator` is the name of the Operation class; `arguments` is JSON of `args` and `kwargs` as `encode` gives them, in
    which `{"tensor": i}` stands for the i-th input of the layer. Inputs: one tensor or a list of tensors.
    """

    def __init__(self, operator: str, arguments: str, **common: Any) -> None:
        if operator not in OPERATORS:
            raise ValueError(f"operator '{operator}' is not one of: {', '.join(sorted(OPERATORS))}")
        super().__init__(**common)
        # as text: tf_keras wraps lists and dicts that are set on a layer, and the wrappers do not serialize
        self.operator, self.arguments = operator, arguments

    def call(self, inputs: Any) -> Any:
        """Apply the operator to the inputs and the stored constants."""
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        stored = json.loads(self.arguments)
        args = [decode(value, tensors) for value in stored["args"]]
        named = {key: decode(value, tensors) for key, value in stored["kwargs"].items()}
        return _function(self.operator)(*args, **named)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "operator": self.operator, "arguments": self.arguments}


def _function(name: str) -> Callable[..., Any]:
    if name == "GetItem":
        return operator.getitem
    function: Callable[..., Any] = getattr(keras.ops, re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower())
    return function


def encode(value: Any, tensors: list[Any]) -> Any:
    """`value` as JSON; a tensor becomes `{"tensor": i}` and is appended to `tensors`.

    Raises:
        TypeError: something that JSON cannot hold, such as a variable.
    """
    if isinstance(value, keras.KerasTensor):
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
