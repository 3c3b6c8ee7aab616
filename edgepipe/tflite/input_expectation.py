"""The values that a trained model expects at an input: which becomes 0 and which 1 inside it, or from what to what.

Of a .tflite, what tells is preprocessing that edgepipe stored, the range of a quantized input, and operators that shift
and scale a float input before the first weights.
"""

from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.tflite.metadata import read_preprocessing
from edgepipe.tflite.model import Model, Operator, Tensor

PREPROCESSING_RULE = "preprocessing"  # of the findings that data are not as a model expects them
_MIN_WIDTH, _MAX_WIDTH = 0.5, 30.0  # of the data, in distances: below, inputs hardly differ for the model
_BYTE_WIDTH = 255.0  # some models scale to 0..255, or subtract the mean from 0..255
_EDGE_TOLERANCE = 0.1  # of the width of the data
_EXACT_ENDS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # what models scale their inputs to
_TYPICAL_IMAGE = (0.45, 0.27)  # mean and deviation of pixels as shares of their range
_MAX_SHIFT, _MAX_RATIO = 3.0, 5.0  # of means in deviations, and of deviations
_SAME_VALUES_OPERATORS = {
    *("CAST", "DEQUANTIZE", "EXPAND_DIMS", "PAD", "PADV2", "QUANTIZE", "RESHAPE", "RESIZE_BILINEAR"),
    *("RESIZE_NEAREST_NEIGHBOR", "SQUEEZE", "TRANSPOSE"),
}
_ARITHMETIC_OPERATORS = {"ADD", "SUB", "MUL", "DIV"}


@dataclass(frozen=True)
class InputExpectation:
    """The expectation of one input, and where it was read.

    `center` becomes 0 and `center` + `spread` becomes 1, for all channels or each. A `span` is what values must lie in:
    that of a quantized input, outside of which they are clipped.
    """

    input_name: str
    origin: str  # a clause on the model, such as "begins with Rescaling 'rescaling'"
    center: Array
    spread: Array
    span: tuple[float, float] | None = None
    only_shifts: bool = False  # the scale is not known: only the center tells
    is_statistics: bool = False  # center and spread are mean and deviation of training data

    def fits(self, low: Array | float, high: Array | float) -> bool:
        """Whether data from `low` to `high`, for all channels or each, are what the model expects."""
        width = np.maximum(np.asarray(high, np.float64) - low, 1e-12)
        if self.span is not None:
            return self._fits_span(low, high, width)
        if not _are_compatible(width, self.center):
            return True
        is_inside = (self.center >= low - _EDGE_TOLERANCE * width) & (self.center <= high + _EDGE_TOLERANCE * width)
        relative_width = width / self.spread
        is_wide = (relative_width >= _MIN_WIDTH) & (relative_width <= _MAX_WIDTH)
        is_bytes = np.abs(relative_width / _BYTE_WIDTH - 1) < _EDGE_TOLERANCE
        # most channels decide: one that hardly changes in these data tells nothing
        return bool(np.mean(is_inside & (is_wide | is_bytes | self.only_shifts)) > 0.5)

    def _fits_span(self, low: Array | float, high: Array | float, width: Array) -> bool:
        span_low, span_high = self.span or (0.0, 0.0)
        tolerance = _EDGE_TOLERANCE * (span_high - span_low)
        is_inside = np.min(low) >= span_low - tolerance and np.max(high) <= span_high + tolerance
        return bool(is_inside and np.max(width) >= (span_high - span_low) / 4)

    def fits_statistics(self, mean: Array, deviation: Array) -> bool:
        """Whether data with this mean and deviation of each channel are like those that the model was trained on."""
        if not self.is_statistics or not _are_compatible(mean, self.center):
            return True
        is_near = np.abs(mean - self.center) <= _MAX_SHIFT * np.maximum(self.spread, deviation)
        ratio = np.maximum(deviation, 1e-12) / self.spread
        return bool(np.mean(is_near & (ratio <= _MAX_RATIO) & (ratio >= 1 / _MAX_RATIO)) > 0.5)

    def distance(self, low: float, high: float) -> float:
        """How unlikely images of values from `low` to `high` are, for a choice between ranges that fit."""
        width, center, spread = high - low, float(np.mean(self.center)), float(np.mean(self.spread))
        ends = ((low - center) / spread, (high - center) / spread)
        if not self.is_statistics and any(np.allclose(ends, exact_ends, atol=0.02) for exact_ends in _EXACT_ENDS):
            return 0.0
        typical_mean, typical_deviation = _TYPICAL_IMAGE
        return abs((center - low) / width - typical_mean) + abs(float(np.log10(spread / width / typical_deviation)))

    def describe(self) -> str:
        """The expectation in words."""
        if self.span is not None:
            return f"{self.origin}, for values from {self.span[0]:.4g} to {self.span[1]:.4g}"
        if self.is_statistics:
            return f"{self.origin}, for data of mean {_show(self.center)} and deviation {_show(self.spread)}"
        if self.only_shifts:
            return f"{self.origin}, which turns {_show(self.center)} into 0"
        return f"{self.origin}, which turns {_show(self.center)} into 0 and {_show(self.center + self.spread)} into 1"


