"""Activations written out in operators that TFLite has in int8."""

from typing import Any

import tf_keras

from edgepipe.compress.qat.lowering.lower import Lowering

K = tf_keras.layers
# computed by one int8 operator, whatever the rank
SINGLE_OPERATOR_ACTIVATIONS = frozenset({"softmax", "sigmoid", "tanh", "gelu", "hard_silu", "log_softmax"})


def lower_activation(low: Lowering, x: Any, function: Any, name: str) -> Any:
    """`function` of `x`, as layers of which each is one TFLite operator; nothing for `linear`."""
    kind = str(getattr(function, "__name__", type(function).__name__))
    if kind == "linear":
        return x
    if kind in ("softmax", "log_softmax"):
        return _decompose_activation(low, x, kind, function, name)
    level_x, restore_shape = low.to_nhwc_or_vector(x)
    return restore_shape(_decompose_activation(low, level_x, kind, function, name))


def _decompose_activation(low: Lowering, x: Any, kind: str, function: Any, name: str) -> Any:
    if kind in ("relu", "relu6"):
        return low.relu(x, 6.0 if kind == "relu6" else None, name)
    if kind == "leaky_relu":
        return low.apply(K.LeakyReLU(alpha=0.2, name=name), x)
    if kind in ("swish", "silu"):  # x sigmoid(x) is two operators in TFLite: LOGISTIC and MUL
        gate = low.apply(K.Activation("sigmoid", name=f"{name}_sigmoid"), x)
        return low.apply(K.Multiply(name=name), [x, gate])
    if kind == "hard_sigmoid":  # relu6(x + 3) / 6: ADD with RELU6, then MUL
        shifted_x = low.op("Add", x, f"{_name_prefix(low, name)}shift", 3.0)
        clipped_x = low.relu(shifted_x, 6.0, f"{name}_relu6")
        return low.op("Multiply", clipped_x, f"{_name_prefix(low, name)}sixth", 1.0 / 6.0)
    if kind == "elu":
        return lower_elu(low, x, name)
    layer = K.Activation(function, name=name)
    if kind in SINGLE_OPERATOR_ACTIVATIONS:
        return low.apply(layer, x)
    return low.apply(layer, x, None, f"the activation {kind}")


def lower_elu(low: Lowering, x: Any, name: str) -> Any:
    """relu(x) + exp(-relu(-x)) - 1: TensorFlow's converter has no quantized ELU, but all of these."""
    prefix = _name_prefix(low, name)
    negative_relu = low.relu(low.op("Multiply", x, f"{prefix}minus", -1.0), None, f"{name}_negative")
    exponential = low.op("Exp", low.op("Multiply", negative_relu, f"{prefix}exponent", -1.0), f"{prefix}exp")
    negative_part = low.op("Subtract", exponential, f"{prefix}below", 1.0)
    return low.apply(K.Add(name=name), [low.relu(x, None, f"{name}_positive"), negative_part])


def _name_prefix(low: Lowering, name: str) -> str:
    return "" if name == low.current_layer.name else f"{name.removeprefix(low.current_layer.name).strip('_')}_"
