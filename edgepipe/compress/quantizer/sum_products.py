"""SUM as a product with ones, which every runtime computes alike.

Of a SUM over 8-bit codes, LiteRT's optimized kernel rounds the exact sum; its reference kernel adds the codes in 8 bits
and ignores both scales, and TensorFlow Lite Micro rounds twice. A MEAN rounds twice everywhere. In a product with ones,
which 8 bits hold exactly, all add in 32 bits and round once: BATCH_MATMUL gives the same codes on every runtime,
FULLY_CONNECTED does not.
"""

import math

import numpy as np

from edgepipe.compress.quantizer.operator_replacement import OperatorReplacement


def multiply_by_ones(replacement: OperatorReplacement, x: int, axes: list[int], output_shape: list[int]) -> int | None:
    """Append the product that adds up the neighbouring `axes` of `x`; None if they are not neighbours.

    Returns the index of a tensor of `output_shape`.
    """
    shape = [int(size) for size in replacement.graph.tensor(x).shape]
    first, last = min(axes), max(axes)
    if any(shape[axis] > 1 and axis not in axes for axis in range(first, last)):
        return None
    outer, count, inner = (math.prod(part) for part in (shape[:first], shape[first : last + 1], shape[last + 1 :]))
    if inner == 1:
        rows = reshape(replacement, x, [1, outer, count])
        total = replacement.append_operator("BATCH_MATMUL", [rows, _ones(replacement, [1, count, 1])], [1, outer, 1])
    else:
        matrices = reshape(replacement, x, [outer, count, inner])
        ones = _ones(replacement, [1, 1, count])
        total = replacement.append_operator("BATCH_MATMUL", [ones, matrices], [outer, 1, inner])
    return reshape(replacement, total, output_shape)


def reshape(replacement: OperatorReplacement, x: int, shape: list[int]) -> int:
    """Append a RESHAPE if `x` has another shape; returns the index of the tensor with `shape`."""
    if list(replacement.graph.tensor(x).shape) == shape:
        return x
    return replacement.append_operator("RESHAPE", [x, replacement.add_int_list(shape)], shape)


def _ones(replacement: OperatorReplacement, shape: list[int]) -> int:
    return replacement.graph.add_float_tensor(replacement.intermediate_name("ONES"), shape, np.ones(shape))
