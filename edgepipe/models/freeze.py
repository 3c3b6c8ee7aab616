"""Freezes a model into one graph: batch size one, inputs named and ordered as in the signature, weights as constants.

Tracing one concrete function and freezing it makes conversion fast: the stock converter spends 95 % of its time
exporting a SavedModel of every Keras wrapper.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from edgepipe.core.errors import InputError
from edgepipe.models.input_shapes import check_input_shapes
from edgepipe.models.keras_types import AnyKerasModel, Tensor, TensorSpec, TensorTree, TfFunction
from edgepipe.models.port_names import DEFAULT_SIGNATURE, PortNames, input_names, output_names
from edgepipe.models.recurrent_layers import check_stateless, without_recurrent_dropout
from edgepipe.models.saved_model_signatures import SavedModelSignature, natural_order
from edgepipe.models.saved_signature import (
    check_signature,
    find_stateful_problem,
    find_variable_writers,
    ordered_input_names,
)
from edgepipe.models.unsupported_operations import replace_unsupported_operations

_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # as TensorFlow's name_scope demands


@dataclass(frozen=True)
class ModelInput:
    """An input of a frozen graph: its name, its shape with a batch of one, and the name of its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class FrozenGraph:
    """A graph without variables; `function` takes `inputs` and gives outputs in the order of their names."""

    function: TfFunction
    inputs: tuple[ModelInput, ...]
    output_names: tuple[str, ...]
    signature: str = DEFAULT_SIGNATURE

    @property
    def ports(self) -> PortNames:
        """The names of inputs and outputs."""
        return PortNames(tuple(port.name for port in self.inputs), self.output_names, self.signature)


def freeze(model: AnyKerasModel) -> FrozenGraph:
    """Freeze a Keras 3, tf_keras or tfmot fake-quant model in inference mode.

    Raises:
        InputError: the model is not built, is subclassed, has an input dimension that is not fixed, keeps a state, or
            has a layer whose name TensorFlow refuses.
    """
    inputs = model_inputs(model)
    check_stateless(model)
    function = freeze_calls(model, lambda *tensors: call_model(model, tensors), inputs)
    return FrozenGraph(function, inputs, tuple(output_names(model)))


def freeze_calls(
    model: AnyKerasModel, infer: Callable[..., list[Tensor]], inputs: tuple[ModelInput, ...]
) -> TfFunction:
    """`infer`, which calls `model`, as one graph of `inputs` without variables.

    Raises:
        InputError: the graph writes to variables, or a layer has a name that TensorFlow refuses.
    """
    _check_layer_names(model)
    with _scope_named(model), without_recurrent_dropout(model):
        function = _trace(infer, inputs)
    _check_variables(function)
    return _freeze_function(function)


def call_model(model: AnyKerasModel, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of `model` in inference mode, in order, for one tensor for each input."""
    return list(keras.tree.flatten(model(_pack_inputs(model, list(tensors)), training=False)))


def _check_layer_names(model: AnyKerasModel) -> None:
    """TensorFlow names operations after layers; inputs are not operations and may be called anything."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if type(layer).__name__ != "InputLayer"]
    refused_names = [layer.name for layer in layers if not _SCOPE_NAME.fullmatch(layer.name)]
    if refused_names:
        raise InputError(
            f"TensorFlow refuses the layer name '{refused_names[0]}': it must start with a letter, a digit or a dot, "
            "and hold only these and _ - / > \\; rename the layer (an output gets any name as the key of a dictionary)"
        )


@contextmanager
def _scope_named(model: AnyKerasModel) -> Iterator[None]:
    """Give a Keras 3 model, whose own name nothing refers to, one that TensorFlow takes while it is traced."""
    name = model.name
    if isinstance(model, keras.Model) and not _SCOPE_NAME.fullmatch(name):
        model.name = "model"
    try:
        yield
    finally:
        if model.name != name:
            model.name = name


def model_inputs(model: AnyKerasModel) -> tuple[ModelInput, ...]:
    """The inputs of a Keras model.

    Raises:
        InputError: as `freeze`.
    """
    check_input_shapes(model)
    shapes = [(1, *tensor.shape[1:]) for tensor in model.inputs]
    dtypes = [tf.as_dtype(tensor.dtype).name for tensor in model.inputs]
    return tuple(ModelInput(*fields) for fields in zip(input_names(model), shapes, dtypes, strict=True))


def freeze_saved_model(source: SavedModelSignature) -> FrozenGraph:
    """Freeze one signature of a SavedModel.

    Raises:
        InputError: it cannot be loaded, has input dimensions that are not fixed, or keeps a state.
    """
    path = source.path
    try:
        saved_model = tf.saved_model.load(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a readable SavedModel: {_first_error_line(error)}") from error
    signature = saved_model.signatures[source.name]
    check_signature(path, signature)
    spec_by_name = signature.structured_input_signature[1]
    inputs = tuple(
        _signature_input(path, name, spec_by_name[name]) for name in ordered_input_names(signature, spec_by_name)
    )

    signature_outputs = tuple(sorted(signature.structured_outputs, key=natural_order))

    def infer(*tensors: Tensor) -> list[Tensor]:
        outputs = signature(**{model_input.name: tensor for model_input, tensor in zip(inputs, tensors, strict=True)})
        return [outputs[name] for name in signature_outputs]

    try:
        function = _freeze_function(_trace(infer, inputs))
    except (ValueError, tf.errors.OpError) as error:
        reason = find_stateful_problem(signature) or f"cannot be frozen: {_first_error_line(error)}"
        raise InputError(f"{path}: {reason}") from error
    if problem_text := find_stateful_problem(function):
        raise InputError(f"{path}: {problem_text}")
    return FrozenGraph(function, inputs, signature_outputs, source.name)


def _signature_input(path: Path, name: str, spec: TensorSpec) -> ModelInput:
    dimensions = spec.shape.as_list() if spec.shape.rank is not None else [None, None]
    if None in dimensions[1:]:
        raise InputError(
            f"{path}: input '{name}' has the shape {tuple(dimensions)}; all but the first dimension must be fixed"
        )
    return ModelInput(name, (1, *dimensions[1:]), spec.dtype.name)


def _trace(infer: Callable[..., list[Tensor]], inputs: tuple[ModelInput, ...]) -> TfFunction:
    tensor_specs = [
        tf.TensorSpec(model_input.shape, tf.as_dtype(model_input.dtype), name=model_input.name)
        for model_input in inputs
    ]
    return tf.function(infer, autograph=False).get_concrete_function(*tensor_specs)


def _freeze_function(function: TfFunction) -> TfFunction:
    return replace_unsupported_operations(convert_variables_to_constants_v2(function))


def _check_variables(function: TfFunction) -> None:
    """Refuse a graph that writes to its variables: frozen, they would keep their value, or freezing crashes."""
    if writers := find_variable_writers(function):
        names = ", ".join(dict.fromkeys(f"'{name}'" for name in writers))
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
