"""Ranges that training has learned, read from the fake-quant of a float .tflite, which is then removed.

TensorFlow's converter, run without optimizations, writes every fake-quant as a QUANTIZE and a DEQUANTIZE behind it, on
the tensor that training rounded, after all fusion. So each pair tells the range of one tensor, whoever trained the
model: edgepipe, tfmot, or an exporter of SavedModels.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import MAX_NAMES_SHOWN, ActivationRange, TrainedRange
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import KERNEL_REQUIREMENTS, ScaleRule
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.core.arrays import Array
from edgepipe.core.units import plural
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.reader import read

# operators that only give a tensor another shape: the converter moves a fake-quant behind them
RESHAPING_OPERATORS = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE", "TRANSPOSE"})


@final
@dataclass(frozen=True)
class TrainedRanges:
    """What training says of the tensors of a float .tflite.

    `tensor_by_fake_quant` maps the name of a fake-quant, that of its integer tensor, to the name of the tensor that it
    rounded.
    """

    by_tensor: Mapping[str, TrainedRange] = field(default_factory=dict)
    tensor_by_fake_quant: Mapping[str, str] = field(default_factory=dict)
    untrained_names: tuple[str, ...] = ()  # tensors that need a range of their own, and got none
    conflicts: tuple[str, ...] = ()  # tensors with several trained ranges

    def override(
        self, index: GraphIndex, calibrated_ranges: Mapping[str, ActivationRange]
    ) -> dict[str, ActivationRange]:
        """Calibrated ranges, replaced by the trained ones where there are any.

        What a decomposed operator computes before its last RESHAPE has the range of its output.
        """
        trained_ranges = {**self.by_tensor, **_reshaped_ranges(index, self.by_tensor)}
        return {name: trained_ranges.get(name, calibrated) for name, calibrated in calibrated_ranges.items()}

    def locate(self, name_by_tensor: Mapping[str, str]) -> dict[str, str]:
        """The tensor that each fake-quant has become, if tensors have got the names of `name_by_tensor`."""
        return {
            fake_quant: name_by_tensor[name]
            for fake_quant, name in self.tensor_by_fake_quant.items()
            if name in name_by_tensor
        }

    def notes(self) -> list[str]:
        """On tensors without a trained range, and on those with several."""
        untrained_notes = [
            f"training left {plural(len(self.untrained_names), 'tensor')} without a range, calibrated on the samples: "
            f"{_shorten(self.untrained_names)}"
        ]
        conflict_notes = [f"trained with several ranges, the widest is taken: {_shorten(self.conflicts)}"]
        return [*(untrained_notes if self.untrained_names else []), *(conflict_notes if self.conflicts else [])]


def _shorten(names: Collection[str]) -> str:
    names_text = ", ".join(f"'{name.split(';')[0]}'" for name in list(names)[:MAX_NAMES_SHOWN])
    remainder = len(names) - MAX_NAMES_SHOWN
    return f"{names_text} and {remainder} more" if remainder > 0 else names_text


def fake_quant_tensors(model: Model) -> list[Tensor]:
    """The integer tensors between the QUANTIZE and the DEQUANTIZE of each fake-quant, in the order of computation."""
    reader_names: dict[int, set[str]] = {}
    for operator in model.operators:
        for tensor in operator.inputs:
            if tensor is not None:
                reader_names.setdefault(tensor.index, set()).add(operator.name)
    quantized_tensors = [op.outputs[0] for op in model.operators if op.name == "QUANTIZE"]
    output_indices = {tensor.index for tensor in model.outputs}
    return [
        tensor
        for tensor in quantized_tensors
        if tensor is not None
        and reader_names.get(tensor.index) == {"DEQUANTIZE"}
        and tensor.index not in output_indices
    ]


@contextmanager
def without_fake_quant(lite: Model) -> Iterator[tuple[Model, TrainedRanges]]:
    """The float model `lite` without fake-quant, and the ranges it had; the file exists inside the block only.

    Fake-quant of weights is applied to them.
    """
    if not fake_quant_tensors(lite):
        yield lite, TrainedRanges()
        return
    remover = _FakeQuantRemover(MutableGraph(flatbuffer_edits.unpack_model(lite.content)))
    trained_ranges = remover.remove()
    content = flatbuffer_edits.pack_model(flatbuffer_edits.canonicalize(remover.graph.model))
    with flatbuffer_edits.temporary_tflite(content, lite.path.name) as path:
        yield read(path), trained_ranges


@final
class _FakeQuantRemover:
    """Removes the pairs of a graph in place, and remembers the ranges of the tensors that they rounded."""

    def __init__(self, graph: MutableGraph) -> None:
        self.graph, self.index = graph, GraphIndex(graph)
        self.source_by_dequantized: dict[int, int] = {}
        self.range_by_tensor: dict[int, TrainedRange] = {}
        self.tensor_by_fake_quant: dict[str, int] = {}
        self.conflicts: list[int] = []

    def remove(self) -> TrainedRanges:
        """Remove every pair; the trained ranges, by the names of the tensors that stay."""
        removed_numbers = {
            number for quantize_number in self._fake_quant_numbers() for number in self._remove_pair(quantize_number)
        }
        self.graph.subgraph.operators = [
            operator for number, operator in enumerate(self.index.operators) if number not in removed_numbers
        ]
        for operator in self.graph.operators:
            operator.inputs = [self._source(int(index)) for index in operator.inputs]
        for position, tensor in enumerate(self.index.graph_outputs):
            self._reconnect_output(position, tensor)
        return self._trained_ranges()

    def _fake_quant_numbers(self) -> list[int]:
        return [
            number
            for number, kind in enumerate(self.index.kinds)
            if kind == "QUANTIZE"
            and self.index.inputs[number][0] in self.index.float_tensors
            and self.index.outputs[number][0] not in self.index.graph_outputs
            and {self.index.kinds[reader] for reader in self._readers(number)} == {"DEQUANTIZE"}
        ]

    def _readers(self, number: int) -> list[int]:
        return self.index.readers_by_tensor.get(self.index.outputs[number][0], [])

    def _remove_pair(self, quantize_number: int) -> list[int]:
        """Redirect the readers of a pair's output to its input; the numbers of its operators."""
        quantized_tensor = self.index.outputs[quantize_number][0]
        source = self._source(self.index.inputs[quantize_number][0])
        constant = self.index.constant(source)
        if constant is not None:
            source = self._round_constant(source, constant, quantized_tensor)
        else:
            self._add_range(source, self._real_limits(quantized_tensor))
            self.tensor_by_fake_quant[self.index.names[quantized_tensor]] = source
        dequantize_numbers = self._readers(quantize_number)
        for number in dequantize_numbers:
            self.source_by_dequantized[self.index.outputs[number][0]] = source
        return [quantize_number, *dequantize_numbers]

    def _source(self, tensor: int) -> int:
        return self.source_by_dequantized.get(tensor, tensor)

    def _add_range(self, tensor: int, trained_range: TrainedRange) -> None:
        known_range = self.range_by_tensor.setdefault(tensor, trained_range)
        if known_range != trained_range:
            self.conflicts.append(tensor)
            lows, highs = zip(known_range, trained_range, strict=True)
            self.range_by_tensor[tensor] = TrainedRange(min(lows), max(highs))

    def _real_limits(self, quantized_tensor: int) -> TrainedRange:
        """The real numbers of the least and the largest code; exact, so that the same scale follows from them."""
        scales, zero_points, (code_min, code_max), _ = self._quantization(quantized_tensor)
        return TrainedRange(*(float((code - zero_points[0]) * scales[0]) for code in (code_min, code_max)))

    def _round_constant(self, tensor: int, constant: Array, quantized_tensor: int) -> int:
        """A constant as fake-quant rounds it."""
        scales, zero_points, code_limits, axis = self._quantization(quantized_tensor)
        shape = [-1 if position == axis else 1 for position in range(constant.ndim)] if len(scales) > 1 else [1]
        scale, zero_point = scales.reshape(shape), zero_points.reshape(shape)
        codes = np.clip(np.rint(constant / scale) + zero_point, *code_limits)
        name = f"{self.index.names[tensor]}/rounded"
        return self.graph.add_float_tensor(name, self.graph.tensor(tensor).shape, (codes - zero_point) * scale)

    def _quantization(self, tensor: int) -> tuple[Array, Array, tuple[int, int], int]:
        """Scales, zero points, the least and the largest code, and the axis of the scales."""
        quantization: Any = self.graph.tensor(tensor).quantization
        scales, zero_points = (np.asarray(v, np.float64) for v in (quantization.scale, quantization.zeroPoint))
        return scales, zero_points, self.graph.code_limits(tensor), int(quantization.quantizedDimension)

    def _reconnect_output(self, position: int, tensor: int) -> None:
        """Let the model return the tensor that was rounded; it takes over the output's name."""
        source = self._source(tensor)
        if source == tensor:
            return
        if source not in (*self.index.graph_inputs, *self.index.graph_outputs):
            self.graph.tensor(source).name = self.graph.tensor(tensor).name
        self.graph.replace_output(position, source)

    def _trained_ranges(self) -> TrainedRanges:
        index = GraphIndex(self.graph)
        _carry_back(index, self.range_by_tensor)
        _carry_forward(index, self.range_by_tensor)
        return TrainedRanges(
            {index.names[tensor]: trained_range for tensor, trained_range in self.range_by_tensor.items()},
            {name: index.names[tensor] for name, tensor in self.tensor_by_fake_quant.items()},
            tuple(index.names[tensor] for tensor in _untrained_tensors(index, self.range_by_tensor)),
            tuple(index.names[tensor] for tensor in dict.fromkeys(self.conflicts)),
        )


