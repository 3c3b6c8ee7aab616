"""Scratch memory that TensorFlow Lite Micro's portable kernels request, from the shapes of an operator.

It lies in the planned part of the arena while the operator runs. Optimized kernels (CMSIS-NN, Xtensa) request more.

Source: tensorflow/tflite-micro, the Prepare functions of tensorflow/lite/micro/kernels; checked against the allocator
of the PyPI package, operator by operator, in tests/tflite/test_tflite_plan.py.
"""

from collections.abc import Callable

from edgepipe.tflite.model import Operator, Tensor

WORD = 4  # bytes of an int32_t, an int and a float
POINTER = 8  # bytes; 4 on a 32-bit device
_PACKED_TYPES = ("int4",)


def scratch_sizes(operator: Operator) -> tuple[int, ...]:
    """Bytes of each scratch buffer that the operator's kernel requests; none for most operators."""
    rule = _SCRATCH_RULES.get(operator.name)
    return () if rule is None or operator.is_custom else rule(operator)


def _unpacked_weights(operator: Operator) -> tuple[int, ...]:
    """Weights of 4 bits are unpacked to a byte each."""
    weights = operator.input(1)
    return (weights.elements,) if weights is not None and weights.dtype in _PACKED_TYPES else ()


def _transpose_conv(operator: Operator) -> tuple[int, ...]:
    """An accumulator for each output: 32 bits for int8, 64 bits for int16; 16-bit biases are widened to 64."""
    tensor, bias, output = operator.input(2), operator.input(3), _first_output(operator)
    if tensor is None or output is None or tensor.dtype not in ("int8", "int16"):
        return ()
    if tensor.dtype == "int8":
        return (output.elements * WORD,)
    wide_bias = (bias.elements * 2 * WORD,) if bias is not None and bias.dtype == "int16" else ()
    return (output.elements * 2 * WORD, *wide_bias)


def _mean(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, the axes without repetition, and for integers a sum for each output."""
    tensor, axes, output = operator.input(0), operator.input(1), _first_output(operator)
    if tensor is None or axes is None or output is None:
        return ()
    sums = (output.elements * WORD,) if tensor.dtype in ("int8", "int16") else ()
    return (len(tensor.shape) * WORD, axes.elements * WORD, *sums)


def _reduce_extreme(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, and the axes without repetition."""
    tensor, axes = operator.input(0), operator.input(1)
    return (len(tensor.shape) * WORD, axes.elements * WORD) if tensor is not None and axes is not None else ()


def _mirror_pad(operator: Operator) -> tuple[int, ...]:
    """Strides of the input and of the output."""
    tensor = operator.input(0)
    return (len(tensor.shape) * WORD,) * 2 if tensor is not None else ()


def _add_n(operator: Operator) -> tuple[int, ...]:
    """A pointer to each input: 64 bits wide here."""
    return (len(operator.inputs) * POINTER,)


def _svdf(operator: Operator) -> tuple[int, ...]:
    """A sum for each filter and sample, and for int8 one for each output."""
    tensor, filters, output = operator.input(0), operator.input(1), _first_output(operator)
    if tensor is None or filters is None or output is None or not tensor.shape or not filters.shape:
        return ()
    sums = tensor.shape[0] * filters.shape[0] * WORD
    return (sums, output.elements * WORD) if tensor.dtype == "int8" else (sums,)


def _lstm(operator: Operator) -> tuple[int, ...]:
    """Four gates of the size of the cell state, in its type."""
    state = operator.input(19)
    return (state.bytes,) * 4 if state is not None else ()


def _first_output(operator: Operator) -> Tensor | None:
    return operator.outputs[0] if operator.outputs else None


_SCRATCH_RULES: dict[str, Callable[[Operator], tuple[int, ...]]] = {
    "CONV_2D": _unpacked_weights,
    "DEPTHWISE_CONV_2D": _unpacked_weights,
    "FULLY_CONNECTED": _unpacked_weights,
    "TRANSPOSE_CONV": _transpose_conv,
    "MEAN": _mean,
    "SUM": _mean,
    "REDUCE_MAX": _reduce_extreme,
    "REDUCE_MIN": _reduce_extreme,
    "REDUCE_ALL": _reduce_extreme,
    "MIRROR_PAD": _mirror_pad,
    "ADD_N": _add_n,
    "SVDF": _svdf,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}
