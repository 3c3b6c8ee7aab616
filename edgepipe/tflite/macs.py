"""Multiply-accumulates of one operator, from the shapes of its tensors.

The products that an operator's definition sums are counted: padding counts as data; biases and elementwise arithmetic
count nothing. That is the convention of the MobileNet papers (arXiv 1704.04861, table 4: 569 million for
MobileNetV1 1.0 224).
"""

import math
from collections.abc import Callable

from edgepipe.tflite.model import OptionValue, Tensor

OptionalTensors = tuple[Tensor | None, ...]


def _convolution_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """output x kernel height x kernel width x input channels of one group; weights are (out, height, width, in)."""
    return output.element_count * math.prod(_input_shape(inputs, 1)[1:])


def _depthwise_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """output x kernel height x kernel width; weights are (1, height, width, out)."""
    return output.element_count * math.prod(_input_shape(inputs, 1)[1:3])


def _transpose_conv_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """Every input position meets every weight of its channel; weights are (out, height, width, in), input third."""
    return math.prod(_input_shape(inputs, 2)) * math.prod(_input_shape(inputs, 1)[:-1])


def _convolution_3d_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """output x kernel volume x input channels; weights are (depth, height, width, in, out)."""
    return output.element_count * math.prod(_input_shape(inputs, 1)[:-1])


def _dense_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """output x inputs of one unit; weights are (out, in)."""
    return output.element_count * _last_dimension(_input_shape(inputs, 1))


def _matmul_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """output x the dimension that is summed: the left one's last, or last but one when it is transposed."""
    shape = _input_shape(inputs, 0)
    return output.element_count * (shape[-2] if options.get("adjX") and len(shape) > 1 else _last_dimension(shape))


def _lstm_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """Per step: the four input, four recurrent, three peephole weights and the projection, each element once."""
    weight_count = sum(
        math.prod(_input_shape(inputs, position)) for position in (*range(1, 12), 16) if _is_present(inputs, position)
    )
    return _count_steps(inputs) * weight_count


def _recurrent_macs(inputs: OptionalTensors, output: Tensor, options: dict[str, OptionValue]) -> int:
    """Per step: the input and the recurrent weights."""
    return _count_steps(inputs) * (math.prod(_input_shape(inputs, 1)) + math.prod(_input_shape(inputs, 2)))


def _is_present(inputs: OptionalTensors, position: int) -> bool:
    return position < len(inputs) and inputs[position] is not None


def _input_shape(inputs: OptionalTensors, position: int) -> tuple[int, ...]:
    tensor = inputs[position] if position < len(inputs) else None
    return (0,) if tensor is None else tensor.shape


def _last_dimension(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1


def _count_steps(inputs: OptionalTensors) -> int:
    """Batch x time: all dimensions of the data but the last."""
    return math.prod(_input_shape(inputs, 0)[:-1])


MAC_RULES: dict[str, Callable[[OptionalTensors, Tensor, dict[str, OptionValue]], int]] = {
    "CONV_2D": _convolution_macs,
    "DEPTHWISE_CONV_2D": _depthwise_macs,
    "TRANSPOSE_CONV": _transpose_conv_macs,
    "CONV_3D": _convolution_3d_macs,
    "FULLY_CONNECTED": _dense_macs,
    "BATCH_MATMUL": _matmul_macs,
    "LSTM": _lstm_macs,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm_macs,
    "RNN": _recurrent_macs,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _recurrent_macs,
    "SVDF": _recurrent_macs,
}


def count(
    operator_name: str, inputs: OptionalTensors, outputs: OptionalTensors, options: dict[str, OptionValue]
) -> int:
    """The multiply-accumulates of one run of an operator; 0 for those without a rule.

    Args:
        operator_name: of the builtin operator, as in the schema.
        inputs: its inputs in the schema's order, None for absent ones.
        outputs: its outputs.
        options: the fields of its option table; only `adjX` of BATCH_MATMUL matters.
    """
    mac_rule = MAC_RULES.get(operator_name)
    output = outputs[0] if outputs else None
    return mac_rule(inputs, output, options) if mac_rule is not None and output is not None else 0
