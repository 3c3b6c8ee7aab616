"""The inputs of a SavedModel's signature, whichever TensorFlow wrote it, and what of a signature no device runs.

TensorFlow 1 and exporters up to 2.15 do not store which argument an input was, and append what a function captures
(weights, tables, constants) to its inputs.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from edgepipe.core.errors import InputError
from edgepipe.models.keras_types import Tensor, TensorSpec, TfFunction

_NAME_ATTRIBUTE = "_user_specified_name"
_LOOKUP_OPS = ("LookupTableFind", "LookupTableSize", "HashTable", "MutableHashTable", "MutableDenseHashTable")
_VARIABLE_OPS = ("VarHandleOp", "ReadVariableOp", "Variable", "VariableV2")
_VARIABLE_WRITERS = ("Assign", "ResourceScatter", "ResourceApply")  # how the types of such operations begin


def ordered_input_names(signature: TfFunction, spec_by_name: Mapping[str, TensorSpec]) -> list[str]:
    """The names of the inputs in the order of the function, or in alphabetical order if the file does not tell it."""
    own_inputs = signature.inputs[: len(signature.inputs) - len(signature.captured_inputs)]
    for names in (list(map(_stored_name, own_inputs)), list(getattr(signature, "_arg_keywords", None) or [])):
        if sorted(names) == sorted(spec_by_name):
            return names
    return sorted(spec_by_name)


def _stored_name(tensor: Tensor) -> str:
    """The name of the argument that an input was; the name of its operator where it is not stored."""
    attributes = tensor.op.node_def.attr
    return str(attributes[_NAME_ATTRIBUTE].s.decode() if _NAME_ATTRIBUTE in attributes else tensor.op.name)


def check_signature(path: Path, signature: TfFunction) -> None:
    """Raise an `InputError` if the signature takes text, or has no input."""
    spec_by_name = signature.structured_input_signature[1]
    if not spec_by_name:
        raise InputError(f"{path}: its signature has no inputs; save it with a signature that takes its samples")
    text_inputs = [name for name, spec in spec_by_name.items() if spec.dtype == tf.string]
    if text_inputs:
        raise InputError(
            f"{path}: input '{text_inputs[0]}' takes text, which no device runs; save a signature that takes numbers, "
            "and decode or look the text up before the model"
        )


def find_stateful_problem(function: TfFunction) -> str:
    """Why `function` cannot be a graph of constants: a table, a state, a variable; empty if it can."""
    ops = list(_iter_ops(function))
    if lookups := [f"{op_type} '{name}'" for op_type, name in ops if op_type.startswith(_LOOKUP_OPS)]:
        return (
            f"looks values up in a table ({lookups[0]}), which no device runs; save a signature without it, and look "
            "the values up before the model"
        )
    if assignments := find_variable_writers(function):
        return (
            f"keeps a state: it assigns a variable ('{assignments[0]}') when it runs; save a signature that takes the "
            "state as an input and gives it as an output, or convert the Keras model itself with `streaming` "
            "(--streaming)"
        )
    if variables := [name for op_type, name in ops if op_type in _VARIABLE_OPS]:
        return f"the variable '{variables[0]}' cannot be frozen to a constant; save the model again with TensorFlow 2"
    return ""


def find_variable_writers(function: TfFunction) -> list[str]:
    """The operations of `function`, and of the functions that it calls, that change a variable."""
    return [name for op_type, name in _iter_ops(function) if op_type.startswith(_VARIABLE_WRITERS)]


def _iter_ops(function: TfFunction) -> Iterator[tuple[str, str]]:
    """(type, name) of every operator of `function` and of the functions that it calls."""
    graph_def = function.graph.as_graph_def()
    for node in graph_def.node:
        yield node.op, node.name
    for called_function in graph_def.library.function:
        for node in called_function.node_def:
            yield node.op, node.name
