"""Functions of one number that TFLite has no integer kernel for, as a table with an entry for each of 256 codes.

CAST gives an 8-bit tensor's codes as int32, ADD counts them from 0, GATHER takes the entries: three operators that
LiteRT and TensorFlow Lite Micro compute alike, to the bit. The table holds the function's values in the scale of the
output, rounded once. 16 bits would need 65,536 entries, and stay in float.
"""

from collections.abc import Callable
from typing import final

import numpy as np

from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.graph_rewriter import GraphRewriter
from edgepipe.compress.quantizer.kernel_requirements import TABULATED_OPERATORS
from edgepipe.core.arrays import Array

CODE_COUNT = 256
UNARY_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "CEIL": np.ceil,
    "COS": np.cos,
    "FLOOR": np.floor,
    "ROUND": np.rint,
    "SIGN": np.sign,
    "SIN": np.sin,
}
BINARY_FUNCTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "FLOOR_DIV": np.floor_divide,
    "FLOOR_MOD": np.mod,
    "POW": np.power,
}
assert set(TABULATED_OPERATORS) == {*UNARY_FUNCTIONS, *BINARY_FUNCTIONS}, "each has a function"


@final
class TableWriter:
    """Writes the operators that look up an 8-bit tensor in a table."""

    def __init__(self, rewriter: GraphRewriter) -> None:
        self.rewriter, self.graph, self.index = rewriter, rewriter.graph, rewriter.index

    def write(self, number: int) -> None:
        """Append CAST, ADD and GATHER in the place of an operator."""
        (source,) = (tensor for tensor in self.index.inputs[number] if self.index.constant(tensor) is None)
        output = self.index.outputs[number][0]
        position = self.index.inputs[number].index(source)
        encoding, output_encoding = self.rewriter.plan.demanded(number, position), self.rewriter.plan.stored(output)
        assert encoding is not None, "an operator in integers reads them"
        assert output_encoding is not None, "and stores them"
        table = self._add_table(number, self._real_values(number, encoding), output_encoding)
        codes = self.rewriter.read_activation(source, encoding)
        operators = [
            self.graph.new_operator("CAST", [codes], [self._add_int32(number, "CAST", source)]),
            self.graph.new_operator("ADD", [], [self._add_int32(number, "ADD", source)]),
            self.graph.new_operator("GATHER", [], [output]),
        ]
        operators[1].inputs = [operators[0].outputs[0], self._add_offset()]
        operators[2].inputs = [table, operators[1].outputs[0]]
        self.rewriter.operators += operators

    def _real_values(self, number: int, encoding: Encoding) -> Array:
        """The function's value for each code of its input, the lowest first."""
        arguments = [self.index.constant(tensor) for tensor in self.index.inputs[number]]
        numbers = (np.arange(CODE_COUNT) - CODE_COUNT // 2 - encoding.zero_point) * encoding.scale
        kind = self.index.kinds[number]
        with np.errstate(all="ignore"):  # at codes that no sample has, such as the root of a negative number
            if kind in UNARY_FUNCTIONS:
                return UNARY_FUNCTIONS[kind](numbers)
            first, second = (numbers if constant is None else constant.ravel().astype(float) for constant in arguments)
            return BINARY_FUNCTIONS[kind](first, second)

    def _add_table(self, number: int, values: Array, encoding: Encoding) -> int:
        low, high = encoding.real_limits
        finite_values = np.clip(np.nan_to_num(values, nan=0.0, posinf=high, neginf=low), low, high)
        name = self.rewriter.unique_name(f"{self.index.output_names(number)[0]}_table")
        return self.graph.add_encoded_tensor(name, [CODE_COUNT], encoding, finite_values)

    def _add_int32(self, number: int, kind: str, like: int) -> int:
        name = self.rewriter.unique_name(f"{self.index.output_names(number)[0]}_{kind}")
        return self.graph.add_int32_tensor(name, self.graph.tensor(like).shape)

    def _add_offset(self) -> int:
        name = "code_offset"
        return self.rewriter.shared(
            name, lambda: self.graph.add_int32_constant(self.rewriter.unique_name(name), [CODE_COUNT // 2])
        )
