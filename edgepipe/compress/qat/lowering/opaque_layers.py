"""Layers that are taken over as they are: because they are one operator, or because no rule reaches inside."""

from typing import Any

from edgepipe.compress.qat.lowering.lower import Arguments, Call, Handler, Lowering


def copy(layer: Any) -> Any:
    """A fresh layer with the same options."""
    return type(layer).from_config(layer.get_config())


def as_it_is(low: Lowering, call: Call) -> Any:
    """The rule for a layer that is one TFLite operator, or none."""
    return low.apply(copy(call.layer), Arguments([call.inputs, *call.args]), call.layer.get_weights(), **call.kwargs)


def kept(reason: str) -> Handler:
    """The rule for a layer whose inside fake-quant does not reach, for `reason`."""

    def handle(low: Lowering, call: Call) -> Any:
        given = Arguments([call.inputs, *call.args])  # as it was called: attention takes its tensors one by one
        return low.apply(copy(call.layer), given, call.layer.get_weights(), reason, **call.kwargs)

    return handle
