"""One frozen graph of a model: fixed batch of one, named inputs in the order of the signature, weights as constants.

Tracing one concrete function and freezing it is what makes conversion fast: the stock converter spends 95 % of its
time exporting a SavedModel of every Keras wrapper.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from edgepipe.core.errors import InputError
from edgepipe.models.input_shapes import check_shapes, input_names

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Port:
    """An input of a frozen graph: its name, its shape with a batch of one, its dtype's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Frozen:
    """A graph without variables; `function` takes the inputs in the order of `inputs`."""

    function: Any
    inputs: tuple[Port, ...]


def freeze(model: Any) -> Frozen:
    """The graph of a Keras 3, tf_keras or tfmot fake-quant model, in inference mode.

    Raises:
        InputError: the model is not built, is a subclassed one, or has an input dimension that is not fixed.
    """

    def infer(*tensors: Any) -> list[Any]:
        return list(keras.tree.flatten(model(_packed(model, list(tensors)), training=False)))

    return _frozen(infer, ports_of(model))


def ports_of(model: Any) -> tuple[Port, ...]:
    """The inputs of a Keras model.

    Raises:
        InputError: as `freeze`.
    """
    check_shapes(model)
    shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    dtypes = [tf.as_dtype(tensor.dtype).name for tensor in model.inputs]
    return tuple(Port(*port) for port in zip(input_names(model), shapes, dtypes, strict=True))


def freeze_saved_model(path: Path) -> Frozen:
    """The graph of a SavedModel's `serving_default` signature.

    Raises:
        InputError: it cannot be loaded, or has no such signature, or one with open dimensions.
    """
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a readable SavedModel: {_first_line(error)}") from error
    if SIGNATURE not in loaded.signatures:
        found = ", ".join(loaded.signatures) or "none"
        raise InputError(f"{path}: no signature '{SIGNATURE}' (found: {found}); save it with one")
    signature = loaded.signatures[SIGNATURE]
    specs = signature.structured_input_signature[1]
    ports = tuple(_signature_port(path, name, specs[name]) for name in _order(signature, specs))

    def infer(*tensors: Any) -> list[Any]:
        result = signature(**{port.name: tensor for port, tensor in zip(ports, tensors, strict=True)})
        return [result[name] for name in sorted(result)]

    return _frozen(infer, ports)


def _order(signature: Any, specs: dict[str, Any]) -> list[str]:
    placed = [
        str(tensor.op.get_attr("_user_specified_name").decode())
        for tensor in signature.inputs
        if tensor.dtype != tf.resource
    ]
    return placed if sorted(placed) == sorted(specs) else sorted(specs)


def _signature_port(path: Path, name: str, spec: Any) -> Port:
    dimensions = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
    if None in dimensions[1:]:
        raise InputError(
            f"{path}: input '{name}' has the shape {tuple(dimensions)}; all but the first dimension must be fixed"
        )
    return Port(name, (1, *dimensions[1:]), spec.dtype.name)


def _frozen(infer: Any, ports: tuple[Port, ...]) -> Frozen:
    specs = [tf.TensorSpec(port.shape, tf.as_dtype(port.dtype), name=port.name) for port in ports]
    concrete = tf.function(infer, autograph=False).get_concrete_function(*specs)
    return Frozen(convert_variables_to_constants_v2(concrete), ports)


def _packed(model: Any, tensors: list[Any]) -> Any:
    structure = getattr(model, "_inputs_struct", None)
    if structure is not None:
        return keras.tree.pack_sequence_as(structure, tensors)
    nested = getattr(model, "_nested_inputs", None)
    return tensors[0] if len(tensors) == 1 else tf.nest.pack_sequence_as(nested, tensors)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
