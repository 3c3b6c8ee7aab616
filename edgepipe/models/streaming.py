"""A model that reads its sequence in pieces: what its layers remember becomes inputs and outputs of each call.

Recurrent layers hand over their states, causal Conv1D layers the last steps that they read. Both are traced with a
state that is given and kept instead of one of zeros: the layers compute what they compute over a whole sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import keras
import tensorflow as tf
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.models.fixed_inputs import with_input_shapes
from edgepipe.models.freeze import FrozenGraph, ModelInput, call_model, freeze_calls, model_inputs
from edgepipe.models.input_shapes import check_is_graph, input_name
from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel, Tensor, TensorTree
from edgepipe.models.port_names import number_repeats, output_names
from edgepipe.models.recurrent_layers import (
    MAX_UNROLLED_STEPS,
    all_layers,
    changed_attributes,
    recurrent_layers,
    unrolled,
)

NEXT_SUFFIX = "_next"  # of the output that holds a state after the call
_STATE_NAMES = {"LSTM": ("h", "c"), "ConvLSTM": ("h", "c"), "GRU": ("h",), "SimpleRNN": ("h",), "Conv1D": ("steps",)}
_MIXING_LAYERS = (  # what reads several steps at once, and remembers none of them
    *("AveragePooling1D", "MaxPooling1D", "GlobalAveragePooling1D", "GlobalMaxPooling1D", "Flatten", "Reshape"),
    *("Permute", "RepeatVector", "ZeroPadding1D", "Cropping1D", "UpSampling1D", "Attention", "AdditiveAttention"),
    *("MultiHeadAttention", "GroupQueryAttention", "Conv1D", "SeparableConv1D", "DepthwiseConv1D", "Conv1DTranspose"),
    *("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "AveragePooling2D", "MaxPooling2D", "Masking"),
)


@final
@dataclass(frozen=True)
class StreamState:
    """What one layer remembers from call to call: the names of its input and output, and its shape."""

    name: str
    output_name: str
    shape: tuple[int, ...]


@final
@dataclass(frozen=True)
class StreamingGraph:
    """A frozen graph of one call; its last inputs and outputs are `states`."""

    graph: FrozenGraph
    steps: int
    states: tuple[StreamState, ...]
    step_outputs: tuple[str, ...]  # outputs with an entry for every step


def sequence_shapes(model: AnyKerasModel, steps: int) -> list[tuple[int | None, ...]]:
    """The shape of each input of `model` with a batch of one and `steps` steps.

    Raises:
        InputError: inputs that are no sequences of one length.
    """
    check_is_graph(model)
    shapes = [tuple(tensor.shape) for tensor in model.inputs]
    lengths = {shape[1] for shape in shapes if len(shape) > 1}
    if len(lengths) != 1 or any(len(shape) < 2 for shape in shapes):
        shapes_text = ", ".join(
            f"'{input_name(tensor)}' {shape}" for tensor, shape in zip(model.inputs, shapes, strict=True)
        )
        raise InputError(
            f"streaming: every input must be a sequence (batch, steps, ..) of one length, found {shapes_text}; give "
            "what does not change with time as a sequence that repeats it"
        )
    return [(1, steps, *shape[2:]) for shape in shapes]


def freeze_streaming(model: AnyKerasModel, steps: int) -> StreamingGraph:
    """Freeze a Keras 3 or tf_keras model that takes `steps` steps and its states at a time.

    Raises:
        InputError: nothing in it keeps a state, or something in it cannot read a sequence in pieces.
    """
    _check_can_stream(model)
    call_shaped_model = _with_call_shapes(model, steps)
    recorded_states = _record_states(call_shaped_model, steps)
    if not recorded_states:
        raise InputError(
            "streaming: the model keeps no state from step to step: found no recurrent layer (LSTM, GRU, SimpleRNN, "
            "RNN, ConvLSTM) and no causal Conv1D; drop `streaming` (--streaming)"
        )
    own_inputs, own_outputs = model_inputs(call_shaped_model), output_names(model)
    states = _name_states(recorded_states, [port.name for port in own_inputs], own_outputs)
    state_inputs = tuple(ModelInput(state.name, state.shape, "float32") for state in states)

    def infer(*tensors: Tensor) -> list[Tensor]:
        exchange = _StateExchange(list(tensors[len(own_inputs) :]))
        with _exchanging(call_shaped_model, exchange):
            outputs = call_model(call_shaped_model, tensors[: len(own_inputs)])
        return [*outputs, *exchange.next_states]

    inputs = (*own_inputs, *state_inputs)
    function = freeze_calls(call_shaped_model, infer, inputs)
    graph = FrozenGraph(function, inputs, (*own_outputs, *(state.output_name for state in states)))
    return StreamingGraph(graph, steps, states, _find_step_outputs(model, graph, steps))


def _with_call_shapes(model: AnyKerasModel, steps: int) -> AnyKerasModel:
    shapes = sequence_shapes(model, steps)
    try:
        return with_input_shapes(model, shapes)
    except InputError as error:
        raise InputError(f"streaming, {steps} steps a call: {error}; {mixing_layers_text(model)}") from error


def _check_can_stream(model: AnyKerasModel) -> None:
    for layer in all_layers(model):
        kind, inner_layers = type(layer).__name__, layer._flatten_layers(include_self=False)
        if kind == "Bidirectional" or getattr(layer, "go_backwards", False):
            raise InputError(
                f"streaming: '{layer.name}' ({kind}) reads the sequence backwards, from a future that a stream has not "
                "seen; use a forward layer, or convert whole windows without `streaming`"
            )
        if kind == "TimeDistributed" and any(_keeps_state(inner) for inner in inner_layers):
            raise InputError(
                f"streaming: '{layer.name}' (TimeDistributed) repeats a recurrent layer for each step, which starts "
                "anew each time; convert whole windows without `streaming`"
            )


def _keeps_state(layer: AnyKerasLayer) -> bool:
    return hasattr(layer, "unroll") or _is_causal(layer)


def _is_causal(layer: AnyKerasLayer) -> bool:
    return isinstance(layer, keras.layers.Conv1D | tf_keras.layers.Conv1D) and layer.padding == "causal"


def mixing_layers_text(model: AnyKerasModel) -> str:
    """Why `model` cannot read a sequence in pieces, as far as the classes of its layers tell, and what to do."""
    names = [
        f"'{layer.name}' ({type(layer).__name__})"
        for layer in all_layers(model)
        if type(layer).__name__ in _MIXING_LAYERS and not _is_causal(layer)
    ]
    reason = (
        f"{', '.join(names)} may read several steps at once, and only recurrent layers and causal Conv1D remember them"
        if names
        else "a layer of it, or a mask, reads several steps at once"
    )
    return f"{reason}; use Conv1D(padding='causal') there, other steps a call, or whole windows without `streaming`"


@final
@dataclass(frozen=True)
class _RecordedState:
    """A state as a layer keeps it, with the plain name of its kind."""

    layer: str
    kind: str
    shape: tuple[int, ...]


@final
class _StateExchange:
    """Gives each layer its states while a model is called, and keeps what they have become."""

    def __init__(self, given_states: list[Tensor] | None = None) -> None:
        """`given_states`: in the order in which layers ask for them; None gives each the zeros that it starts from."""
        self._given_states = given_states
        self._layer_ids: set[int] = set()
        self.problems: list[str] = []  # collected: both Keras rewrite an error that a layer raises when it is called
        self.recorded_states: list[_RecordedState] = []
        self.next_states: list[Tensor] = []

    def take(self, layer: AnyKerasLayer, zero_states: list[Tensor]) -> list[Tensor]:
        """The states of `layer` before the call."""
        if id(layer) in self._layer_ids:
            self.problems.append(
                f"'{layer.name}' is called more than once, and each call would need states of its own; give each call "
                "a layer of its own"
            )
        self._layer_ids.add(id(layer))
        kinds = _state_kinds(layer, len(zero_states))
        self.recorded_states += [
            _RecordedState(layer.name, kind, tuple(state.shape)) for kind, state in zip(kinds, zero_states, strict=True)
        ]
        if self._given_states is None:
            return zero_states
        taken_states = self._given_states[: len(zero_states)]
        del self._given_states[: len(zero_states)]
        return taken_states


def _state_kinds(layer: AnyKerasLayer, count: int) -> tuple[str, ...]:
    kinds = next((kinds for name, kinds in _STATE_NAMES.items() if type(layer).__name__.startswith(name)), ())
    return kinds if len(kinds) == count else tuple(f"state_{number}" for number in range(count))


@contextmanager
def _exchanging(model: AnyKerasModel, exchange: _StateExchange) -> Iterator[None]:
    """Layers take their states from `exchange`, when `model` is called inside the block; loops are unrolled."""
    layers = list(all_layers(model))
    recurrent_calls = [(layer, "call", _recurrent_call(layer, exchange)) for layer in recurrent_layers(model)]
    causal_calls = [(layer, "call", _causal_call(layer, exchange)) for layer in layers if _is_causal(layer)]
    with unrolled(model), changed_attributes([*recurrent_calls, *causal_calls]):
        yield


def _recurrent_call(layer: AnyKerasLayer, exchange: _StateExchange) -> Callable[..., TensorTree]:
    usual_call, is_keras3 = layer.call, isinstance(layer, keras.Layer)

    def call(inputs: TensorTree, *args: Any, **kwargs: Any) -> TensorTree:
        if kwargs.get("initial_state") is not None or isinstance(inputs, list | tuple) or (is_keras3 and args):
            exchange.problems.append(
                f"'{layer.name}' starts from a state that the model computes (initial_state), which only the first "
                "call would have; convert whole windows without `streaming`"
            )
            return usual_call(inputs, *args, **kwargs)
        zero_structure = layer.get_initial_state(batch_size=1) if is_keras3 else layer.get_initial_state(inputs)
        zero_structure = list(zero_structure) if isinstance(zero_structure, list | tuple) else [zero_structure]
        states = exchange.take(layer, list(tf.nest.flatten(zero_structure)))
        kwargs["initial_state"] = tf.nest.pack_sequence_as(zero_structure, states)
        changes = [(layer, "return_state", True), *([(layer, "stateful", False)] if layer.stateful else [])]
        with changed_attributes(changes):
            output, *next_structure = usual_call(inputs, *args, **kwargs)
        exchange.next_states += tf.nest.flatten(next_structure)
        if not layer.return_sequences and _state_kinds(layer, len(states))[0] == "h":
            output = next_structure[0]  # where every step of a call is masked, the output of the call before
        return [output, *next_structure] if layer.return_state else output

    return call


def _causal_call(layer: AnyKerasLayer, exchange: _StateExchange) -> Callable[..., TensorTree]:
    usual_call, stride = layer.call, layer.strides[0]
    kept_steps = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]

    def call(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kept_steps == 0:
            return usual_call(inputs, *args, **kwargs)
        if inputs.shape[1] % stride or layer.data_format != "channels_last":
            exchange.problems.append(
                f"'{layer.name}' (causal Conv1D) has a stride of {stride} and reads {inputs.shape[1]} steps in a call, "
                f"{layer.data_format}; the steps must be a multiple of the stride, channels last"
            )
            return usual_call(inputs, *args, **kwargs)
        (last_steps,) = exchange.take(layer, [tf.zeros((1, kept_steps, inputs.shape[2]))])
        all_steps = tf.concat([last_steps, inputs], axis=1)
        exchange.next_states.append(all_steps[:, -kept_steps:])
        tf_keras_changes = [(layer, "_is_causal", False)] if hasattr(layer, "_is_causal") else []
        with changed_attributes([(layer, "padding", "valid"), *tf_keras_changes]):
            return usual_call(all_steps, *args, **kwargs)

    return call


def _record_states(call_shaped_model: AnyKerasModel, steps: int) -> list[_RecordedState]:
    """The states of all layers, in the order in which the model calls them."""
    if steps > MAX_UNROLLED_STEPS:
        raise InputError(f"streaming: a call takes at most {MAX_UNROLLED_STEPS} steps, found {steps}; choose fewer")
    exchange, _ = _trace_call(call_shaped_model)
    if exchange.problems:
        raise InputError(f"streaming: {exchange.problems[0]}")
    return exchange.recorded_states


def _trace_call(call_shaped_model: AnyKerasModel) -> tuple[_StateExchange, list[Tensor]]:
    """One call from states of zero: the states that the layers asked for, and the symbolic outputs."""
    exchange = _StateExchange()

    def infer(*tensors: Tensor) -> list[Tensor]:
        with _exchanging(call_shaped_model, exchange):
            return call_model(call_shaped_model, tensors)

    specs = [tf.TensorSpec(port.shape, port.dtype) for port in model_inputs(call_shaped_model)]
    function = tf.function(infer, autograph=False).get_concrete_function(*specs)
    return exchange, list(function.outputs)


def _name_states(
    recorded_states: Sequence[_RecordedState], input_names: list[str], own_outputs: list[str]
) -> tuple[StreamState, ...]:
    plain_names = [f"{state.layer.replace('/', '_')}_{state.kind}" for state in recorded_states]
    names = number_repeats([*input_names, *plain_names])[len(input_names) :]
    next_names = number_repeats([*own_outputs, *(f"{name}{NEXT_SUFFIX}" for name in names)])[len(own_outputs) :]
    return tuple(
        StreamState(name, next_name, state.shape)
        for name, next_name, state in zip(names, next_names, recorded_states, strict=True)
    )


def _find_step_outputs(model: AnyKerasModel, graph: FrozenGraph, steps: int) -> tuple[str, ...]:
    """The outputs whose second axis grows with the steps of a call.

    None of a model that takes no other number of steps: its outputs are of the call.
    """
    try:
        _, outputs = _trace_call(with_input_shapes(model, sequence_shapes(model, 2 * steps)))
    except InputError:
        return ()
    return tuple(
        name
        for name, call_output, output in zip(graph.output_names, graph.function.outputs, outputs, strict=False)
        if call_output.shape.rank > 1 and call_output.shape[1] != output.shape[1]
    )
