"""Which operators stay in float because the user says so: by kind, or by the name of a layer."""

import re
from collections.abc import Collection, Mapping

from edgepipe.compress.quantizer.layer_attribution import layers_of
from edgepipe.compress.quantizer.quantizable_layers import layers
from edgepipe.compress.quantizer.quantization import Choice
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.tflite.model import Model, Operator


def choice(types: Collection[str], names: Collection[str], keras: Mapping[str, str]) -> Choice:
    """The operators of a float model of these `types` (a Keras class, or an operator such as SOFTMAX) and `names`.

    Names are regular expressions, matched as a whole: of layers of the Keras model, `keras` being their classes by
    name, or of the layers of a .tflite as `edgepipe sensitivity` lists them.
    """
    return lambda model: _chosen(model, types, names, keras)


def _chosen(
    model: Model, types: Collection[str], names: Collection[str], keras: Mapping[str, str]
) -> Collection[Operator]:
    of_layers = layers_of(model, keras)
    own = {operator.index: layer.name for layer in layers(model, keras) for operator in layer.operators}
    found: dict[int, Operator] = {}
    for kind in types:
        found |= _by_type(model, kind, of_layers, keras)
    for pattern in names:
        found |= _by_name(model, pattern, of_layers, keras, own)
    return list(found.values())


def _by_type(model: Model, kind: str, of_layers: list[list[str]], keras: Mapping[str, str]) -> dict[int, Operator]:
    classes = {*keras.values(), *model.operator_counts}
    if kind not in classes:
        raise InputError(f"types: the model has no '{kind}'{did_you_mean(kind, classes)}")
    chosen = {
        place: operator
        for place, (operator, layers) in enumerate(zip(model.operators, of_layers, strict=True))
        if operator.name == kind or any(keras[layer] == kind for layer in layers)
    }
    return chosen or _none(f"types: '{kind}'")


def _by_name(
    model: Model, pattern: str, of_layers: list[list[str]], keras: Mapping[str, str], own: Mapping[int, str]
) -> dict[int, Operator]:
    known = {*keras, *own.values()}
    if not any(re.fullmatch(pattern, name) for name in known):
        close = did_you_mean(pattern, known) if len(known) < 500 else ""
        raise InputError(f"layers: no layer is called '{pattern}' (a regular expression){close}")
    chosen = {
        place: operator
        for place, (operator, layers) in enumerate(zip(model.operators, of_layers, strict=True))
        if any(re.fullmatch(pattern, name) for name in (*layers, own.get(operator.index, "")))
    }
    return chosen or _none(f"layers: '{pattern}'")


def _none(what: str) -> dict[int, Operator]:
    raise InputError(f"{what} has no operator of its own in the .tflite: it was folded into others or does nothing")
