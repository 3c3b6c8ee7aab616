"""Operators that the user keeps in float: by kind, or by layer name."""

import re
from collections.abc import Collection, Mapping

from edgepipe.compress.quantizer.layer_attribution import layers_by_operator
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.quantizer.quantization import OperatorSelector
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.tflite.model import Model, Operator


def select_float_operators(
    types: Collection[str], patterns: Collection[str], class_by_layer: Mapping[str, str]
) -> OperatorSelector:
    """A selector of the operators of a float model that match `types` or `patterns`.

    Args:
        types: Keras layer classes, or TFLite operators such as SOFTMAX.
        patterns: regular expressions that match a whole layer name: of the Keras model, or of a .tflite as
            `edgepipe sensitivity` lists them.
        class_by_layer: class of each Keras layer by name; empty for a .tflite.

    Raises:
        InputError: (the selector, when called) a type or pattern that matches nothing.
    """
    return lambda model: _select_operators(model, types, patterns, class_by_layer)


def _select_operators(
    model: Model, types: Collection[str], patterns: Collection[str], class_by_layer: Mapping[str, str]
) -> Collection[Operator]:
    operator_layers = layers_by_operator(model, class_by_layer)
    layer_by_index = {
        operator.index: layer.name for layer in find_layers(model, class_by_layer) for operator in layer.operators
    }
    operator_by_index: dict[int, Operator] = {}
    for kind in types:
        operator_by_index |= _match_type(model, kind, operator_layers, class_by_layer)
    for pattern in patterns:
        operator_by_index |= _match_name(model, pattern, operator_layers, class_by_layer, layer_by_index)
    return list(operator_by_index.values())


def _match_type(
    model: Model, kind: str, operator_layers: list[list[str]], class_by_layer: Mapping[str, str]
) -> dict[int, Operator]:
    classes = {*class_by_layer.values(), *model.operator_counts}
    if kind not in classes:
        raise InputError(f"keep_float_types: the model has no '{kind}'{did_you_mean(kind, classes)}")
    matches = {
        index: operator
        for index, (operator, layer_names) in enumerate(zip(model.operators, operator_layers, strict=True))
        if operator.name == kind or any(class_by_layer[layer] == kind for layer in layer_names)
    }
    return matches or _raise_unmatched(f"keep_float_types: '{kind}'")


def _match_name(
    model: Model,
    pattern: str,
    operator_layers: list[list[str]],
    class_by_layer: Mapping[str, str],
    layer_by_index: Mapping[int, str],
) -> dict[int, Operator]:
    known_names = {*class_by_layer, *layer_by_index.values()}
    if not any(re.fullmatch(pattern, name) for name in known_names):
        suggestion = did_you_mean(pattern, known_names) if len(known_names) < 500 else ""
        raise InputError(f"keep_float_layers: no layer is called '{pattern}' (a regular expression){suggestion}")
    matches = {
        index: operator
        for index, (operator, layer_names) in enumerate(zip(model.operators, operator_layers, strict=True))
        if any(re.fullmatch(pattern, name) for name in (*layer_names, layer_by_index.get(operator.index, "")))
    }
    return matches or _raise_unmatched(f"keep_float_layers: '{pattern}'")


def _raise_unmatched(selector: str) -> dict[int, Operator]:
    raise InputError(f"{selector} has no operator of its own in the .tflite: it was folded into others or does nothing")
