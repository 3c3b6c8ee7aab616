"""Activations written out in operators that TFLite has in int8."""

from typing import Any

import tf_keras

from edgepipe.compress.qat.lowering.lower import Lowering

K = tf_keras.layers
# computed by one int8 operator, whatever the rank
ONE_OPERATOR = frozenset({"softmax", "sigmoid", "tanh", "gelu", "hard_silu", "log_softmax"})


def activation(low: Lowering, x: Any, function: Any, name: str) -> Any:
    """`function` of `x`, as layers of which each is one TFLite operator; nothing for `linear`."""
    kind = str(getattr(function, "__name__", type(function).__name__))
    if kind == "linear":
        return x
    if kind in ("softmax", "log_softmax"):
        return _written_out(low, x, kind, function, name)
    inner, back = low.level(x)
    return back(_written_out(low, inner, kind, function, name))


def _written_out(low: Lowering, x: Any, kind: str, function: Any, name: str) -> Any:
    if kind in ("relu", "relu6"):
        return low.relu(x, 6.0 if kind == "relu6" else None, name)
    if kind == "leaky_relu":
        return low.apply(K.LeakyReLU(alpha=0.2, name=name), x)
    if kind in ("swish", "silu"):  # x sigmoid(x) is two operators in TFLite: LOGISTIC and MUL
        gate = low.apply(K.Activation("sigmoid", name=f"{name}_sigmoid"), x)
        return low.apply(K.Multiply(name=name), [x, gate])
    if kind == "hard_sigmoid":  # relu6(x + 3) / 6: ADD with RELU6, then MUL
        shifted = low.op("Add", x, f"{_tail(low, name)}shift", 3.0)
        clipped = low.relu(shifted, 6.0, f"{name}_relu6")
        return low.op("Multiply", clipped, f"{_tail(low, name)}sixth", 1.0 / 6.0)
    if kind == "elu":
        return elu(low, x, name)
    layer = K.Activation(function, name=name)
    if kind in ONE_OPERATOR:
        return low.apply(layer, x)
    return low.apply(layer, x, None, f"the activation {kind}")


def elu(low: Lowering, x: Any, name: str) -> Any:
    """relu(x) + exp(-relu(-x)) - 1: TensorFlow's converter has no quantized ELU, but all of these."""
    tail = _tail(low, name)
    negative = low.relu(low.op("Multiply", x, f"{tail}minus", -1.0), None, f"{name}_negative")
    decayed = low.op("Exp", low.op("Multiply", negative, f"{tail}exponent", -1.0), f"{tail}exp")
    below = low.op("Subtract", decayed, f"{tail}below", 1.0)
    return low.apply(K.Add(name=name), [low.relu(x, None, f"{name}_positive"), below])


def _tail(low: Lowering, name: str) -> str:
    return "" if name == low.current.name else f"{name.removeprefix(low.current.name).strip('_')}_"
