"""Operators that the user keeps in float: by kind, or by layer name."""

import re
from collections.abc import Collection, Mapping

from edgepipe.compress.quantizer.layer_attribution import layer_names_by_operator
from edgepipe.compress.quantizer.quantizable_layers import find_layers
from edgepipe.compress.quantizer.quantization import OperatorSelector
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.tflite.model import Model, Operator


def select_float_operators(
    operator_types: Collection[str], layer_patterns: Collection[str], class_by_layer: Mapping[str, str]
) -> OperatorSelector:
    """A selector of the operators of a float model that match `operator_types` or `layer_patterns`.

    Args:
        operator_types: Keras layer classes, or TFLite operators such as SOFTMAX.
        layer_patterns: regular expressions that match a whole layer name: of the Keras model, or of a .tflite as
            `edgepipe sensitivity` lists them.
        class_by_layer: class of each Keras layer by name; empty for a .tflite.

    Raises:
        InputError: (the selector, when called) a type or pattern that matches nothing.
    """
    return lambda model: _select_operators(model, operator_types, layer_patterns, class_by_layer)


def _select_operators(
    model: Model, operator_types: Collection[str], layer_patterns: Collection[str], class_by_layer: Mapping[str, str]
) -> Collection[Operator]:
    operator_layer_names = layer_names_by_operator(model, class_by_layer)
    layer_name_by_index = {
        operator.index: layer.name for layer in find_layers(model, class_by_layer) for operator in layer.operators
    }
    operator_by_index: dict[int, Operator] = {}
    for kind in operator_types:
        operator_by_index |= _match_type(model, kind, operator_layer_names, class_by_layer)
    for pattern in layer_patterns:
        operator_by_index |= _match_name(model, pattern, operator_layer_names, class_by_layer, layer_name_by_index)
    return list(operator_by_index.values())


def _match_type(
    model: Model, kind: str, operator_layer_names: list[list[str]], class_by_layer: Mapping[str, str]
) -> dict[int, Operator]:
    known_kinds = {*class_by_layer.values(), *model.operator_counts}
    if kind not in known_kinds:
        raise InputError(f"keep_float_types: the model has no '{kind}'{did_you_mean(kind, known_kinds)}")
    matching_operators = {
        index: operator
        for index, (operator, layer_names) in enumerate(zip(model.operators, operator_layer_names, strict=True))
        if operator.name == kind or any(class_by_layer[layer] == kind for layer in layer_names)
    }
    return matching_operators or _raise_unmatched(f"keep_float_types: '{kind}'")


def _match_name(
    model: Model,
    pattern: str,
    operator_layer_names: list[list[str]],
    class_by_layer: Mapping[str, str],
    layer_name_by_index: Mapping[int, str],
) -> dict[int, Operator]:
    known_names = {*class_by_layer, *layer_name_by_index.values()}
    if not any(re.fullmatch(pattern, name) for name in known_names):
        suggestion = did_you_mean(pattern, known_names) if len(known_names) < 500 else ""
        raise InputError(f"keep_float_layers: no layer is called '{pattern}' (a regular expression){suggestion}")
    matching_operators = {
        index: operator
        for index, (operator, layer_names) in enumerate(zip(model.operators, operator_layer_names, strict=True))
        if any(re.fullmatch(pattern, name) for name in (*layer_names, layer_name_by_index.get(operator.index, "")))
    }
    return matching_operators or _raise_unmatched(f"keep_float_layers: '{pattern}'")


def _raise_unmatched(selector_text: str) -> dict[int, Operator]:
    raise InputError(
        f"{selector_text} has no operator of its own in the .tflite: it was folded into others or does nothing"
    )