def _reshaped_ranges(index: GraphIndex, range_by_name: Mapping[str, TrainedRange]) -> dict[str, TrainedRange]:
    """The ranges of tensors that only a RESHAPE with a trained output reads, and that have none themselves."""
    reshapes = [number for number, kind in enumerate(index.kinds) if kind == "RESHAPE"]
    names_by_source = {
        index.inputs[number][0]: index.output_names(number)[0]
        for number in reshapes
        if index.readers_by_tensor[index.inputs[number][0]] == [number]
    }
    return {
        index.names[source]: range_by_name[name]
        for source, name in names_by_source.items()
        if name in range_by_name and index.names[source] not in range_by_name and source not in index.graph_outputs
    }


def _carry_back(index: GraphIndex, range_by_tensor: dict[int, TrainedRange]) -> None:
    """Give tensors without a range that of their readers' outputs, if every reader stores it in that: what is only
    reshaped, or only joined with others."""
    for number in reversed(range(len(index.operators))):
        for tensor in index.inputs[number]:
            is_computed = tensor in index.producer_by_tensor or tensor in index.graph_inputs
            if tensor in range_by_tensor or not is_computed or tensor in index.graph_outputs:
                continue
            ranges = {_joint_range(index, reader, range_by_tensor) for reader in index.readers_by_tensor[tensor]}
            joint_range = ranges.pop()
            if not ranges and joint_range is not None:
                range_by_tensor[tensor] = joint_range


