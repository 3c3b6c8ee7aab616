"""States of a streaming model: what one call gives is what the next one takes, so both have one encoding.

A state's input and its output share their range, and with them the tensors that the output has its scale from (a slice,
a reshape). Where a kernel prescribes the scale of the output, the input takes it too.
"""

from collections.abc import Iterable, Mapping
from typing import final

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.encoding import Encoding, choose_computed_encoding
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import BitWidth, KernelRequirement, ScaleRule, requirement_of
from edgepipe.compress.quantizer.mutable_graph import MutableGraph
from edgepipe.tflite.stream_ports import STREAMING_NAME, StreamPorts


def find_state_pairs(graph: MutableGraph) -> list[tuple[int, int]]:
    """(input, output) of each state of a streaming model, as tensor indices; none of any other model."""
    model = graph.model
    entry = next((entry for entry in model.metadata or [] if entry.name.decode() == STREAMING_NAME), None)
    if entry is None:
        return []
    ports = StreamPorts.model_validate_json(bytes(bytearray(model.buffers[entry.buffer].data)))
    inputs, outputs = (
        {tensor_map.name.decode(): int(tensor_map.tensorIndex) for tensor_map in side}
        for side in (model.signatureDefs[0].inputs, model.signatureDefs[0].outputs)
    )
    return [(inputs[state.input], outputs[state.output]) for state in ports.states]


@final
class SharedStates:
    """Which tensors of a graph must be stored alike, because they hold one state."""

    def __init__(self, index: GraphIndex, ranges: Mapping[str, ActivationRange]) -> None:
        self.index, self.ranges = index, ranges
        self._members_by_tensor: dict[int, frozenset[int]] = {}
        for state_input, state_output in find_state_pairs(index.graph):
            self._join([state_input, *self._scale_sources(state_output)])

    def __contains__(self, tensor: int) -> bool:
        return tensor in self._members_by_tensor

    def range_of(self, tensor: int) -> ActivationRange | None:
        """The range of all tensors that hold the state of `tensor`; None if one of them has none."""
        member_ranges = [self.ranges.get(self.index.names[member]) for member in self._members_by_tensor[tensor]]
        known_ranges = [member_range for member_range in member_ranges if member_range is not None]
        if len(known_ranges) < len(member_ranges):
            return None
        return min(low for low, _ in known_ranges), max(high for _, high in known_ranges)

    def encoding_of(self, tensor: int, bits: BitWidth) -> Encoding:
        """The encoding of all tensors that hold the state of `tensor`, which has a range."""
        requirements = list(self._producer_requirements(self._members_by_tensor[tensor]))
        for requirement in requirements:
            if requirement.fixed_output_by_bits is not None:
                return Encoding(bits, *requirement.fixed_output_by_bits[bits])
        state_range = self.range_of(tensor)
        assert state_range is not None, "integer operators compute and read tensors with ranges"
        is_symmetric = any(requirement.symmetric_output for requirement in requirements)
        return choose_computed_encoding(state_range, bits, symmetric=is_symmetric)

    def _join(self, tensors: Iterable[int]) -> None:
        """Make one group of `tensors` and of the groups that they are in."""
        members = frozenset(tensors).union(*(self._members_by_tensor.get(tensor, ()) for tensor in tensors))
        self._members_by_tensor.update(dict.fromkeys(members, members))

    def _scale_sources(self, tensor: int) -> list[int]:
        """The tensor, and those that it has its scale from, back to the one that has a scale of its own."""
        sources = [tensor]
        while (number := self.index.producer_by_tensor.get(sources[-1])) is not None:
            requirement = requirement_of(self.index.kinds[number])
            if requirement is None or requirement.scale_rule is not ScaleRule.OF_INPUT:
                break
            sources.append(self.index.inputs[number][self.index.float_inputs(number)[0]])
        return sources

    def _producer_requirements(self, tensors: Iterable[int]) -> Iterable[KernelRequirement]:
        numbers = (self.index.producer_by_tensor.get(tensor) for tensor in sorted(tensors))
        requirements = (requirement_of(self.index.kinds[number]) for number in numbers if number is not None)
        return (requirement for requirement in requirements if requirement is not None)
