"""Operators that a quantizer left in float although TFLite computes them in integers.

litert-quantizer 0.11 knows fewer operators than TFLite has integer kernels for (no LEAKY_RELU, PRELU, EXP, MINIMUM,
REDUCE_MAX, TILE ..), and TensorFlow's leaves some as well (ELU). Such an operator is an island of float between a
DEQUANTIZE and a QUANTIZE. Here it gets its integer form: inputs as they are stored, outputs in the range that
calibration found or that its kernel asks for.

What kernels ask for: LiteRT's 8-bit quantization specification; for 16 bits, and for versions, TensorFlow's
`lite/kernels` and `lite/tools/versioning/op_version.cc`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.compress.quantizer.mutable_graph import Bits, Graph, Step, Wanted, step_of
from edgepipe.core.arrays import Array


@final
@dataclass(frozen=True)
class Kernel:
    """The integer kernels of an operator.

    Scales may be tied: outputs have that of the `input`, inputs that of the `output`; or 16 bits are compared as they
    are `stored`, so that all inputs need the same.
    """

    versions: Mapping[Bits, int]  # of the operator, by the bits of its activations
    tied: Literal["", "input", "output", "stored"] = ""
    step: Step | None = None  # of the output, whatever its range is


KERNELS: dict[str, Kernel] = {
    "ABS": Kernel({8: 2, 16: 3}),
    "ARG_MAX": Kernel({8: 2}),
    "ARG_MIN": Kernel({8: 2}),
    "BATCH_TO_SPACE_ND": Kernel({8: 2, 16: 4}, "input"),
    "DEPTH_TO_SPACE": Kernel({8: 2}, "input"),
    "ELU": Kernel({8: 1}),
    "EXP": Kernel({8: 2, 16: 2}),
    "EXPAND_DIMS": Kernel({8: 1, 16: 1}, "input"),
    "GREATER_EQUAL": Kernel({8: 2, 16: 3}, "stored"),
    "L2_NORMALIZATION": Kernel({8: 2}, step=(1 / 128, 0)),
    "LEAKY_RELU": Kernel({8: 1, 16: 2}),
    "LESS": Kernel({8: 2, 16: 3}, "stored"),
    "LOG": Kernel({8: 2, 16: 2}),
    "LOG_SOFTMAX": Kernel({8: 2}, step=(16 / 256, 127)),
    "MAXIMUM": Kernel({8: 2, 16: 4}, "output"),
    "MINIMUM": Kernel({8: 2, 16: 4}, "output"),
    "PRELU": Kernel({8: 1}),
    "REDUCE_MAX": Kernel({8: 2, 16: 3}, "input"),
    "REDUCE_MIN": Kernel({8: 2, 16: 3}, "input"),
    "REDUCE_PROD": Kernel({8: 2, 16: 2}),
    "RELU6": Kernel({8: 2, 16: 3}, "input"),  # TFLite Micro's cuts off without a change of scale
    "RELU_N1_TO_1": Kernel({8: 1}),
    "REVERSE_V2": Kernel({8: 3, 16: 1}, "input"),
    "SHAPE": Kernel({8: 1, 16: 1}),
    "SPACE_TO_BATCH_ND": Kernel({8: 2, 16: 4}, "input"),
    "SPACE_TO_DEPTH": Kernel({8: 2}, "input"),
    "SPLIT": Kernel({8: 2, 16: 4}, "input"),
    "SPLIT_V": Kernel({8: 2, 16: 1}, "input"),
    "SQUARED_DIFFERENCE": Kernel({8: 2}),
    "SQUEEZE": Kernel({8: 1, 16: 1}, "input"),
    "TILE": Kernel({8: 3, 16: 1}, "input"),
    "TOPK_V2": Kernel({8: 2, 16: 3}, "input"),
}


def joined(content: bytes, before: bytes, wanted: Wanted, ranges: Mapping[str, Range]) -> bytes:
    """The quantized model `content`, with those operators of `KERNELS` that are in float still in integers.

    Args:
        content: the quantized model.
        before: the float model that it was made of; operators go by the names of their outputs.
        wanted: the bits that an operator's activations are to have; None for one that stays in float.
        ranges: of activations, by their names in the float model.
    """
    graph, floats = Graph(flatbuffer_edits.opened(content)), Graph(flatbuffer_edits.opened(before))
    changed = False
    for operator, source in _pairs(graph, floats):
        kind = graph.kind(operator)
        names = [floats.name(index) for index in source.outputs]
        bits = wanted(kind, names)
        if bits is not None and bits in KERNELS[kind].versions:
            given = [ranges.get(floats.name(index)) for index in source.inputs]
            made = [ranges.get(name) for name in names]
            changed |= _Island(graph, operator, KERNELS[kind], bits, given, made, names).joined()
    return flatbuffer_edits.closed(flatbuffer_edits.tidy(graph.model)) if changed else content


def floating(content: bytes) -> int:
    """How many operators of a model make floats, but for those that only change the type."""
    graph = Graph(flatbuffer_edits.opened(content))
    computing = (operator for operator in graph.operators if graph.kind(operator) not in ("QUANTIZE", "DEQUANTIZE"))
    return sum(any(graph.is_float(int(index)) for index in operator.outputs) for operator in computing)


def _pairs(graph: Graph, floats: Graph) -> list[tuple[Any, Any]]:
    """The operators of `KERNELS` in the quantized model, in order, each with its origin in the float model."""
    found = []
    for kind in KERNELS:
        operators, sources = (
            [operator for operator in of.operators if of.kind(operator) == kind] for of in (graph, floats)
        )
        by_name = {floats.name(index): source for source in sources for index in source.outputs}
        # neither quantizer changes the order, so where a name was changed the place tells
        in_order = sources if len(sources) == len(operators) else [None] * len(operators)
        for operator, at_its_place in zip(operators, in_order, strict=True):
            named = next((by_name[name] for name in _names(graph, operator) if name in by_name), at_its_place)
            found += [] if named is None else [(operator, named)]
    return sorted(found, key=lambda pair: graph.place(pair[0]))


def _names(graph: Graph, operator: Any) -> Iterator[str]:
    """What the outputs of an operator may be called in the float model.

    TensorFlow's quantizer gives the name of a float tensor to the one that is quantized from it.
    """
    for index in operator.outputs:
        yield from (graph.name(int(r.outputs[0])) for r in graph.readers(index) if graph.kind(r) == "QUANTIZE")
        yield graph.name(index)


@final
@dataclass
class _Island:
    """One operator that may be in float."""

    graph: Graph
    operator: Any
    kernel: Kernel
    bits: Bits
    given: list[Range | None]  # ranges of its inputs in the float model
    made: list[Range | None]  # of its outputs
    names: list[str]  # of its outputs there

    def joined(self) -> bool:
        """Give it its integer form; False if it has one, or if a range is not known."""
        inputs, outputs = self._floating(self.operator.inputs), self._floating(self.operator.outputs)
        read = [self._read(place) for place in inputs if self._constant(place) is None]
        if not read or None in read:
            return False
        made = [self._made(place, read[0]) for place in outputs]
        steps = [step for step in made if step is not None]
        if len(steps) < len(made):
            return False
        tied = steps[0] if self.kernel.tied == "output" else self._compared(inputs)
        for place in inputs:
            self.operator.inputs[place] = self._input(place, tied)
        for place, step in zip(outputs, steps, strict=True):
            self._output(place, step)
        self.operator.opcodeIndex = self.graph.code(self.graph.kind(self.operator), self.kernel.versions[self.bits])
        return True

    def _floating(self, indices: Sequence[int]) -> list[int]:
        """The places of float32 tensors among these."""
        return [place for place, index in enumerate(indices) if self.graph.is_float(index)]

    def _constant(self, place: int) -> Array | None:
        return self.graph.constant(self.operator.inputs[place])

    def _source(self, place: int) -> int:
        """The tensor in integers that an input is dequantized from, or the float one that it is."""
        maker = self.graph.maker(self.operator.inputs[place])
        dequantized = maker is not None and self.graph.kind(maker) == "DEQUANTIZE"
        return int(maker.inputs[0]) if dequantized else int(self.operator.inputs[place])

    def _read(self, place: int) -> Step | None:
        """Scale and zero point that an input is read with; None if its range is not known."""
        source = self._source(place)
        if self.graph.bits(source) == self.bits:
            return self.graph.step(source)
        span = self.given[place]
        return None if span is None else step_of(span, self.bits)

    def _made(self, place: int, read: Step | None) -> Step | None:
        """Scale and zero point of an output; None if its range is not known.

        Readers may want a narrower one, which is theirs; but where one wants the output's own, it is taken as it is.
        """
        if self.kernel.step is not None:
            return self.kernel.step
        if self.kernel.tied == "input":
            return read
        quantized = [int(reader.outputs[0]) for reader in self._quantizing(place)]
        wanted = [self.graph.step(index) for index in quantized if self.graph.bits(index) == self.bits]
        span = self.made[place]
        if span is None:
            return max(wanted, default=None)
        own = step_of(span, self.bits)
        return next((step for step in wanted if step[1] == own[1] and np.isclose(step[0], own[0], rtol=1e-5)), own)

    def _quantizing(self, place: int) -> list[Any]:
        """The QUANTIZE operators that read an output."""
        readers = self.graph.readers(self.operator.outputs[place])
        return [reader for reader in readers if self.graph.kind(reader) == "QUANTIZE"]

    def _compared(self, places: list[int]) -> Step | None:
        """The step that all inputs get because they are compared as stored; None if they keep their own."""
        if self.kernel.tied != "stored" or self.bits == 8:
            return None
        spans = [self._span(place) for place in places]
        return step_of((min(low for low, _ in spans), max(high for _, high in spans)), self.bits)

    def _span(self, place: int) -> Range:
        """Of an input."""
        values = self._constant(place)
        if values is not None:
            return float(values.min()), float(values.max())
        span = self.given[place]
        assert span is not None, "what is read in integers has a range"
        return span

    def _input(self, place: int, tied: Step | None) -> int:
        """The tensor that the kernel reads instead of a float one."""
        before = self.operator.inputs[place]
        shape, name = self.graph.tensor(before).shape, f"{self.graph.name(before)}_{self.graph.kind(self.operator)}"
        values = self._constant(place)
        if values is not None:
            return self.graph.stored(name, shape, self.bits, tied or step_of(self._span(place), self.bits), values)
        source, wanted = self._source(place), tied or self._read(place)
        assert wanted is not None, "the range is known"
        if self._is(source, wanted):
            return source
        made = self.graph.stored(name, shape, self.bits, wanted)
        self._insert(self.graph.operator("QUANTIZE", {8: 1, 16: 2}[self.bits], [source], [made]), 0)
        return made

    def _output(self, place: int, step: Step) -> None:
        """Let the operator make integers; what reads the float tensor gets it dequantized."""
        floating, quantizing = int(self.operator.outputs[place]), self._quantizing(place)
        same = [reader for reader in quantizing if self._is(int(reader.outputs[0]), step)]
        if same:
            made = int(same[0].outputs[0])
            self.graph.remove(same[0])
        else:
            made = self.graph.stored("", self.graph.tensor(floating).shape, self.bits, step)
        self.operator.outputs[place] = made
        self.graph.tensor(floating).name = f"{self.names[place]}_dequantized".encode()
        self.graph.tensor(made).name = self.names[place].encode()
        for reader in quantizing:
            reader.inputs = [made]
        if self.graph.readers(floating) or floating in self.graph.main.outputs:
            self._insert(self.graph.operator("DEQUANTIZE", {8: 2, 16: 3}[self.bits], [made], [floating]), 1)

    def _is(self, index: int, step: Step) -> bool:
        return self.graph.bits(index) == self.bits and self.graph.step(index) == step

    def _insert(self, operator: Any, after: int) -> None:
        self.graph.operators.insert(self.graph.place(self.operator) + after, operator)
