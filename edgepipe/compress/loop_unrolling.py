"""Freezes a model without loops: calibration reaches the tensors of unrolled steps, but not those inside a loop.

Keras runs recurrent layers as loops. They are unrolled while the graph is traced, and both graphs are compared.
"""

from dataclasses import dataclass

import tensorflow as tf

from edgepipe.compress.quantizer.fused_lstm import FUSED_LSTM
from edgepipe.compress.quantizer.quantization import QuantizationRequest
from edgepipe.compress.schemes import RecurrentForm
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.bridge import TOLERANCE, relative_difference
from edgepipe.models.freeze import FrozenGraph, freeze, freeze_saved_model
from edgepipe.models.fused_lstm_marker import MARKER_OPERATION, fused, fusible_layers
from edgepipe.models.keras_types import AnyKerasModel, TfFunction
from edgepipe.models.recurrent_layers import MAX_UNROLLED_STEPS, rolled_layers, unrolled
from edgepipe.models.saved_model_signatures import SavedModelSignature
from edgepipe.tflite.model import Model

ConvertibleModel = AnyKerasModel | SavedModelSignature

LOOP_OPS = ("LoopCond", "While", "StatelessWhile")
COMPARED_SAMPLES = 2
OTHER_SCHEMES = "choose scheme dynamic or float16, which keep the loop"


@dataclass(frozen=True)
class Loop:
    """A loop of a frozen graph: the layer it is named after, and the lengths of the sequences that it reads."""

    name: str
    sequence_lengths: tuple[int | None, ...]  # None: open


@dataclass(frozen=True)
class LoopFreeGraph:
    """A frozen graph without loops, and the graph that it was unrolled from; None if it never had a loop."""

    graph: FrozenGraph
    rolled_graph: FrozenGraph | None = None

    def check_equal(self, feeds: list[Array]) -> None:
        """Compare both graphs on the first samples of each input.

        Raises:
            InputError: they compute something else.
        """
        if self.rolled_graph is None:
            return
        for number in range(min(COMPARED_SAMPLES, len(feeds[0]))):
            sample = [tf.constant(feed[number : number + 1]) for feed in feeds]
            outputs, rolled_outputs = self.graph.function(*sample), self.rolled_graph.function(*sample)
            differences = map(relative_difference, tf.nest.flatten(rolled_outputs), tf.nest.flatten(outputs))
            if not (difference := max(differences)) <= TOLERANCE:
                raise InputError(
                    f"the unrolled recurrent layers compute something else: an output differs by {difference:.1e} of "
                    f"its largest value (allowed {TOLERANCE:.0e}); {OTHER_SCHEMES}, and please report it"
                )


def freeze_without_loops(model: ConvertibleModel, recurrent: RecurrentForm = "unrolled") -> LoopFreeGraph:
    """Freeze a Keras model, whose recurrent layers are unrolled, or a SavedModel, which must have no loops.

    With `recurrent` fused, LSTM layers are one marker operation each, and only the others are unrolled.

    Raises:
        InputError: as `freeze`; loops that are too long or of open length, or that belong to no recurrent layer;
            nothing to fuse.
    """
    frozen_graph = freeze_saved_model(model) if isinstance(model, SavedModelSignature) else freeze(model)
    loops = find_loops(frozen_graph.function)
    if recurrent == "fused":
        return LoopFreeGraph(_freeze_fused(model), frozen_graph)
    if not loops:
        return LoopFreeGraph(frozen_graph)
    if isinstance(model, SavedModelSignature):
        raise InputError(
            f"{_describe(loops)}, and the layers of a SavedModel cannot be unrolled; convert the Keras model itself "
            "(.keras), or export it with unroll=True in its recurrent layers"
        )
    return LoopFreeGraph(_unroll(model, loops), frozen_graph)


def _unroll(model: AnyKerasModel, loops: list[Loop]) -> FrozenGraph:
    _check_lengths(loops)
    unrolled_graph = _freeze_unrolled(model, loops)
    if remaining_loops := find_loops(unrolled_graph.function):
        raise InputError(
            f"{_describe(remaining_loops)}, and only recurrent layers of Keras (LSTM, GRU, SimpleRNN, RNN, ConvLSTM of "
            f"Keras 3) can be unrolled; repeat the step in Python instead, or {OTHER_SCHEMES}"
        )
    return unrolled_graph


