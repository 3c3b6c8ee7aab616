"""Layers that lowering keeps as they are: they are one operator already, or no rule can decompose them."""

from edgepipe.compress.qat.lowering.lowering_context import CallArguments, LayerRule, LoweringCall, LoweringContext
from edgepipe.models.keras_types import TensorTree, TfKerasLayer


def copy_layer(layer: TfKerasLayer) -> TfKerasLayer:
    """A new layer with the same options and fresh weights."""
    return type(layer).from_config(layer.get_config())


def keep_operator(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
    """The rule for a layer that is one TFLite operator, or none."""
    return ctx.apply(
        copy_layer(call.layer), CallArguments([call.inputs, *call.args]), call.layer.get_weights(), **call.kwargs
    )


def keep_opaque(reason: str) -> LayerRule:
    """The rule for a layer that fake-quant cannot reach inside, because of `reason`."""

    def lower_opaque(ctx: LoweringContext, call: LoweringCall) -> TensorTree:
        args = CallArguments(
            [call.inputs, *call.args]
        )  # as in the original: attention takes its tensors as separate arguments
        return ctx.apply(copy_layer(call.layer), args, call.layer.get_weights(), reason, **call.kwargs)

    return lower_opaque
