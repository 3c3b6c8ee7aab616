"""Finds the tensors of a lowered model that hold mask fills: what stands for "ignore this", such as minus a billion.

A fill in the range of a fake-quant would leave no codes for the real values. The tensors are found by the same rule as
in a .tflite (see the quantizer's `mask_sentinels`), so that it does not matter which samples show a mask: they get no
fake-quant, and the quantizer gives them the range of their real values. The tensors that they are computed from are
fake-quantized as all others.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edgepipe.compress.qat.activation_placement import tflite_operator
from edgepipe.compress.quantizer.mask_sentinels import (
    COMBINING_OPERATORS,
    ENTRY_OPERATORS,
    MAXIMUM_SINKS,
    MIN_SENTINEL,
    SOFTMAX_SINKS,
    moves_values,
)
from edgepipe.models.bridge_layers import OperatorLayer, WeightLayer
from edgepipe.models.keras_types import TfKerasLayer

_CONSTANT_OPERATORS = frozenset({"FullLike"})  # their output is a constant


def find_filled_layers(
    layers: Iterable[TfKerasLayer], readers_by_name: dict[str, list[TfKerasLayer]], output_names: set[str]
) -> set[str]:
    """The names of the layers whose output holds mask fills on their way to a softmax or a maximum.

    Args:
        layers: The layers of a lowered model.
        readers_by_name: The layers that read the output of each layer, by its name.
        output_names: The layers whose output the model returns.
    """
    filled_names: set[str] = set()
    for layer in layers:
        if _enters_fill(layer):
            filled_names |= _follow(layer, readers_by_name, output_names)
    return filled_names


def _enters_fill(layer: TfKerasLayer) -> bool:
    if isinstance(layer, WeightLayer):
        return float(np.abs(layer.value.numpy()).max(initial=0)) >= MIN_SENTINEL
    is_entry = isinstance(layer, OperatorLayer) and (
        tflite_operator(layer) in ENTRY_OPERATORS or layer.operator in _CONSTANT_OPERATORS
    )
    return is_entry and any(abs(number) >= MIN_SENTINEL for number in _iter_numbers(json.loads(layer.arguments)))


def _iter_numbers(encoded_argument: Any) -> Iterator[float]:
    """The numbers among the encoded arguments of an operator."""
    if isinstance(encoded_argument, dict):
        encoded_argument = list(encoded_argument.values())
    if isinstance(encoded_argument, list):
        for element in encoded_argument:
            yield from _iter_numbers(element)
    elif isinstance(encoded_argument, (int, float)):
        yield float(encoded_argument)


def _follow(
    entry_layer: TfKerasLayer, readers_by_name: dict[str, list[TfKerasLayer]], output_names: set[str]
) -> set[str]:
    """The layers that a fill reaches; none if it reaches an output, or arithmetic: it is an ordinary number there.

    A layer without a rule may hold a softmax: the quantizer, which sees inside, decides.
    """
    reached_names, pending_names = {entry_layer.name}, [entry_layer.name]
    while pending_names:
        name = pending_names.pop()
        if name in output_names:
            return set()
        for reader in readers_by_name[name]:
            operator = tflite_operator(reader)
            if operator is None or operator in SOFTMAX_SINKS | MAXIMUM_SINKS or reader.name in reached_names:
                continue
            if operator not in COMBINING_OPERATORS and not moves_values(operator):
                return set()
            reached_names.add(reader.name)
            pending_names.append(reader.name)
    return reached_names