def _are_compatible(first: Array, second: Array) -> bool:
    return np.size(first) == 1 or np.size(second) == 1 or np.size(first) == np.size(second)


def _show(numbers: Array) -> str:
    shown = ", ".join(f"{number + 0.0:.4g}" for number in numbers[:3])  # + 0.0: no "-0"
    return shown if len(numbers) == 1 else f"[{shown}{', ..' if len(numbers) > 3 else ''}]"


def read_tflite_expectations(model: Model) -> tuple[InputExpectation, ...]:
    """What is known of the inputs of `model`."""
    preprocessing = read_preprocessing(model)
    if preprocessing is not None and preprocessing.pixels is not None and len(model.inputs) == 1:
        span = preprocessing.pixels.given
        return (span_expectation(model.inputs[0].name, "was written by edgepipe", span),)
    expectations = (_input_expectation(model, name, tensor) for name, tensor in model.inputs_by_name.items())
    return tuple(expectation for expectation in expectations if expectation is not None)


def span_expectation(input_name: str, origin: str, span: tuple[float, float]) -> InputExpectation:
    """The expectation of values in `span`."""
    center = np.array([(span[0] + span[1]) / 2])
    return InputExpectation(input_name, origin, center, np.array([(span[1] - span[0]) / 2]), span)


def _input_expectation(model: Model, name: str, tensor: Tensor) -> InputExpectation | None:
    if tensor.quantization is not None and tensor.dtype in ("int8", "uint8", "int16"):
        limits = np.iinfo(tensor.dtype)
        scale, zero_point = tensor.quantization.scales[0], tensor.quantization.zero_points[0]
        span = (scale * (limits.min - zero_point), scale * (limits.max - zero_point))
        return span_expectation(name, f"has a quantized input '{name}'", span)
    factor, summand, operator_texts = np.ones(1), np.zeros(1), []
    readers = _readers(model, tensor)
    while len(readers) == 1 and (affine := _affine(model, readers[0], tensor)) is not None:
        factor, summand = factor * affine[0], summand * affine[0] + affine[1]
        operator_texts += [readers[0].location] if readers[0].name in _ARITHMETIC_OPERATORS else []
        tensor = readers[0].tensors[-1]
        readers = _readers(model, tensor)
    return affine_expectation(name, f"begins with {', '.join(operator_texts)}", factor, summand)


def affine_expectation(input_name: str, origin: str, factor: Array, summand: Array) -> InputExpectation | None:
    """The expectation of a model that begins with x * factor + summand; None if that changes nothing."""
    only_shifts = bool(np.all(factor == 1))
    if not np.all(factor) or (only_shifts and not np.any(summand)):
        return None
    return InputExpectation(
        input_name, origin, np.asarray(-summand / factor), np.asarray(1 / np.abs(factor)), only_shifts=only_shifts
    )


def _readers(model: Model, tensor: Tensor) -> list[Operator]:
    return [
        operator
        for operator in model.operators
        if any(source is not None and source.key == tensor.key for source in operator.inputs)
    ]


def _affine(model: Model, operator: Operator, tensor: Tensor) -> tuple[Array, Array] | None:
    """Factor and summand of an operator with one constant, or of one that keeps values; None for others."""
    if operator.name in _SAME_VALUES_OPERATORS:
        return np.ones(1), np.zeros(1)
    constants = [source for source in operator.inputs if source is not None and source.is_constant]
    if operator.name not in _ARITHMETIC_OPERATORS or len(constants) != 1 or constants[0].dtype != "float32":
        return None
    numbers = np.atleast_1d(np.squeeze(model.read_values(constants[0]).astype(np.float64)))
    is_first = operator.inputs[0] is constants[0]
    if numbers.ndim > 1 or (operator.name == "DIV" and (is_first or not numbers.all())):
        return None
    if operator.name in ("ADD", "SUB"):
        sign = -1.0 if operator.name == "SUB" else 1.0
        return (np.full(1, -1.0), numbers) if is_first and sign < 0 else (np.ones(1), sign * numbers)
    return (numbers if operator.name == "MUL" else 1 / numbers), np.zeros(1)
