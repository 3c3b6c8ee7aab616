"""The ranges of what fused LSTMs keep from step to step, which no interpreter shows."""

from collections.abc import Mapping

import numpy as np

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.fused_lstm import (
    CELL_STATE_POSITION,
    INPUT_POSITION,
    OUTPUT_STATE_POSITION,
    FusedLstm,
    find_fused_lstms,
)
from edgepipe.compress.quantizer.graph_index import GraphIndex
from edgepipe.core.arrays import Arrays
from edgepipe.tflite.intermediate_tensors import record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model


def add_state_ranges(
    index: GraphIndex, lite: Model, samples: Arrays, ranges: Mapping[str, ActivationRange]
) -> dict[str, ActivationRange]:
    """`ranges` and those of the states of fused LSTMs: that of the output, and that of the cell over all steps.

    Args:
        index: the graph of `lite`.
        lite: a float .tflite.
        samples: that calibrate, by input name.
        ranges: of the activations, by tensor name.
    """
    state_ranges: dict[str, ActivationRange] = {}
    for lstm in find_fused_lstms(index):
        state_ranges[index.names[lstm.inputs[CELL_STATE_POSITION]]] = _cell_range(index, lite, samples, lstm)
        state_ranges[index.names[lstm.inputs[OUTPUT_STATE_POSITION]]] = ranges[index.names[lstm.output]]
    return {**ranges, **state_ranges}


def _cell_range(index: GraphIndex, lite: Model, samples: Arrays, lstm: FusedLstm) -> ActivationRange:
    """The extremes of the cell, computed from the recorded inputs of the LSTM."""
    input_name = index.names[lstm.inputs[INPUT_POSITION]]
    tensor = next(tensor for tensor in lite.tensors if tensor.name == input_name)
    recorded_inputs = [arrays[0] for arrays in record_tensors(lite, samples, [tensor], Runtime.BUILTIN)]
    samples_first = [np.moveaxis(x, 1, 0) if lstm.is_time_major else x for x in recorded_inputs]
    extremes = [(cell.min(), cell.max()) for cell in lstm.cells(np.concatenate(samples_first).astype(np.float64))]
    return float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
