"""Scratch memory that TensorFlow Lite Micro's portable kernels ask for, from the shapes of an operator.

It lies in the planned part of the arena while the operator runs. Optimized kernels (CMSIS-NN, Xtensa) ask for more.

Source: tensorflow/tflite-micro, the Prepare functions of tensorflow/lite/micro/kernels; held against the allocator of
the PyPI package, operator by operator, in tests/tflite/test_tflite_plan.py.
"""

from collections.abc import Callable

from edgepipe.tflite.model import Operator, Tensor

WORD = 4  # bytes of an int32_t, an int and a float
POINTER = 8  # bytes; 4 on a 32-bit device
_PACKED = ("int4",)


def scratch(operator: Operator) -> tuple[int, ...]:
    """Bytes of each scratch buffer that the operator's kernel asks for; none for most operators."""
    rule = _RULES.get(operator.name)
    return () if rule is None or operator.custom else rule(operator)


def _unpacked_weights(operator: Operator) -> tuple[int, ...]:
    """Weights of 4 bits are unpacked to a byte each."""
    weights = operator.input(1)
    return (weights.elements,) if weights is not None and weights.dtype in _PACKED else ()


def _transposed(operator: Operator) -> tuple[int, ...]:
    """A sum for each output: 32 bits for int8, 64 bits for int16; biases of 16 bits are widened to 64."""
    data, bias, output = operator.input(2), operator.input(3), _output(operator)
    if data is None or output is None or data.dtype not in ("int8", "int16"):
        return ()
    if data.dtype == "int8":
        return (output.elements * WORD,)
    widened = (bias.elements * 2 * WORD,) if bias is not None and bias.dtype == "int16" else ()
    return (output.elements * 2 * WORD, *widened)


def _averaged(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, the axes without repetition, and for integers a sum for each output."""
    data, axes, output = operator.input(0), operator.input(1), _output(operator)
    if data is None or axes is None or output is None:
        return ()
    sums = (output.elements * WORD,) if data.dtype in ("int8", "int16") else ()
    return (len(data.shape) * WORD, axes.elements * WORD, *sums)


def _extreme(operator: Operator) -> tuple[int, ...]:
    """A counter for each axis of the input, and the axes without repetition."""
    data, axes = operator.input(0), operator.input(1)
    return (len(data.shape) * WORD, axes.elements * WORD) if data is not None and axes is not None else ()


def _mirrored(operator: Operator) -> tuple[int, ...]:
    """Strides of the input and of the output."""
    data = operator.input(0)
    return (len(data.shape) * WORD,) * 2 if data is not None else ()


def _added(operator: Operator) -> tuple[int, ...]:
    """A pointer to each input: 64 bits wide here."""
    return (len(operator.inputs) * POINTER,)


def _svdf(operator: Operator) -> tuple[int, ...]:
    """A sum for each filter and sample, and for int8 one for each output."""
    data, filters, output = operator.input(0), operator.input(1), _output(operator)
    if data is None or filters is None or output is None or not data.shape or not filters.shape:
        return ()
    sums = data.shape[0] * filters.shape[0] * WORD
    return (sums, output.elements * WORD) if data.dtype == "int8" else (sums,)


def _lstm(operator: Operator) -> tuple[int, ...]:
    """Four gates of the size of the cell state, in its type."""
    state = operator.input(19)
    return (state.bytes,) * 4 if state is not None else ()


def _output(operator: Operator) -> Tensor | None:
    return operator.outputs[0] if operator.outputs else None


_RULES: dict[str, Callable[[Operator], tuple[int, ...]]] = {
    "CONV_2D": _unpacked_weights,
    "DEPTHWISE_CONV_2D": _unpacked_weights,
    "FULLY_CONNECTED": _unpacked_weights,
    "TRANSPOSE_CONV": _transposed,
    "MEAN": _averaged,
    "SUM": _averaged,
    "REDUCE_MAX": _extreme,
    "REDUCE_MIN": _extreme,
    "REDUCE_ALL": _extreme,
    "MIRROR_PAD": _mirrored,
    "ADD_N": _added,
    "SVDF": _svdf,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}
