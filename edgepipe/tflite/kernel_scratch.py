"""Scratch memory that TensorFlow Lite Micro's portable kernels request, from the shapes of an operator.

It lies in the planned part of the arena while the operator runs. Optimized kernels (CMSIS-NN, Xtensa) request more.

Source: tensorflow/tflite-micro, the Prepare functions of tensorflow/lite/micro/kernels; checked against the allocator
of the PyPI package, operator by operator, in tests/tflite/test_tflite_plan.py.
"""

from collections.abc import Callable

from edgepipe.tflite.model import Operator, Tensor

WORD_BYTES = 4  # bytes of an int32_t, an int and a float
HOST_POINTER_BYTES = 8  # of the PyPI package
_PACKED_TYPES = ("int4",)


def scratch_sizes(operator: Operator, pointer_bytes: int = HOST_POINTER_BYTES) -> tuple[int, ...]:
    """Bytes of each scratch buffer that the operator's kernel requests; none for most operators."""
    if operator.name == "ADD_N":
        return (len(operator.inputs) * pointer_bytes,)  # a pointer to each input
    scratch_rule = _SCRATCH_RULES.get(operator.name)
    return () if scratch_rule is None or operator.is_custom else scratch_rule(operator)


def _unpacked_weight_scratch(operator: Operator) -> tuple[int, ...]:
    """Weights of 4 bits are unpacked to a byte each."""
    weights = operator.input(1)
    return (weights.element_count,) if weights is not None and weights.dtype in _PACKED_TYPES else ()


def _transpose_conv_scratch(operator: Operator) -> tuple[int, ...]:
    """An accumulator for each output: 32 bits for int8, 64 bits for int16; 16-bit biases are widened to 64."""
    input_tensor, bias, output = operator.input(2), operator.input(3), _first_output(operator)
    if input_tensor is None or output is None or input_tensor.dtype not in ("int8", "int16"):
        return ()
    if input_tensor.dtype == "int8":
        return (output.element_count * WORD_BYTES,)
    wide_bias_sizes = (bias.element_count * 2 * WORD_BYTES,) if bias is not None and bias.dtype == "int16" else ()
    return (output.element_count * 2 * WORD_BYTES, *wide_bias_sizes)


def _mean_scratch(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, the axes without repetition, and for integers a sum for each output."""
    input_tensor, axes, output = operator.input(0), operator.input(1), _first_output(operator)
    if input_tensor is None or axes is None or output is None:
        return ()
    sum_sizes = (output.element_count * WORD_BYTES,) if input_tensor.dtype in ("int8", "int16") else ()
    return (len(input_tensor.shape) * WORD_BYTES, axes.element_count * WORD_BYTES, *sum_sizes)


def _reduce_extreme_scratch(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, and the axes without repetition."""
    input_tensor, axes = operator.input(0), operator.input(1)
    return (
        (len(input_tensor.shape) * WORD_BYTES, axes.element_count * WORD_BYTES)
        if input_tensor is not None and axes is not None
        else ()
    )


def _mirror_pad_scratch(operator: Operator) -> tuple[int, ...]:
    """Strides of the input and of the output."""
    input_tensor = operator.input(0)
    return (len(input_tensor.shape) * WORD_BYTES,) * 2 if input_tensor is not None else ()


def _svdf_scratch(operator: Operator) -> tuple[int, ...]:
    """A sum for each filter and sample, and for int8 one for each output."""
    input_tensor, filter_tensor, output = operator.input(0), operator.input(1), _first_output(operator)
    if (
        input_tensor is None
        or filter_tensor is None
        or output is None
        or not input_tensor.shape
        or not filter_tensor.shape
    ):
        return ()
    sum_bytes = input_tensor.shape[0] * filter_tensor.shape[0] * WORD_BYTES
    return (sum_bytes, output.element_count * WORD_BYTES) if input_tensor.dtype == "int8" else (sum_bytes,)


def _lstm_scratch(operator: Operator) -> tuple[int, ...]:
    """Four gates of the size of the cell state, in its type."""
    cell_state = operator.input(19)
    return (cell_state.bytes,) * 4 if cell_state is not None else ()


def _first_output(operator: Operator) -> Tensor | None:
    return operator.outputs[0] if operator.outputs else None


_SCRATCH_RULES: dict[str, Callable[[Operator], tuple[int, ...]]] = {
    "CONV_2D": _unpacked_weight_scratch,
    "DEPTHWISE_CONV_2D": _unpacked_weight_scratch,
    "FULLY_CONNECTED": _unpacked_weight_scratch,
    "TRANSPOSE_CONV": _transpose_conv_scratch,
    "MEAN": _mean_scratch,
    "SUM": _mean_scratch,
    "REDUCE_MAX": _reduce_extreme_scratch,
    "REDUCE_MIN": _reduce_extreme_scratch,
    "REDUCE_ALL": _reduce_extreme_scratch,
    "MIRROR_PAD": _mirror_pad_scratch,
    "SVDF": _svdf_scratch,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm_scratch,
}
