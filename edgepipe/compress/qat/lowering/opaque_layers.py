"""Layers that are taken over as they are: because they are one operator, or because no rule reaches inside."""

from typing import Any

from edgepipe.compress.qat.lowering.lower import CallArguments, LayerRule, Lowering, LoweringCall


def copy_layer(layer: Any) -> Any:
    """A fresh layer with the same options."""
    return type(layer).from_config(layer.get_config())


def keep_operator(low: Lowering, call: LoweringCall) -> Any:
    """The rule for a layer that is one TFLite operator, or none."""
    return low.apply(
        copy_layer(call.layer), CallArguments([call.inputs, *call.args]), call.layer.get_weights(), **call.kwargs
    )


def keep_opaque(reason: str) -> LayerRule:
    """The rule for a layer whose inside fake-quant does not reach, for `reason`."""

    def lower_opaque(low: Lowering, call: LoweringCall) -> Any:
        args = CallArguments([call.inputs, *call.args])  # as it was called: attention takes its tensors one by one
        return low.apply(copy_layer(call.layer), args, call.layer.get_weights(), reason, **call.kwargs)

    return lower_opaque
