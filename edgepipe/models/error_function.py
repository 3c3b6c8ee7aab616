"""The error function, which TFLite lacks: GELU where it is part of one, else a tanh.

TFLite has GELU, x (1 + erf(x / sqrt(2))) / 2, and its converter knows the spelling of `tf.nn.gelu` only; a product in
another order or with another constant is brought to that one. Elsewhere erf(z) = tanh(z p(z^2)), with a polynomial p of
degree 4 for |z| up to 3.4, fitted to the largest error: 3e-6. All its intermediates are bounded, so that integers hold
them.
"""

import math
from typing import Any

import tensorflow as tf

from edgepipe.models.keras_types import Tensor

LARGEST_ARGUMENT = 3.4  # above it, erf is 1 up to 1.6e-6
COEFFICIENTS = (1.12835817, 0.10293293, -0.000496822164, -0.000415138877, 3.22441903e-05)  # of p, the lowest first
PRODUCT_TYPES = ("Mul", "RealDiv")
_TOLERANCE = 1e-5  # relative, of a constant in float32
Operation = Any  # a tf.Operation


def error_function(z: Tensor) -> Tensor:
    """erf(z) as tanh(z p(z^2))."""
    bounded = tf.clip_by_value(z, -LARGEST_ARGUMENT, LARGEST_ARGUMENT)
    square = bounded * bounded
    polynomial = square * COEFFICIENTS[-1] + COEFFICIENTS[-2]
    for coefficient in COEFFICIENTS[-3::-1]:
        polynomial = polynomial * square + coefficient
    return tf.tanh(bounded * polynomial)


def gelu_argument(operation: Operation) -> Tensor | None:
    """x if the operation is the product x (1 + erf(x / sqrt(2))) / 2 in any order, else None.

    Keras spells it x erfc(-x / sqrt(2)) / 2.
    """
    if operation.type not in PRODUCT_TYPES:
        return None
    for gate in _factors(operation.outputs[0])[1]:
        gate_coefficient, sign, argument = _read_gate(gate)
        for x in [] if argument is None else _ancestors(argument):
            slope, arguments = _factors(argument, x)
            coefficient, factors = _factors(operation.outputs[0], x)
            is_product = _names(arguments) == _names([x]) and sorted(_names(factors)) == sorted(_names([x, gate]))
            if (
                is_product
                and _is_close(sign * slope, math.sqrt(0.5))
                and _is_close(coefficient * gate_coefficient, 0.5)
            ):
                return x
    return None


def _read_gate(gate: Tensor) -> tuple[float, float, Tensor | None]:
    """c, the sign and the z of a tensor c (1 + erf(sign z)); no z for another tensor."""
    if gate.op.type == "Erfc":
        return 1.0, -1.0, gate.op.inputs[0]
    if gate.op.type not in ("Add", "AddV2"):
        return 0.0, 1.0, None
    for constant, other in (gate.op.inputs, list(gate.op.inputs)[::-1]):
        number, (coefficient, factors) = _scalar(constant), _factors(other)
        if number is not None and len(factors) == 1 and factors[0].op.type == "Erf" and _is_close(coefficient, number):
            return coefficient, 1.0, factors[0].op.inputs[0]
    return 0.0, 1.0, None


def _ancestors(argument: Tensor) -> list[Tensor]:
    """What a tensor is a multiple of: itself, and what it is computed from by products with numbers."""
    tensors = [argument]
    while tensors[-1].op.type in ("Identity", "Neg", *PRODUCT_TYPES):
        inputs = [each for each in tensors[-1].op.inputs if _scalar(each) is None]
        if len(inputs) != 1:
            break
        tensors.append(inputs[0])
    return tensors


def _names(tensors: list[Tensor]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _factors(tensor: Tensor, whole: Tensor | None = None) -> tuple[float, list[Tensor]]:
    """A tensor as a number times the tensors that are multiplied; `whole` is not taken apart."""
    operation = tensor.op
    if whole is not None and tensor.name == whole.name:
        return 1.0, [tensor]
    if operation.type in ("Identity", "Neg"):
        coefficient, factors = _factors(operation.inputs[0], whole)
        return -coefficient if operation.type == "Neg" else coefficient, factors
    if operation.type not in PRODUCT_TYPES:
        return 1.0, [tensor]
    first, second = operation.inputs
    if operation.type == "RealDiv" or _scalar(second) is not None:
        number = _scalar(second)
        coefficient, factors = _factors(first, whole)
        if not number:
            return 1.0, [tensor]
        return coefficient / number if operation.type == "RealDiv" else coefficient * number, factors
    number = _scalar(first)
    coefficient, factors = (number, []) if number is not None else _factors(first, whole)
    other_coefficient, other_factors = _factors(second, whole)
    return coefficient * other_coefficient, [*factors, *other_factors]


def _scalar(tensor: Tensor) -> float | None:
    """The number that a tensor holds, if it is a constant of one element."""
    constant = tf.get_static_value(tensor)
    return float(constant.item()) if constant is not None and constant.size == 1 else None


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_TOLERANCE)
