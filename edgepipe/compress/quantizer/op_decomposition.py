"""Operators that TFLite computes in float only, spelled with ones that it has integer kernels for.

SQUARE, NEG and POW by a small whole number become MUL, which keeps a LayerNormalization, for one, in integers. GREATER
and LESS_EQUAL, which have no kernel of 16 bits, become LESS and GREATER_EQUAL with their inputs the other way round.
Where activations are to have 16 bits, so do operators whose kernels have 8 bits alone: SQUARED_DIFFERENCE, PRELU, ELU,
HARD_SWISH, RELU_N1_TO_1, DEPTH_TO_SPACE and SPACE_TO_DEPTH. All give the same float values, up to rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import Ranges
from edgepipe.compress.quantizer.mutable_graph import Bits, Graph, Wanted
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

POWERS = (2, 3, 4)
VERSIONS = {"TRANSPOSE": 6}  # of six dimensions
ALWAYS = ("SQUARE", "NEG", "POW", "GREATER", "LESS_EQUAL")
STEP = r"/\d+_[A-Z0-9_]+"  # how the name of a tensor on the way goes on after that of the result
TURNED = {"GREATER": "LESS", "LESS_EQUAL": "GREATER_EQUAL"}


def all_in(bits: Bits) -> Wanted:
    """All operators in integers of so many bits."""
    return lambda kind, outputs: bits


@contextmanager
def spelled(lite: Model, wanted: Wanted) -> Iterator[Model]:
    """The float model `lite` by `spelling`, inside the block only."""
    content = spelling(lite.content, wanted)
    if content is lite.content:
        yield lite
        return
    with flatbuffer_edits.written(content, lite.path.name) as path:
        yield read(path)


def widened(lite: Model, find: Callable[[Model], Ranges]) -> Ranges:
    """Ranges of `lite`, and of the tensors between operators that some are `spelled` in where they get 16 bits."""
    found = find(lite)
    with spelled(lite, all_in(16)) as wide:
        return found if wide is lite else replace(found, by_tensor={**find(wide).by_tensor, **found.by_tensor})


def spelling(content: bytes, wanted: Wanted) -> bytes:
    """The float .tflite `content` in operators that have integer kernels, where they are known.

    `wanted` are the bits of an operator's activations; what stays in float is not touched.
    """
    graph = Graph(flatbuffer_edits.opened(content))
    written = [_written(graph, operator, wanted) for operator in list(graph.operators)]
    return flatbuffer_edits.closed(flatbuffer_edits.tidy(graph.model)) if any(written) else content


def _written(graph: Graph, operator: Any, wanted: Wanted) -> bool:
    kind = graph.kind(operator)
    if kind not in (*ALWAYS, *SIXTEEN):
        return False
    bits = wanted(kind, [graph.name(int(index)) for index in operator.outputs])
    return bits is not None and _Spelling(graph, operator, bits).written()


@final
class _Spelling:
    """One operator, and those that take its place; the tensor that it makes keeps its name."""

    def __init__(self, graph: Graph, operator: Any, bits: Bits) -> None:
        self.graph, self.operator, self.bits = graph, operator, bits
        self.given = [int(index) for index in operator.inputs]
        self.made = int(operator.outputs[0])
        self.new: list[Any] = []
        self.named = 0  # tensors on the way

    def written(self) -> bool:
        """Put others in its place; False if it stays."""
        kind = self.graph.kind(self.operator)
        if kind in TURNED:
            self.new = [self.graph.operator(TURNED[kind], 1, self.given[::-1], [self.made])]
        elif self.given and self.graph.is_float(self.given[0]):
            self._spell(kind)
        at = self.graph.place(self.operator)
        self.graph.operators[at : at + 1] = self.new or [self.operator]
        return bool(self.new)

    def _spell(self, kind: str) -> None:
        x = self.given[0]
        match kind:
            case "SQUARE":
                self._multiply([x, x])
            case "NEG":
                self._multiply([x, self._number(-1)])
            case "POW" if self._power() in POWERS:
                self._multiply([x] * self._power())
            case _ if self.bits == 16 and kind in SIXTEEN:
                SIXTEEN[kind](self)

    def _squared_difference(self) -> None:
        """(a - b)^2."""
        shape = list(self.graph.tensor(self.made).shape)  # one of both may be spread over the other
        self._multiply([self._step("SUB", self.given, shape)] * 2)

    def _prelu(self) -> None:
        """max(x, 0) + slope min(x, 0)."""
        x, slopes = self.given
        below = self._step("MUL", [self._step("MINIMUM", [x, self._number(0)]), slopes])
        self._last("ADD", [self._step("RELU", [x]), below])

    def _elu(self) -> None:
        """max(x, 0) + (exp(min(x, 0)) - 1)."""
        x = self.given[0]
        grown = self._step("EXP", [self._step("MINIMUM", [x, self._number(0)])])
        self._last("ADD", [self._step("RELU", [x]), self._step("SUB", [grown, self._number(1)])])

    def _relu_n1_to_1(self) -> None:
        """min(max(x, -1), 1)."""
        self._last("MINIMUM", [self._step("MAXIMUM", [self.given[0], self._number(-1)]), self._number(1)])

    def _hard_swish(self) -> None:
        """x (min(max(x + 3, 0), 6) / 6); by MINIMUM, because RELU6 of TFLite Micro does not change the scale."""
        x = self.given[0]
        above = self._step("RELU", [self._step("ADD", [x, self._number(3)])])
        gate = self._step("MINIMUM", [above, self._number(6)])
        self._last("MUL", [x, self._step("MUL", [gate, self._number(1 / 6)])])

    def _depth_to_space(self) -> None:
        """(.., h, w, b b c) as (.., h, w, b, b, c), turned to (.., h, b, w, b, c), as (.., h b, w b, c)."""
        block = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.given[0]).shape[1:])
        self._turn([height, width, block, block, depth // block**2], [0, 1, 3, 2, 4, 5])

    def _space_to_depth(self) -> None:
        """The way back."""
        block = self.operator.builtinOptions.blockSize
        height, width, depth = (int(size) for size in self.graph.tensor(self.given[0]).shape[1:])
        self._turn([height // block, block, width // block, block, depth], [0, 1, 3, 2, 4, 5])

    def _turn(self, shape: list[int], order: list[int]) -> None:
        """RESHAPE of each sample, TRANSPOSE, RESHAPE to what is made."""
        batch = int(self.graph.tensor(self.given[0]).shape[0])
        apart = self._step("RESHAPE", [self.given[0], self._whole([-1, *shape])], [batch, *shape])
        turned = [[batch, *shape][axis] for axis in order]
        turned_over = self._step("TRANSPOSE", [apart, self._whole(order)], turned)
        made = [int(size) for size in self.graph.tensor(self.made).shape[1:]]
        self._last("RESHAPE", [turned_over, self._whole([-1, *made])])

    def _power(self) -> int:
        """The whole number that POW has for all elements; 0 if it is another, or spreads its input."""
        found = self.graph.constant(self.given[1])
        shapes = [list(self.graph.tensor(index).shape) for index in (self.given[0], self.made)]
        fits = found is not None and found.size == 1 and found.item() in POWERS and shapes[0] == shapes[1]
        return int(found.item()) if fits and found is not None else 0

    def _multiply(self, factors: list[int]) -> None:
        product = factors[0]
        for factor in factors[1:-1]:
            product = self._step("MUL", [product, factor])
        self._last("MUL", [product, factors[-1]])

    def _number(self, value: float) -> int:
        """A constant of one element."""
        return self.graph.floating(self._name(f"{value:g}"), [], np.array(value))

    def _whole(self, values: list[int]) -> int:
        """A constant list of whole numbers."""
        return self.graph.whole(self._name("_".join(map(str, values))), values)

    def _step(self, kind: str, given: list[int], shape: list[int] | None = None) -> int:
        """A tensor on the way, by default of the shape of the first input."""
        wanted = self.graph.tensor(given[0]).shape if shape is None else shape
        made = self.graph.floating(self._name(kind), wanted)
        self.new.append(self.graph.operator(kind, VERSIONS.get(kind, 1), given, [made]))
        return made

    def _last(self, kind: str, given: list[int]) -> None:
        self.new.append(self.graph.operator(kind, 1, given, [self.made]))

    def _name(self, of: str) -> str:
        """A name below that of the result, the same whatever else is spelled in the model."""
        self.named += 1
        return f"{self.graph.name(self.made)}/{self.named}_{of}"


SIXTEEN = {  # spelled where activations are to have 16 bits
    "SQUARED_DIFFERENCE": _Spelling._squared_difference,
    "PRELU": _Spelling._prelu,
    "ELU": _Spelling._elu,
    "HARD_SWISH": _Spelling._hard_swish,
    "RELU_N1_TO_1": _Spelling._relu_n1_to_1,
    "DEPTH_TO_SPACE": _Spelling._depth_to_space,
    "SPACE_TO_DEPTH": _Spelling._space_to_depth,
}