def _carry_forward(index: GraphIndex, range_by_tensor: dict[int, TrainedRange]) -> None:
    """Give outputs that are stored in the scale of their input its range: no sample moves that."""
    for number, kind in enumerate(index.kinds):
        requirement = KERNEL_REQUIREMENTS.get(kind)
        if requirement is None or requirement.scale_rule is not ScaleRule.OF_INPUT:
            continue
        source = index.inputs[number][index.float_inputs(number)[0]] if index.float_inputs(number) else -1
        if source in range_by_tensor:
            range_by_tensor |= dict.fromkeys(index.float_outputs(number), range_by_tensor[source])


def _joint_range(index: GraphIndex, number: int, range_by_tensor: dict[int, TrainedRange]) -> TrainedRange | None:
    """The trained range of an operator's output, if its inputs are stored in the same."""
    requirement = KERNEL_REQUIREMENTS.get(index.kinds[number])
    shares_range = requirement is not None and requirement.scale_rule is ScaleRule.OF_OUTPUT
    if index.kinds[number] not in RESHAPING_OPERATORS and not shares_range:
        return None
    return range_by_tensor.get(index.outputs[number][0])


def _has_own_range(index: GraphIndex, number: int) -> bool:
    """Whether an operator's output is stored neither in the scale of its input nor in a prescribed one."""
    requirement = KERNEL_REQUIREMENTS.get(index.kinds[number])
    return requirement is None or (
        requirement.scale_rule is not ScaleRule.OF_INPUT and requirement.fixed_output_by_bits is None
    )


def _untrained_tensors(index: GraphIndex, range_by_tensor: Mapping[int, TrainedRange]) -> list[int]:
    computed_tensors = [
        tensor
        for number in range(len(index.operators))
        if _has_own_range(index, number)
        for tensor in index.float_outputs(number)
    ]
    float_inputs = [tensor for tensor in index.graph_inputs if tensor in index.float_tensors]
    return [tensor for tensor in (*float_inputs, *computed_tensors) if tensor not in range_by_tensor]
