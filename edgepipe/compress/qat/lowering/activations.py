"""Activations decomposed into operators that TFLite has in int8."""

import tf_keras

from edgepipe.compress.qat.lowering.lowering_context import LoweringContext
from edgepipe.models.keras_types import KerasActivation, KerasTensor

K = tf_keras.layers
# one int8 operator each, for every rank
SINGLE_OPERATOR_ACTIVATIONS = frozenset({"softmax", "sigmoid", "tanh", "gelu", "hard_silu", "log_softmax", "elu"})


def lower_activation(ctx: LoweringContext, x: KerasTensor, activation: KerasActivation, name: str) -> KerasTensor:
    """The activation of `x`, as layers that are one TFLite operator each; `x` itself for `linear`.

    Args:
        ctx: The lowering.
        x: The input, with channels last.
        activation: The activation of a tf_keras layer.
        name: Name of the layer that computes the output.
    """
    activation_name = str(getattr(activation, "__name__", type(activation).__name__))
    if activation_name == "linear":
        return x
    if activation_name in ("softmax", "log_softmax"):
        return _decompose_activation(ctx, x, activation_name, activation, name)
    nhwc_or_vector, restore_shape = ctx.to_nhwc_or_vector(x)
    return restore_shape(_decompose_activation(ctx, nhwc_or_vector, activation_name, activation, name))


def _decompose_activation(
    ctx: LoweringContext, x: KerasTensor, activation_name: str, activation: KerasActivation, name: str
) -> KerasTensor:
    if activation_name in ("relu", "relu6"):
        return ctx.relu(x, 6.0 if activation_name == "relu6" else None, name)
    if activation_name == "leaky_relu":
        return ctx.apply(K.LeakyReLU(alpha=0.2, name=name), x)
    if activation_name in ("swish", "silu"):  # x sigmoid(x) is two operators in TFLite: LOGISTIC and MUL
        sigmoid_x = ctx.apply(K.Activation("sigmoid", name=f"{name}_sigmoid"), x)
        return ctx.apply(K.Multiply(name=name), [x, sigmoid_x])
    if activation_name == "hard_sigmoid":  # relu6(x + 3) / 6: ADD with RELU6, then MUL
        shifted_x = ctx.op("Add", x, f"{_name_prefix(ctx, name)}shift", 3.0)
        clipped_x = ctx.relu(shifted_x, 6.0, f"{name}_relu6")
        return ctx.op("Multiply", clipped_x, f"{_name_prefix(ctx, name)}sixth", 1.0 / 6.0)
    layer = K.Activation(activation, name=name)
    if activation_name in SINGLE_OPERATOR_ACTIVATIONS:
        return ctx.apply(layer, x)
    return ctx.apply(layer, x, None, f"the activation {activation_name}")


def _name_prefix(ctx: LoweringContext, name: str) -> str:
    return "" if name == ctx.current_layer.name else f"{name.removeprefix(ctx.current_layer.name).strip('_')}_"
