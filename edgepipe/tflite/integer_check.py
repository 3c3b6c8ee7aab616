"""Checks that a model is fully integer: every operator, and every tensor that an operator or the interface uses."""

from edgepipe.core.metric import Finding
from edgepipe.tflite.compiled_file import COMPILER_BY_CODE
from edgepipe.tflite.model import HANDLE_TYPES, INTEGER_TYPES, Model, Operator, Tensor, TensorKey

RULE_NAME = "integer-only"
FLEX_PREFIX = "Flex"  # TensorFlow's own kernels, run by the Flex delegate, carry this prefix


def check_integer_only(model: Model, allow_float_interface: bool = False) -> list[Finding]:
    """What keeps `model` from being fully integer, in order of execution; empty when it is.

    With `allow_float_interface` the model's own inputs and outputs may be floating point, together with the QUANTIZE
    (of token ids, the CAST) that reads such an input and the DEQUANTIZE that gives such an output, and nothing else.
    """
    float_input_keys, float_output_keys = _float_tensor_keys(model.inputs), _float_tensor_keys(model.outputs)
    allowed_keys = {*float_input_keys, *float_output_keys} if allow_float_interface else set()
    findings = [] if allow_float_interface else _check_interface(model)
    for operator in model.operators:
        float_tensors = [tensor for tensor in operator.tensors if tensor.dtype not in INTEGER_TYPES | HANDLE_TYPES]
        is_boundary = _is_boundary(operator, float_input_keys, float_output_keys)
        if operator.is_custom and operator.name not in COMPILER_BY_CODE:  # those accelerators compute on integers only
            findings.append(_custom_finding(operator))
        elif float_tensors and not (is_boundary and all(tensor.key in allowed_keys for tensor in float_tensors)):
            findings.append(_float_finding(operator, float_tensors, is_boundary))
    return findings


def _check_interface(model: Model) -> list[Finding]:
    tensors_by_side = (("input", model.inputs_by_name), ("output", model.outputs_by_name))
    return [
        Finding(
            rule=RULE_NAME,
            place=f"{side} '{name}'",
            observed=f"is {tensor.dtype}",
            suggestion=f"convert with an int8 {side}, or allow a float interface",
        )
        for side, tensor_by_name in tensors_by_side
        for name, tensor in tensor_by_name.items()
        if tensor.dtype not in INTEGER_TYPES
    ]


def _float_finding(operator: Operator, float_tensors: list[Tensor], is_boundary: bool) -> Finding:
    tensors_text = ", ".join(f"tensor '{tensor.name}' is {tensor.dtype}" for tensor in dict.fromkeys(float_tensors))
    return Finding(
        rule=RULE_NAME,
        place=operator.location,
        observed=f"{tensors_text} (at the model's float interface)" if is_boundary else tensors_text,
        suggestion="convert with int8 input and output" if is_boundary else "quantize this layer, or replace it",
    )


def _custom_finding(operator: Operator) -> Finding:
    is_flex = operator.name.startswith(FLEX_PREFIX)
    return Finding(
        rule=RULE_NAME,
        place=operator.location,
        observed="runs TensorFlow's own kernel (Flex)"
        if is_flex
        else "is a custom operator, whose arithmetic is unknown",
        suggestion="replace the layer with one that TensorFlow Lite has a built-in operator for",
    )


def _is_boundary(operator: Operator, float_input_keys: set[TensorKey], float_output_keys: set[TensorKey]) -> bool:
    """Whether the operator converts between the model's float interface and its integers."""
    if operator.name in ("QUANTIZE", "CAST"):
        return any(tensor.key in float_input_keys for tensor in operator.inputs if tensor is not None)
    if operator.name == "DEQUANTIZE":
        return any(tensor.key in float_output_keys for tensor in operator.outputs if tensor is not None)
    return False


def _float_tensor_keys(tensors: tuple[Tensor, ...]) -> set[TensorKey]:
    return {tensor.key for tensor in tensors if tensor.dtype not in INTEGER_TYPES}
