"""The proof that a model is fully integer: every operator, and every tensor that one of them or the interface uses."""

from edgepipe.core.metric import Finding
from edgepipe.tflite.model import INTEGERS, Model, Operator, Tensor

RULE = "integer-only"
FLEX = "Flex"  # TensorFlow's own kernels, run by the Flex delegate, carry this prefix

Key = tuple[int, int]


def findings(model: Model, allow_float_interface: bool = False) -> list[Finding]:
    """What keeps `model` from being fully integer, in order of execution; empty when it is.

    With `allow_float_interface` the model's own inputs and outputs may be floating point, together with the QUANTIZE
    that reads such an input and the DEQUANTIZE that makes such an output, and nothing else.
    """
    inputs, outputs = _floats(model.inputs), _floats(model.outputs)
    allowed = {*inputs, *outputs} if allow_float_interface else set()
    found = [] if allow_float_interface else _interface(model)
    for operator in model.operators:
        offenders = [tensor for tensor in operator.tensors if tensor.dtype not in INTEGERS]
        boundary = _is_boundary(operator, inputs, outputs)
        if operator.custom:
            found.append(_custom(operator))
        elif offenders and not (boundary and all(_key(tensor) in allowed for tensor in offenders)):
            found.append(_operator(operator, offenders, boundary))
    return found


def _interface(model: Model) -> list[Finding]:
    sides = (("input", model.input_names), ("output", model.output_names))
    return [
        Finding(
            rule=RULE,
            place=f"{side} '{name}'",
            observed=f"is {tensor.dtype}",
            suggestion=f"convert with an int8 {side}, or allow a float interface",
        )
        for side, names in sides
        for name, tensor in names.items()
        if tensor.dtype not in INTEGERS
    ]


def _operator(operator: Operator, offenders: list[Tensor], boundary: bool) -> Finding:
    tensors = ", ".join(f"tensor '{tensor.name}' is {tensor.dtype}" for tensor in dict.fromkeys(offenders))
    return Finding(
        rule=RULE,
        place=operator.place,
        observed=f"{tensors} (at the model's float interface)" if boundary else tensors,
        suggestion="convert with int8 input and output" if boundary else "quantize this layer, or replace it",
    )


def _custom(operator: Operator) -> Finding:
    flex = operator.name.startswith(FLEX)
    return Finding(
        rule=RULE,
        place=operator.place,
        observed="runs TensorFlow's own kernel (Flex)" if flex else "is a custom operator, whose arithmetic is unknown",
        suggestion="replace the layer with one that TensorFlow Lite has a built-in operator for",
    )


def _is_boundary(operator: Operator, inputs: set[Key], outputs: set[Key]) -> bool:
    """Whether the operator converts between the model's float interface and its integers."""
    if operator.name == "QUANTIZE":
        return any(_key(tensor) in inputs for tensor in operator.inputs if tensor is not None)
    if operator.name == "DEQUANTIZE":
        return any(_key(tensor) in outputs for tensor in operator.outputs if tensor is not None)
    return False


def _floats(tensors: tuple[Tensor, ...]) -> set[Key]:
    return {_key(tensor) for tensor in tensors if tensor.dtype not in INTEGERS}


def _key(tensor: Tensor) -> Key:
    return tensor.subgraph, tensor.index
