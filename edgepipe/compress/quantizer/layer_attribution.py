"""Which Keras layer an operator of the .tflite comes from, by its tensor names.

A tensor is named after every operation that was fused into it: `net/relu/Relu;net/bn/add_1;net/conv/convolution`. Keras
3 numbers the scopes of a model that is called again (`net_1/relu_1/Relu`), tf_keras does not.
"""

import re
from collections.abc import Collection, Iterable

from edgepipe.tflite.model import Model, Operator

NUMBER_SUFFIX = re.compile(r"_\d+$")
IDENTITY_NAME = re.compile(r"Identity(_?\d+)*$")
COMPUTE_OP = re.compile(r"/(convolution|depthwise|Conv2D|MatMul|BiasAdd)\d*$")  # TensorFlow's ops with weights


def scope_names(tensor_name: str) -> list[str]:
    """The distinct scopes in a tensor's name, in order, without the prefix of tfmot's wrappers."""
    scopes = (segment for path in tensor_name.split(";") for segment in re.split("[/:]", path))
    return list(dict.fromkeys(scope.removeprefix("quant_") for scope in scopes))


def layer_names_by_operator(model: Model, layer_names: Collection[str]) -> list[list[str]]:
    """For each operator of `model` the Keras layers among `layer_names` that it computes, the last one first."""
    scopes_by_operator = [_operator_scopes(model, operator) for operator in model.operators]
    known_layers = set(layer_names)
    all_scopes = {scope for op_scopes in scopes_by_operator for scope in op_scopes}
    # `conv_1` is a layer of that name, or the layer `conv` with a number: if one scope is numbered, all are
    is_numbered = any(
        scope not in known_layers and NUMBER_SUFFIX.sub("", scope) in known_layers for scope in all_scopes
    )
    return [
        _filter_known((NUMBER_SUFFIX.sub("", scope) if is_numbered else scope for scope in op_scopes), known_layers)
        for op_scopes in scopes_by_operator
    ]


def _operator_scopes(model: Model, operator: Operator) -> list[str]:
    return [scope for name in _origin_names(model, operator) for scope in scope_names(name)]


def _origin_names(model: Model, operator: Operator) -> list[str]:
    """The tensor names that show an operator's origin: its outputs, or its weights if the outputs are the model's own,
    which are called `Identity`, or as the user calls them."""
    port_keys = {tensor.key for tensor in model.outputs}
    output_tensors = [tensor for tensor in operator.outputs if tensor is not None]
    outputs = [tensor.name for tensor in output_tensors]
    if any(tensor.key not in port_keys and not IDENTITY_NAME.match(tensor.name) for tensor in output_tensors):
        return outputs
    return [t.name for t in operator.inputs if t is not None and t.is_constant and "/" in t.name] or outputs


def _filter_known(scopes: Iterable[str], known_layers: set[str]) -> list[str]:
    return list(dict.fromkeys(scope for scope in scopes if scope in known_layers))


def short_operator_name(model: Model, operator: Operator) -> str:
    """A name for an operator of a model whose layers are not known: the scope of its operation with weights."""
    name_paths = next(iter(_origin_names(model, operator)), "").split(";")
    compute_paths = [path for path in name_paths if COMPUTE_OP.search(path)]
    scopes = [scope for scope in re.split("[/:]", (compute_paths or name_paths)[0]) if scope]
    return scopes[-2] if len(scopes) > 1 else scopes[0] if scopes else operator.location


def strip_common_number(names: list[str]) -> list[str]:
    """The names without the number that Keras 3 appends to all scopes of a model that is called again."""
    number_suffixes = {match.group() for name in names if (match := NUMBER_SUFFIX.search(name))}
    all_numbered = len(number_suffixes) == 1 and all(NUMBER_SUFFIX.search(name) for name in names)
    return [NUMBER_SUFFIX.sub("", name) for name in names] if all_numbered else names


def make_unique(names: Iterable[str]) -> list[str]:
    """The names, repeated ones numbered: `a`, `a#2`."""
    count_by_name: dict[str, int] = {}
    unique_names = []
    for name in names:
        count_by_name[name] = count_by_name.get(name, 0) + 1
        unique_names.append(name if count_by_name[name] == 1 else f"{name}#{count_by_name[name]}")
    return unique_names
