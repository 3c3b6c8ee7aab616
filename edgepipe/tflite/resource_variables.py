"""Resource variables of a model: states that VAR_HANDLE names and ASSIGN_VARIABLE writes, as in streaming wake words.

TensorFlow Lite Micro keeps a table of them, which the application makes, and a buffer for each, which the first
ASSIGN_VARIABLE of a variable allocates when it is prepared.

Source: tensorflow/tflite-micro, micro_resource_variable.cc, kernels/assign_variable.cc, kernels/var_handle.cc
"""

from collections.abc import Hashable

from edgepipe.tflite.model import Model, Operator, Tensor, TensorKey


def count_resource_variables(model: Model) -> int:
    """How many different variables the model names."""
    return len({_variable_name(operator) for operator in model.operators if operator.name == "VAR_HANDLE"})


def first_assignments(model: Model) -> dict[Operator, int]:
    """The operators that allocate the buffer of a variable, each with its bytes."""
    name_by_tensor = {
        tensor.key: _variable_name(operator)
        for operator in model.operators
        if operator.name == "VAR_HANDLE"
        for tensor in operator.outputs
        if tensor is not None
    }
    assigned_names: set[Hashable] = set()
    bytes_by_operator = {}
    for operator in model.operators:
        handle, value = operator.input(0), operator.input(1)
        if operator.name != "ASSIGN_VARIABLE" or handle is None or value is None:
            continue
        name = _name_of_handle(handle, name_by_tensor)
        if name not in assigned_names:
            bytes_by_operator[operator] = value.bytes
        assigned_names.add(name)
    return bytes_by_operator


def _variable_name(operator: Operator) -> Hashable:
    return operator.options.get("container"), operator.options.get("sharedName")


def _name_of_handle(handle: Tensor, name_by_tensor: dict[TensorKey, Hashable]) -> Hashable:
    """A handle that comes from outside of its subgraph stands for a variable of its own."""
    return name_by_tensor.get(handle.key, handle.key)
