"""Chooses how each tensor of a float graph is stored in integers, and what each operator reads.

Every tensor is stored in its own range. An operator whose kernel demands another scale reads a requantized copy, so
that the tensor's other readers lose nothing. A copy is saved where it buys nothing: a tensor takes the scale that its
readers demand if all of them demand the same one, or if that costs the others next to nothing.
"""

from collections.abc import Mapping, Sequence
from typing import final

from edgepipe.compress.quantizer.activation_calibration import ActivationRange, TrainedRange
from edgepipe.compress.quantizer.encoding import Encoding, choose_computed_encoding, choose_encoding
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.compress.quantizer.kernel_requirements import (
    AVERAGING_OPERATORS,
    EQUALITY_OPERATORS,
    BitWidth,
    KernelRequirement,
    ScaleRule,
    requirement_of,
)
from edgepipe.compress.quantizer.shared_states import SharedStates

# of a tensor that takes a demanded scale although others read it: beyond this, what those lose (20 log10 of it) is more
# than what the demanding reader gains, which is spared the rounding of a copy (10 log10(1 + 1 / growth^2))
MAX_SCALE_GROWTH = 1.27


@final
class EncodingPlan:
    """The encoding of every tensor of a graph, and the bits of every operator.

    Tensors that pass through operators of `ScaleRule.OF_INPUT` form a group with one encoding; it is looked up by the
    group's first tensor.
    """

    def __init__(
        self,
        index: GraphIndex,
        bits_by_operator: Sequence[BitWidth | None],
        ranges: Mapping[str, ActivationRange],
        input_bits: Mapping[int, BitWidth],
    ) -> None:
        """Plan the encodings.

        Args:
            index: the float graph.
            bits_by_operator: bits of each operator's activations; None for operators that stay in float.
            ranges: of every activation that an integer operator reads or computes, by tensor name.
            input_bits: how graph inputs are stored; inputs that are missing stay float.
        """
        self.index, self.bits_by_operator, self.ranges = index, bits_by_operator, ranges
        self.shared_states = SharedStates(index, ranges)
        self._root_by_tensor: dict[int, int] = {}
        self._members_by_root: dict[int, list[int]] = {}
        self._encoding_by_root: dict[int, Encoding] = {}
        for tensor, bits in input_bits.items():
            self._start_group(tensor, self.own_encoding(tensor, bits))
        for number in range(len(index.operators)):
            self._store_outputs(number)
        for number in reversed(range(len(index.operators))):
            self._lend_scale(number)

    def stored(self, tensor: int) -> Encoding | None:
        """How a computed tensor or graph input is stored; None: in float."""
        root = self._root_by_tensor.get(tensor)
        return None if root is None else self._encoding_by_root[root]

    def demanded(self, number: int, position: int) -> Encoding | None:
        """How an operator wants to read one of its float inputs; None: in float."""
        bits, requirement = self.bits_by_operator[number], self._requirement(number)
        if bits is None or requirement is None:
            return None
        tensor = self.index.inputs[number][position]
        if requirement.scale_rule is ScaleRule.COMPARED:
            return self._compared_encoding(number, tensor, bits)
        if requirement.scale_rule is not ScaleRule.OWN:
            return self.stored(self.index.float_outputs(number)[0])
        encoding = self.readable_encoding(tensor, bits)
        needs_symmetry = position in requirement.symmetric_positions and encoding.zero_point != 0
        return choose_encoding(self._range(tensor), bits, symmetric=True) if needs_symmetry else encoding

    def own_encoding(self, tensor: int, bits: BitWidth) -> Encoding:
        """The encoding of a tensor's own range, or of the state that it holds."""
        if tensor in self.shared_states:
            return self.shared_states.encoding_of(tensor, bits)
        return choose_encoding(self._range(tensor), bits)

    def _range(self, tensor: int) -> ActivationRange:
        known_range = (
            self.shared_states.range_of(tensor)
            if tensor in self.shared_states
            else self.ranges.get(self.index.names[tensor])
        )
        if known_range is not None:  # of a constant too, if some of its elements may saturate
            return known_range
        constant = self.index.constant(tensor)
        assert constant is not None, "integer operators compute and read tensors with ranges"
        return (float(constant.min()), float(constant.max())) if constant.size else (0.0, 1.0)

    def _is_trained(self, tensor: int) -> bool:
        """Whether training has decided the range of a tensor."""
        return isinstance(self.ranges.get(self.index.names[tensor]), TrainedRange)

    def _requirement(self, number: int) -> KernelRequirement | None:
        return requirement_of(self.index.kinds[number])

    def readable_encoding(self, tensor: int, bits: BitWidth) -> Encoding:
        """The stored encoding of a tensor if it has `bits`, else that of its own range."""
        encoding = self.stored(tensor)
        return encoding if encoding is not None and encoding.bits == bits else self.own_encoding(tensor, bits)

    def _compared_encoding(self, number: int, tensor: int, bits: BitWidth) -> Encoding:
        """A constant that is compared for equality takes the scale of the other side, so that equal numbers have equal
        codes; 16-bit kernels compare codes in any case, so all inputs need one scale."""
        tensors = [self.index.inputs[number][position] for position in self.index.float_inputs(number)]
        computed_tensors = [each for each in tensors if self.index.constant(each) is None]
        is_equality = self.index.kinds[number] in EQUALITY_OPERATORS
        if is_equality and len(computed_tensors) == 1:
            return self.readable_encoding(computed_tensors[0], bits)
        if bits == 16:
            ranges = [self._range(each) for each in tensors]
            return choose_encoding((min(low for low, _ in ranges), max(high for _, high in ranges)), bits)
        return self.readable_encoding(tensor, bits)

    def _start_group(self, tensor: int, encoding: Encoding) -> None:
        self._root_by_tensor[tensor] = tensor
        self._members_by_root[tensor] = [tensor]
        self._encoding_by_root[tensor] = encoding

    def _join_group(self, tensor: int, root: int) -> None:
        self._root_by_tensor[tensor] = root
        self._members_by_root[root].append(tensor)

    def _store_outputs(self, number: int) -> None:
        bits, requirement = self.bits_by_operator[number], self._requirement(number)
        outputs = self.index.float_outputs(number)
        if bits is None or requirement is None or not outputs:
            return
        if requirement.scale_rule is ScaleRule.OF_INPUT:
            self._follow_input(number, outputs, bits)
            return
        for tensor in outputs:
            if requirement.fixed_output_by_bits is not None:
                self._start_group(tensor, Encoding(bits, *requirement.fixed_output_by_bits[bits]))
            elif tensor in self.shared_states:
                self._start_group(tensor, self.shared_states.encoding_of(tensor, bits))
            else:
                output_range = self._output_range(number, tensor, bits)
                self._start_group(
                    tensor, choose_computed_encoding(output_range, bits, symmetric=requirement.symmetric_output)
                )

    def _output_range(self, number: int, tensor: int, bits: BitWidth) -> ActivationRange:
        """The range of an output that is stored in its own; that of RSQRT ends where its input has no codes.

        One row of zeros among the samples (padding, silence) may have the reciprocal root of an epsilon, a hundred
        times larger than all others; in integers it is that of the least code.
        """
        low, high = self._range(tensor)
        if self.index.kinds[number] != "RSQRT" or self._is_trained(tensor):
            return low, high
        return low, min(high, self.readable_encoding(self.index.inputs[number][0], bits).scale ** -0.5)

    def _follow_input(self, number: int, outputs: list[int], bits: BitWidth) -> None:
        """Store outputs as the first input is read, in its group if that is how it is stored."""
        source = self.index.inputs[number][self.index.float_inputs(number)[0]]
        encoding, stored_source = self.readable_encoding(source, bits), self.stored(source)
        if stored_source != encoding:
            self._start_group(outputs[0], encoding)
        root = self._root_by_tensor[source if stored_source == encoding else outputs[0]]
        for tensor in outputs:
            if tensor != root:
                self._join_group(tensor, root)

    def _lend_scale(self, number: int) -> None:
        """Give the scale that an operator demands of all its inputs to those that can be stored in it."""
        requirement = self._requirement(number)
        if (
            self.bits_by_operator[number] is None
            or requirement is None
            or requirement.scale_rule is not ScaleRule.OF_OUTPUT
        ):
            return
        demanded_encoding = self.stored(self.index.outputs[number][0])
        for position in self.index.float_inputs(number):
            root = self._root_by_tensor.get(self.index.inputs[number][position])
            if root is not None and demanded_encoding is not None and self._can_take(root, demanded_encoding):
                self._encoding_by_root[root] = demanded_encoding

    def _can_take(self, root: int, encoding: Encoding) -> bool:
        """Whether a group can be stored in an encoding that one of its readers demands, without loss for the others."""
        own_encoding = self._encoding_by_root[root]
        if own_encoding == encoding or own_encoding.bits != encoding.bits or not self._can_rescale(root):
            return False
        if encoding.covers(self._range(root)):
            return encoding.scale <= own_encoding.scale * MAX_SCALE_GROWTH or self._all_demand(root, encoding)
        return self._all_demand(root, encoding) and not self._is_averaged(root)

    def _can_rescale(self, root: int) -> bool:
        """Whether a group can have any scale: no kernel and no training has decided it, no constant has a code of its
        own in it, and it holds no state."""
        if any(tensor in self.shared_states for tensor in self._members_by_root[root]):
            return False
        if self._is_trained(root) or any(
            self.index.kinds[number] in EQUALITY_OPERATORS for number in self._readers(root)
        ):
            return False
        producer = self.index.producer_by_tensor.get(root)
        requirement = None if producer is None else self._requirement(producer)
        return requirement is None or not (requirement.fixed_output_by_bits or requirement.symmetric_output)

    def _all_demand(self, root: int, encoding: Encoding) -> bool:
        """Whether every reader of a group, other than those that pass it on, demands `encoding`."""
        if any(tensor in self.index.graph_outputs for tensor in self._members_by_root[root]):
            return False
        return all(
            self._passes_on(reader, root) or self._demands_of_output(reader, encoding) for reader in self._readers(root)
        )

    def _readers(self, root: int) -> list[int]:
        members = self._members_by_root[root]
        return [number for tensor in members for number in self.index.readers_by_tensor.get(tensor, [])]

    def _passes_on(self, number: int, root: int) -> bool:
        return any(self._root_by_tensor.get(tensor) == root for tensor in self.index.outputs[number])

    def _demands_of_output(self, number: int, encoding: Encoding) -> bool:
        requirement = self._requirement(number)
        return (
            self.bits_by_operator[number] is not None
            and requirement is not None
            and requirement.scale_rule is ScaleRule.OF_OUTPUT
            and self.stored(self.index.outputs[number][0]) == encoding
        )

    def _is_averaged(self, root: int) -> bool:
        """Whether values of a group are averaged within it: saturated before is not saturated after."""
        producers = (self.index.producer_by_tensor.get(tensor) for tensor in self._members_by_root[root][1:])
        return any(number is not None and self.index.kinds[number] in AVERAGING_OPERATORS for number in producers)
