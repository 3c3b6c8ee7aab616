"""Operators that TFLite computes in float only, spelled with ones that it has integer kernels for.

SQUARE, NEG and POW by a small whole number become MUL, which keeps a LayerNormalization, for one, in integers. GREATER
and LESS_EQUAL, which have no kernel of 16 bits, become LESS and GREATER_EQUAL with their inputs the other way round.
Where activations are to have 16 bits, so do SQUARED_DIFFERENCE and PRELU, which have kernels of 8 bits only:
(a - b)^2 by SUB and MUL, max(x, 0) + slope min(x, 0) by RELU, MINIMUM, MUL and ADD. All give the same float values, but
for the rounding of POW and PRELU.
"""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from edgepipe.compress.ptq import buffers
from edgepipe.compress.ptq.editing import Graph
from edgepipe.tflite.graph import read
from edgepipe.tflite.model import Model, Operator

POWERS = (2, 3, 4)
TURNED = {"GREATER": "LESS", "LESS_EQUAL": "GREATER_EQUAL"}


@contextmanager
def spelled(lite: Model, sixteen: bool = False, left: Collection[Operator] = ()) -> Iterator[Model]:
    """The float model `lite` in operators that have integer kernels, where they are known; inside the block only.

    With `sixteen` in such as have kernels of 16 bits. The operators `left` are to stay in float, and as they are.
    """
    graph = Graph(buffers.opened(lite.content))
    kept = {tensor.name for operator in left for tensor in operator.outputs if tensor is not None}
    asked = [operator for operator in graph.operators if graph.name(operator.outputs[0]) not in kept]
    written = [_Spelling(graph, operator, sixteen).written() for operator in asked]
    if not any(written):
        yield lite
        return
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        path = Path(folder) / lite.path.name
        path.write_bytes(buffers.closed(buffers.without_idle(graph.model)))
        yield read(path)


@final
class _Spelling:
    """One operator, and those that take its place; the tensor that it makes keeps its name."""

    def __init__(self, graph: Graph, operator: Any, sixteen: bool) -> None:
        self.graph, self.operator, self.sixteen = graph, operator, sixteen
        self.given = [int(index) for index in operator.inputs]
        self.made = int(operator.outputs[0])
        self.new: list[Any] = []

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
        match kind:
            case "SQUARE":
                self._multiply([self.given[0]] * 2)
            case "NEG":
                self._multiply([self.given[0], self.graph.floating(f"{self._name()}/minus", [], np.array(-1))])
            case "POW" if self._power() in POWERS:
                self._multiply([self.given[0]] * self._power())
            case "SQUARED_DIFFERENCE" if self.sixteen:
                self._multiply([self._step("SUB", self.given, "difference")] * 2)
            case "PRELU" if self.sixteen:
                self._prelu()

    def _power(self) -> int:
        """The whole number that POW has for all elements; 0 if it is another."""
        found = self.graph.constant(self.given[1])
        return int(found.item()) if found is not None and found.size == 1 and found.item() in POWERS else 0

    def _multiply(self, factors: list[int]) -> None:
        product = factors[0]
        for number, factor in enumerate(factors[1:-1], 2):
            product = self._step("MUL", [product, factor], f"power{number}")
        self._last("MUL", [product, factors[-1]])

    def _prelu(self) -> None:
        zero = self.graph.floating(f"{self._name()}/zero", [], np.array(0))
        above = self._step("RELU", self.given[:1], "above")
        below = self._step("MINIMUM", [self.given[0], zero], "below")
        self._last("ADD", [above, self._step("MUL", [below, self.given[1]], "sloped")])

    def _step(self, kind: str, given: list[int], name: str) -> int:
        """A tensor on the way, of the shape of the result."""
        made = self.graph.floating(f"{self._name()}/{name}", self.graph.tensor(self.made).shape)
        self.new.append(self.graph.operator(kind, 1, given, [made]))
        return made

    def _last(self, kind: str, given: list[int]) -> None:
        self.new.append(self.graph.operator(kind, 1, given, [self.made]))

    def _name(self) -> str:
        return self.graph.name(self.made)