def _freeze_fused(model: ConvertibleModel) -> FrozenGraph:
    if isinstance(model, SavedModelSignature) or not fusible_layers(model):
        raise InputError(
            "recurrent fused: found no layer to fuse; TFLite's fused kernel computes the LSTM layers of a Keras "
            "model, with tanh and sigmoid; convert with `recurrent: unrolled` (--recurrent unrolled)"
        )
    with fused(model):
        fused_graph = freeze(model)
        loops = find_loops(fused_graph.function)  # of other layers, and of masked LSTMs
        fused_graph = _unroll(model, loops) if loops else fused_graph
    if not any(operation.type == MARKER_OPERATION for operation in fused_graph.function.graph.get_operations()):
        raise InputError(
            "recurrent fused: every LSTM has a mask, which TFLite's fused kernel does not take; convert with "
            "`recurrent: unrolled` (--recurrent unrolled)"
        )
    return fused_graph


def find_loops(function: TfFunction) -> list[Loop]:
    """The loops of a frozen graph, in order."""
    operations = function.graph.get_operations()
    # freezing lowers a While to several operations; each loop has exactly one LoopCond
    names = [operation.name.split("/while")[0] for operation in operations if operation.type in LOOP_OPS]
    sequences = [operation for operation in operations if operation.type == "TensorListFromTensor"]
    return [
        Loop(name, tuple(_length(sequence) for sequence in sequences if sequence.name.startswith(f"{name}/")))
        for name in names
    ]


def _length(sequence: tf.Operation) -> int | None:
    shape = sequence.inputs[0].shape
    return None if shape.rank is None else shape[0]


def _check_lengths(loops: list[Loop]) -> None:
    for loop in loops:
        length = max((length for length in loop.sequence_lengths if length is not None), default=0)
        if length > MAX_UNROLLED_STEPS:
            raise InputError(
                f"{_describe([loop])}, and {length} steps are too many to be unrolled (at most {MAX_UNROLLED_STEPS}); "
                "shorten the sequence (a smaller window, a strided convolution or pooling in front), fuse LSTM layers "
                "(`recurrent: fused`, --recurrent fused), read it in pieces with the states as inputs and outputs "
                f"(`streaming: 1`, --streaming 1), or {OTHER_SCHEMES}"
            )


def _freeze_unrolled(model: AnyKerasModel, loops: list[Loop]) -> FrozenGraph:
    try:
        with unrolled(model):
            return freeze(model)
    except ValueError as error:
        # a length that a loop of tf_keras has lost becomes known when that loop is unrolled; others stay open
        open_loops = [loop for loop in loops if None in loop.sequence_lengths]
        if not open_loops:
            raise
        raise InputError(
            f"{_describe(open_loops)}, and its number of steps is open; give the sequence a fixed length (Input(shape="
            f"(steps, features)), no Reshape to an open one), or {OTHER_SCHEMES}"
        ) from error


def _describe(loops: list[Loop]) -> str:
    names = ", ".join(f"'{loop.name}'" for loop in loops)
    return f"activations cannot be calibrated through a loop, and the model has {len(loops)}: {names}"


def recurrence_notes(model: ConvertibleModel, request: QuantizationRequest, lite: Model) -> list[str]:
    """Notes on recurrent layers that were unrolled or fused in the float .tflite `lite`."""
    if isinstance(model, SavedModelSignature):
        return []
    is_fused = request.recurrent == "fused"
    fused_ids = {id(layer) for layer in fusible_layers(model)} if is_fused else set()
    names = [f"'{layer.name}'" for layer in rolled_layers(model) if id(layer) not in fused_ids]
    return [
        *([_fused_note(model, lite)] if is_fused else []),
        *([_unrolled_note(model, request, names, lite)] if names else []),
    ]


def _unrolled_note(model: AnyKerasModel, request: QuantizationRequest, names: list[str], lite: Model) -> str:
    could_fuse = (request.scheme, request.recurrent) == ("int8", "unrolled") and fusible_layers(model)
    hint = "; `recurrent: fused` (--recurrent fused) makes one operator of each LSTM" if could_fuse else ""
    return (
        f"recurrent layers unrolled step by step, for integers: {', '.join(names)}; {len(lite.operators)} operators, "
        f"which share their weights{hint}"
    )


def _fused_note(model: AnyKerasModel, lite: Model) -> str:
    count, layer_count = sum(operator.name == FUSED_LSTM for operator in lite.operators), len(fusible_layers(model))
    masked_text = f" ({layer_count - count} with a mask unrolled)" if count < layer_count else ""
    return (
        f"{plural(count, 'LSTM')} fused into one operator each{masked_text}, {len(lite.operators)} operators in all; "
        "the operator keeps its state from call to call: reset it before each sequence (LiteRT: "
        "reset_all_variables(), TFLite Micro: Reset()), or the results are wrong"
    )
