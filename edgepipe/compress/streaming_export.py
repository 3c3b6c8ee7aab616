"""The float .tflite of one call of a stream, proven equal to the model over whole sequences.

Its states are inputs and outputs, and the file says which output is which input of the next call. From there on,
whatever runs or quantizes the file reads whole sequences.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from edgepipe.compress.port_signature import write_signature
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.bridge import TOLERANCE, random_batch, relative_difference
from edgepipe.models.freeze import ModelInput
from edgepipe.models.id_inputs import find_id_limits, find_tf_keras_id_limits
from edgepipe.models.keras3_graph import build_graph
from edgepipe.models.keras_types import AnyKerasModel
from edgepipe.models.port_names import input_names
from edgepipe.models.streaming import StreamingGraph, mixing_layers_text, sequence_shapes
from edgepipe.models.streaming_reference import run_whole
from edgepipe.tflite.interpreter import Runtime, predict
from edgepipe.tflite.model import Model
from edgepipe.tflite.sample_conversion import ModelOutputs
from edgepipe.tflite.stream_ports import StatePort, StreamPorts, embed_stream_ports, own_outputs, read_stream_ports

COMPARED_SEQUENCES = 8
COMPARED_CALLS = 4  # of random sequences, without samples


def name_stream(content: bytes, streaming: StreamingGraph) -> bytes:
    """The float .tflite of a streaming graph, with a signature, and with the ports of its states inside."""
    ports = StreamPorts(
        steps=streaming.steps,
        states=tuple(StatePort(input=state.name, output=state.output_name) for state in streaming.states),
        step_outputs=streaming.step_outputs,
    )
    return embed_stream_ports(write_signature(content, streaming.graph.ports), ports)


def sequence_inputs(streaming: StreamingGraph, samples: Arrays) -> tuple[ModelInput, ...]:
    """The inputs that are no states, as long as the sequences of `samples`.

    Raises:
        InputError: sequences that are not a multiple of the steps of a call.
    """
    own_inputs = streaming.graph.inputs[: len(streaming.graph.inputs) - len(streaming.states)]
    first_array = np.asarray(next(iter(samples.values())) if isinstance(samples, dict) else samples)
    length = first_array.shape[1] if first_array.ndim > 1 else 0
    if length == 0 or length % streaming.steps:
        raise InputError(
            f"streaming: samples are whole sequences, (samples, steps, ..), of a multiple of the {streaming.steps} "
            f"steps of a call; found the shape {first_array.shape}"
        )
    return tuple(ModelInput(port.name, (1, length, *port.shape[2:]), port.dtype) for port in own_inputs)


def check_stream(model: AnyKerasModel, path: Path, streaming: StreamingGraph, sequences: list[Array] | None) -> float:
    """The largest relative difference of the float .tflite at `path` from `model`, over whole sequences.

    Args:
        model: the Keras model.
        path: the streaming .tflite.
        streaming: the graph that it was made from.
        sequences: of each input, (samples, steps, ...); None: random ones.

    Raises:
        InputError: they compute something else.
    """
    compared = [array[:COMPARED_SEQUENCES] for array in sequences or _random_sequences(model, streaming)]
    own_inputs = streaming.graph.inputs[: len(compared)]
    streamed = predict(path, {port.name: x for port, x in zip(own_inputs, compared, strict=True)}, Runtime.BUILTIN)
    names = streaming.graph.output_names[: len(streaming.graph.output_names) - len(streaming.states)]
    has_step_entries = [name in streaming.step_outputs for name in names]
    whole_outputs = run_whole(model, streaming.steps, has_step_entries, compared)
    differences = [
        relative_difference(whole, array) for whole, array in zip(whole_outputs, _list_outputs(streamed), strict=True)
    ]
    difference = max(differences)
    if not difference <= TOLERANCE:
        raise InputError(
            f"streaming: read {streaming.steps} steps a call, the model computes something else than over the whole "
            f"sequence of {compared[0].shape[1]} steps: output '{names[differences.index(difference)]}' differs by "
            f"{difference:.1e} of its largest value (allowed {TOLERANCE:.0e}); {mixing_layers_text(model)}"
        )
    return difference


def _list_outputs(outputs: ModelOutputs) -> list[Array]:
    arrays = outputs.real_values
    return list(arrays.values()) if isinstance(arrays, dict) else [arrays]


def whole_outputs(model: AnyKerasModel, lite: Model, samples: Arrays) -> list[Array]:
    """The outputs of the Keras model over whole sequences, as the streaming .tflite `lite` made from it gives them."""
    ports = read_stream_ports(lite)
    assert ports is not None, "it was exported as a stream"
    has_step_entries = [name in ports.step_outputs for name in own_outputs(lite)]
    sequences = [samples[name] for name in input_names(model)] if isinstance(samples, dict) else [samples]
    dtypes = [tf.as_dtype(tensor.dtype).name for tensor in model.inputs]
    typed_sequences = [np.asarray(array).astype(dtype) for array, dtype in zip(sequences, dtypes, strict=True)]
    return run_whole(model, ports.steps, has_step_entries, typed_sequences)


def _random_sequences(model: AnyKerasModel, streaming: StreamingGraph) -> list[Array]:
    own_length = model.inputs[0].shape[1]
    is_fitting = own_length is not None and own_length > streaming.steps and own_length % streaming.steps == 0
    shapes = sequence_shapes(model, own_length if is_fitting else COMPARED_CALLS * streaming.steps)
    is_keras3 = isinstance(model, keras.Model)
    limits = find_id_limits(build_graph(model)) if is_keras3 else find_tf_keras_id_limits(model)
    specs = [
        ((COMPARED_SEQUENCES, *shape[1:]), port.dtype, port.name)
        for shape, port in zip(shapes, streaming.graph.inputs, strict=False)
    ]
    return [np.asarray(tensor) for tensor in random_batch(specs, limits, seed=0)]


def stream_notes(lite: Model, difference: float, sequences: Sequence[Array] | None) -> list[str]:
    """Notes on a streaming model: which output feeds which input, the proof, and samples of one call only.

    Args:
        lite: the streaming .tflite, in its final form.
        difference: what `check_stream` found.
        sequences: that calibrate; None if nothing was calibrated.
    """
    ports = read_stream_ports(lite)
    assert ports is not None, "it was exported as a stream"
    notes = [_state_note(lite, ports, difference)]
    if sequences is not None and sequences[0].shape[1] == ports.steps:
        notes.append(
            "streaming: every sample is as long as one call, so that no state of an earlier call was calibrated; give "
            f"whole sequences, (samples, steps, ..) of more than {ports.steps} steps"
        )
    return notes


def _state_note(lite: Model, ports: StreamPorts, difference: float) -> str:
    states_text = ", ".join(
        f"'{state.output}' as '{state.input}' (zero is {_zero_text(lite, state.input)})" for state in ports.states
    )
    last_outputs = [f"'{name}'" for name in own_outputs(lite) if name not in ports.step_outputs]
    last_text = f"; {', '.join(last_outputs)} holds after the last call" if last_outputs else ""
    return (
        f"streaming: {plural(ports.steps, 'step')} a call; the next call takes {states_text}, the first call zeros"
        f"{last_text}; in float, equal to the model over whole sequences up to {difference:.1e}"
    )


def _zero_text(lite: Model, name: str) -> str:
    quantization = lite.inputs_by_name[name].quantization
    return "0.0" if quantization is None else f"code {quantization.zero_points[0]}"
