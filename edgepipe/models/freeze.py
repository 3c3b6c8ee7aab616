"""Freezes a model into one graph: batch size one, inputs named and ordered as in the signature, weights as constants.

Tracing one concrete function and freezing it makes conversion fast: the stock converter spends 95 % of its time
exporting a SavedModel of every Keras wrapper.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from edgepipe.core.errors import InputError
from edgepipe.models.input_shapes import check_input_shapes, input_names
from edgepipe.models.keras_types import AnyKerasModel, Tensor, TensorSpec, TensorTree, TfFunction
from edgepipe.models.recurrent_layers import check_stateless, without_recurrent_dropout

SIGNATURE_NAME = "serving_default"
VARIABLE_WRITERS = ("Assign", "ResourceScatter", "ResourceApply")  # how the names of such operations begin


@dataclass(frozen=True)
class ModelInput:
    """An input of a frozen graph: its name, its shape with a batch of one, and the name of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class FrozenGraph:
    """A graph without variables; `function` takes the inputs in the order of `inputs`."""

    function: TfFunction
    inputs: tuple[ModelInput, ...]


def freeze(model: AnyKerasModel) -> FrozenGraph:
    """Freeze a Keras 3, tf_keras or tfmot fake-quant model in inference mode.

    Raises:
        InputError: the model is not built, is subclassed, has an input dimension that is not fixed, or keeps a state.
    """

    def infer(*tensors: Tensor) -> list[Tensor]:
        return list(keras.tree.flatten(model(_pack_inputs(model, list(tensors)), training=False)))

    inputs = model_inputs(model)
    check_stateless(model)
    with without_recurrent_dropout(model):
        return _freeze_function(infer, inputs)


def model_inputs(model: AnyKerasModel) -> tuple[ModelInput, ...]:
    """The inputs of a Keras model.

    Raises:
        InputError: as `freeze`.
    """
    check_input_shapes(model)
    shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    dtypes = [tf.as_dtype(tensor.dtype).name for tensor in model.inputs]
    return tuple(ModelInput(*fields) for fields in zip(input_names(model), shapes, dtypes, strict=True))


def freeze_saved_model(path: Path) -> FrozenGraph:
    """Freeze the `serving_default` signature of a SavedModel.

    Raises:
        InputError: it cannot be loaded, has no such signature, has input dimensions that are not fixed, or keeps a
            state.
    """
    try:
        saved_model = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a readable SavedModel: {_first_error_line(error)}") from error
    if SIGNATURE_NAME not in saved_model.signatures:
        signature_names = ", ".join(saved_model.signatures) or "none"
        raise InputError(f"{path}: no signature '{SIGNATURE_NAME}' (found: {signature_names}); save it with one")
    signature = saved_model.signatures[SIGNATURE_NAME]
    spec_by_name = signature.structured_input_signature[1]
    inputs = tuple(
        _signature_input(path, name, spec_by_name[name]) for name in _ordered_input_names(signature, spec_by_name)
    )

    def infer(*tensors: Tensor) -> list[Tensor]:
        outputs = signature(**{model_input.name: tensor for model_input, tensor in zip(inputs, tensors, strict=True)})
        return [outputs[name] for name in sorted(outputs)]

    return _freeze_function(infer, inputs)


def _ordered_input_names(signature: TfFunction, spec_by_name: Mapping[str, TensorSpec]) -> list[str]:
    ordered_names = [
        str(tensor.op.get_attr("_user_specified_name").decode())
        for tensor in signature.inputs
        if tensor.dtype != tf.resource
    ]
    return ordered_names if sorted(ordered_names) == sorted(spec_by_name) else sorted(spec_by_name)


def _signature_input(path: Path, name: str, spec: TensorSpec) -> ModelInput:
    dimensions = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
    if None in dimensions[1:]:
        raise InputError(
            f"{path}: input '{name}' has the shape {tuple(dimensions)}; all but the first dimension must be fixed"
        )
    return ModelInput(name, (1, *dimensions[1:]), spec.dtype.name)


def _freeze_function(infer: Callable[..., list[Tensor]], inputs: tuple[ModelInput, ...]) -> FrozenGraph:
    tensor_specs = [
        tf.TensorSpec(model_input.shape, tf.as_dtype(model_input.dtype), name=model_input.name)
        for model_input in inputs
    ]
    concrete_function = tf.function(infer, autograph=False).get_concrete_function(*tensor_specs)
    _check_variables(concrete_function)
    return FrozenGraph(convert_variables_to_constants_v2(concrete_function), inputs)


def _check_variables(function: TfFunction) -> None:
    """Refuse a graph that writes to its variables: frozen, they would keep their value, or freezing crashes."""
    graph_def = function.graph.as_graph_def()
    nodes = [*graph_def.node, *(node for inner in graph_def.library.function for node in inner.node_def)]
    writers = [f"'{node.name}'" for node in nodes if node.op.startswith(VARIABLE_WRITERS)]
    if writers:
        names = ", ".join(dict.fromkeys(writers))
        raise InputError(
            f"the model changes variables of its own when it runs ({names}), and a .tflite keeps no state between its "
            "calls; make each state an input and an output of the model, or leave out what changes it (random numbers "
            "and dropout in inference, counters, streaming buffers)"
        )


def _pack_inputs(model: AnyKerasModel, tensors: list[Tensor]) -> TensorTree:
    input_structure = getattr(model, "_inputs_struct", None)
    if input_structure is not None:
        return keras.tree.pack_sequence_as(input_structure, tensors)
    nested_inputs = getattr(model, "_nested_inputs", None)
    return tensors[0] if len(tensors) == 1 else tf.nest.pack_sequence_as(nested_inputs, tensors)


def _first_error_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
