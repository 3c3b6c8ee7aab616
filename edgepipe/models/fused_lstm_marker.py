"""LSTM layers as one operation of the graph, from which conversion makes TFLite's fused LSTM.

TensorFlow's BlockLSTMV2 computes what a Keras LSTM computes, and has its order of gates. TFLite has no such operator,
so its converter leaves it alone, with its weights as constants.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel, Tensor, TensorTree
from edgepipe.models.recurrent_layers import changed_attributes, recurrent_layers

MARKER_OPERATION = "BlockLSTMV2"
LayerFn = Callable[..., TensorTree]


def fusible_layers(model: AnyKerasModel) -> list[AnyKerasLayer]:
    """The LSTM layers of either Keras with the activations that the fused kernel has."""
    return [layer for layer in recurrent_layers(model) if _is_standard(layer)]


def _is_standard(layer: AnyKerasLayer) -> bool:
    package: Any = tf_keras if isinstance(layer, tf_keras.layers.Layer) else keras
    standard_activations = (package.activations.tanh, package.activations.sigmoid)
    is_lstm = type(layer) is package.layers.LSTM
    return is_lstm and (layer.activation, layer.recurrent_activation) == standard_activations


@contextmanager
def fused(model: AnyKerasModel) -> Iterator[None]:
    """LSTM layers are one operation each, when `model` is called inside the block; masked ones stay as they are."""
    with changed_attributes([_fused_method(layer) for layer in fusible_layers(model)]):
        yield


def _fused_method(layer: AnyKerasLayer) -> tuple[AnyKerasLayer, str, LayerFn]:
    """The method that runs the steps of a layer: Keras 3 has one for the loop alone, tf_keras has not."""
    if isinstance(layer, tf_keras.layers.Layer):
        return layer, "call", _fused_call(layer)
    return layer, "inner_loop", _fused_loop(layer)


def _fused_loop(layer: AnyKerasLayer) -> LayerFn:
    usual_loop = layer.inner_loop

    def run_fused(
        sequences: Tensor, initial_state: list[Tensor], mask: Tensor | None, training: bool = False
    ) -> TensorTree:
        if mask is not None or sequences.shape[1] is None:
            return usual_loop(sequences, initial_state, mask, training=training)
        return _run_block(layer, sequences, initial_state)

    return run_fused


def _fused_call(layer: AnyKerasLayer) -> LayerFn:
    usual_call = layer.call

    def call(
        inputs: TensorTree, mask: Tensor | None = None, training: bool | None = None, initial_state: Any = None
    ) -> TensorTree:
        if mask is not None:
            return usual_call(inputs, mask=mask, training=training, initial_state=initial_state)
        sequences, states, _ = layer._process_inputs(inputs, initial_state, None)
        if sequences.shape[1] is None:
            return usual_call(inputs, mask=mask, training=training, initial_state=initial_state)
        last_output, outputs, last_states = _run_block(layer, sequences, states)
        output = outputs if layer.return_sequences else last_output
        return [output, *last_states] if layer.return_state else output

    return call


def _run_block(layer: AnyKerasLayer, sequences: Tensor, initial_state: list[Tensor]) -> TensorTree:
    """The last output, all outputs (batch, steps, units) and the last state of an LSTM."""
    steps, batch_size, units = sequences.shape[1], sequences.shape[0], layer.units
    x = tf.transpose(sequences, (1, 0, 2))
    no_peephole, cell = tf.zeros((units,)), layer.cell
    bias = tf.zeros((4 * units,)) if cell.bias is None else tf.convert_to_tensor(cell.bias)
    block: Any = tf.raw_ops.BlockLSTMV2(
        seq_len_max=tf.constant(steps, tf.int64), x=tf.reverse(x, [0]) if layer.go_backwards else x,
        h_prev=initial_state[0], cs_prev=initial_state[1],
        w=tf.concat([tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)], 0), b=bias,
        wci=no_peephole, wcf=no_peephole, wco=no_peephole, cell_clip=0.0, use_peephole=False,
    )  # fmt: skip
    outputs, cells = (tf.ensure_shape(tensor, (steps, batch_size, units)) for tensor in (block.h, block.cs))
    return outputs[-1], tf.transpose(outputs, (1, 0, 2)), [outputs[-1], cells[-1]]
