"""Runs a streaming .tflite over whole sequences: call by call, the states handed over as they are stored.

States are zero where a sequence begins.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite.model import Model, Tensor
from edgepipe.tflite.stream_ports import StreamPorts, own_inputs

InvokeFn = Callable[[list[Array]], list[Array]]  # one array per input of the model -> one per output, batch 1


@final
class SequenceRunner:
    """The calls of a streaming model, whatever runs it."""

    def __init__(self, model: Model, ports: StreamPorts, invoke: InvokeFn) -> None:
        self.model, self.ports, self.invoke = model, ports, invoke
        output_by_state = {state.input: state.output for state in ports.states}
        output_names = list(model.outputs_by_name)
        self._feedback = {  # position of a state's input -> position of its output
            position: output_names.index(output_by_state[name])
            for position, name in enumerate(model.inputs_by_name)
            if name in output_by_state
        }

    def run(self, sequences: Sequence[Array]) -> list[Array]:
        """The outputs for whole sequences, states left out: (samples, ...), of each step or of the last call.

        `sequences`: stored values of each input that is no state, (samples, steps, ...).
        """
        sample_outputs = [self._run_sample(calls) for calls in self._iter_samples(sequences)]
        return [np.concatenate(arrays) for arrays in zip(*sample_outputs, strict=True)]

    def list_calls(self, sequences: Sequence[Array]) -> list[Array]:
        """What each input of the model gets, states included, in all calls over whole sequences: (calls, ...)."""
        fed_arrays = [
            input_arrays for calls in self._iter_samples(sequences) for input_arrays, _ in self._iter_calls(calls)
        ]
        return [np.concatenate(arrays) for arrays in zip(*fed_arrays, strict=True)]

    def _iter_samples(self, sequences: Sequence[Array]) -> Iterator[list[list[Array]]]:
        """For each sample its calls, each an array (1, steps, ...) of every input that is no state."""
        call_steps = self.ports.steps
        for sample in range(len(sequences[0])):
            starts = range(0, sequences[0].shape[1], call_steps)
            yield [[array[sample : sample + 1, start : start + call_steps] for array in sequences] for start in starts]

    def _iter_calls(self, calls: list[list[Array]]) -> Iterator[tuple[list[Array], list[Array]]]:
        """(inputs, outputs) of each call over one sequence."""
        states = {position: _zero_state(self.model.inputs[position]) for position in self._feedback}
        for own_arrays in calls:
            remaining_arrays = iter(own_arrays)
            input_arrays = [
                states[position] if position in states else next(remaining_arrays)
                for position in range(len(self.model.inputs))
            ]
            outputs = self.invoke(input_arrays)
            yield input_arrays, outputs
            states = {position: outputs[output] for position, output in self._feedback.items()}

    def _run_sample(self, calls: list[list[Array]]) -> list[Array]:
        call_outputs = [outputs for _, outputs in self._iter_calls(calls)]
        return [
            np.concatenate([outputs[position] for outputs in call_outputs], axis=1)
            if name in self.ports.step_outputs
            else call_outputs[-1][position]
            for position, name in enumerate(self.model.outputs_by_name)
            if name not in self.ports.state_outputs
        ]


def _zero_state(tensor: Tensor) -> Array:
    zero_code = 0 if tensor.quantization is None else tensor.quantization.zero_points[0]
    return np.full(tensor.shape, zero_code, tensor.dtype)


def check_sequences(model: Model, ports: StreamPorts, array_by_input: dict[str, Array]) -> None:
    """Raise an `InputError` unless the inputs hold sequences of one length, a multiple of the steps of a call."""
    length_by_input = {
        name: array.shape[1] if (array := array_by_input[name]).ndim > 1 else 0 for name in own_inputs(model)
    }
    lengths = set(length_by_input.values())
    if len(lengths) > 1 or 0 in lengths or next(iter(lengths)) % ports.steps:
        lengths_text = ", ".join(f"'{name}' {length}" for name, length in length_by_input.items())
        raise InputError(
            f"{model.path}: a call takes {ports.steps} steps, so samples are sequences (samples, steps, ...) of a "
            f"multiple of {ports.steps} steps, of the same length for each input; found steps: {lengths_text}"
        )
