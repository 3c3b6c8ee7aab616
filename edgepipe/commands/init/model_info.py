"""Inspects a model by its file or the source of its function; none of its code is run."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.commands.init.output_location import OutputLocation
from edgepipe.core import module_sources, references
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models.dtype_policies import check_not_quantized, describe_float_policies
from edgepipe.models.file_kind import detect_kind, find_code_layers, read_config
from edgepipe.models.input_expectations import read_expectations
from edgepipe.models.input_shapes import OPEN_SHAPE_REMEDY
from edgepipe.models.model_description import ModelDescription, PortDescription, describe
from edgepipe.tflite import integer_check, reader
from edgepipe.tflite.input_expectation import InputExpectation
from edgepipe.tflite.model import Model, Tensor

ARGUMENTS_FROM_DATA = ("input_shape", "classes")  # arguments of a function that edgepipe takes from the data
_ACTIVATION_BY_OPERATOR = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}
_PRUNABLE_CLASSES = {"Conv2D", "Dense", "SeparableConv2D"}
_NESTED_CLASSES = {"Functional", "Model", "Sequential"}  # their layers are not read, so they may be prunable
_SUBCLASSED_MESSAGE = (
    "a class of its own, without a graph of layers: only its Python code can build it. Write a function that returns "
    "it as keras.Model(inputs, outputs), with its weights loaded, and name that: edgepipe init mymodule:build"
)


@dataclass(frozen=True)
class ModelFunction:
    """A `module:function` by its source: its parameters, those without default, and the string constants in it."""

    name: str
    parameter_names: tuple[str, ...]
    required_parameter_names: tuple[str, ...]
    string_constants: frozenset[str]


@dataclass(frozen=True)
class ModelInfo:
    """A model as far as it can be inspected. `kind` is None for a function, which builds an untrained Keras 3 model."""

    name: str
    reference: str  # as the pipeline names it
    kind: ArtifactKind | None
    title: str
    size_bytes: int = 0  # of the file
    inputs: tuple[PortDescription, ...] = ()
    outputs: tuple[PortDescription, ...] = ()
    activation: str = "linear"
    code_descriptions: tuple[str, ...] = ()
    custom_objects: str | None = None  # module:attribute
    is_integer: bool = False  # a .tflite that is fully integer already
    is_prunable: bool = True  # it has layers that `prune` works on, not counting the last
    function: ModelFunction | None = None
    expectation: InputExpectation | None = None  # of its only input, where its layers tell
    notes: tuple[str, ...] = ()

    @property
    def is_compressible(self) -> bool:
        """Whether `prune` and `quantize` can work on it: a Keras model of plain layers."""
        return self.kind in (None, ArtifactKind.KERAS, ArtifactKind.FLOAT) and not self.code_descriptions


def inspect_model(model_reference: str, location: OutputLocation, custom_objects: str | None = None) -> ModelInfo:
    """Inspect `model`, a path or `module:function`; `custom_objects` names its own classes.

    Raises:
        InputError: there is no such model or function, the file is damaged, or the model is a subclassed one.
    """
    if not Path(model_reference).exists() and references.is_reference(model_reference):
        if custom_objects is not None:
            raise InputError(
                f"{model_reference}: --custom-objects is for .keras and .h5 files; a function knows its own classes"
            )
        return _inspect_function(model_reference, location)
    path = Path(model_reference)
    kind = detect_kind(path)
    if kind in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        return _inspect_keras(path, location, custom_objects)
    if custom_objects is not None:
        raise InputError(f"{path}: --custom-objects is for .keras and .h5 files; this is a {kind}")
    if kind is ArtifactKind.TFLITE:
        return _inspect_tflite(path, location.relative_path(path))
    code_descriptions = ("a SavedModel is a program",) if kind is ArtifactKind.SAVED_MODEL else ()
    title = f"a {kind.replace('_', ' ')} folder; its inputs and outputs are known once it is converted"
    return ModelInfo(path.stem, location.relative_path(path), kind, title, code_descriptions=code_descriptions)


def _inspect_keras(path: Path, location: OutputLocation, custom_objects: str | None) -> ModelInfo:
    if custom_objects is not None:
        _check_custom_objects(custom_objects, location)
    config = read_config(path)
    check_not_quantized(str(path), config)
    if "layers" not in config["config"]:
        raise InputError(f"{path}: {_SUBCLASSED_MESSAGE}")
    model_description = describe(path)
    keras_dialect = "Keras 3" if model_description.kind is ArtifactKind.KERAS else "tf_keras"
    io_text = _io_text(model_description.inputs, model_description.outputs)
    return ModelInfo(
        path.stem,
        location.relative_path(path),
        model_description.kind,
        title=f"{keras_dialect}, {plural(len(model_description.layers), 'layer')}; {io_text}; "
        f"ends in {model_description.last_activation}",
        size_bytes=path.stat().st_size,
        inputs=model_description.inputs,
        outputs=model_description.outputs,
        activation=model_description.last_activation,
        code_descriptions=model_description.code_layers if custom_objects is None else find_code_layers(config, None),
        custom_objects=custom_objects,
        is_prunable=_has_prunable_layers(model_description),
        expectation=_only_expectation(path, len(model_description.inputs)),
        notes=(*_open_dimension_notes(model_description), *_policy_notes(config)),
    )


def _check_custom_objects(reference: str, location: OutputLocation) -> None:
    if not references.is_reference(reference):
        raise InputError(f"custom_objects '{reference}' is not of the form module:attribute")
    references.check(reference, location.folder)


def _has_prunable_layers(model_description: ModelDescription) -> bool:
    layer_classes = [cls for _, cls in model_description.layers]
    return not _NESTED_CLASSES.isdisjoint(layer_classes) or sum(cls in _PRUNABLE_CLASSES for cls in layer_classes) > 1


def _open_dimension_notes(model_description: ModelDescription) -> tuple[str, ...]:
    return tuple(
        f"input '{port.name}' has the shape {port.shape}: all but the first dimension must be fixed for a device; give "
        f"{OPEN_SHAPE_REMEDY}"
        for port in model_description.inputs
        if None in port.shape[1:]
    )


def _policy_notes(config: dict[str, Any]) -> tuple[str, ...]:
    policies_text = describe_float_policies(config)
    return (f"the model has the {policies_text}: it is rebuilt in float32 when it is loaded",) if policies_text else ()


def _inspect_tflite(path: Path, reference: str) -> ModelInfo:
    model = reader.read(path)
    inputs, outputs = _tensor_ports(model.inputs_by_name), _tensor_ports(model.outputs_by_name)
    float_findings = integer_check.check_integer_only(model)
    float_text = f"{plural(len(float_findings), 'operator or tensor', 'operators or tensors')} in float"
    integer_text = float_text if float_findings else "fully integer"
    title = f"TFLite, {plural(len(model.operators), 'operator')}, {integer_text}; {_io_text(inputs, outputs)}"
    activation = _ACTIVATION_BY_OPERATOR.get(_last_operator_name(model), "linear")
    return ModelInfo(
        path.stem,
        reference,
        ArtifactKind.TFLITE,
        title,
        model.bytes,
        inputs,
        outputs,
        activation,
        is_integer=not float_findings,
        expectation=_only_expectation(path, len(inputs)),
    )


def _only_expectation(path: Path, input_count: int) -> InputExpectation | None:
    """What the file tells of the values that a model with one input expects."""
    expectations = read_expectations(path) if input_count == 1 else ()
    return expectations[0] if expectations else None


def _tensor_ports(tensor_by_name: dict[str, Tensor]) -> tuple[PortDescription, ...]:
    return tuple(
        PortDescription(name, (None, *tensor.shape[1:]), tensor.dtype) for name, tensor in tensor_by_name.items()
    )


def _last_operator_name(model: Model) -> str:
    operator = model.find_source_operator(model.outputs[0]) if model.outputs else None
    return operator.name if operator is not None else ""


def _io_text(inputs: tuple[PortDescription, ...], outputs: tuple[PortDescription, ...]) -> str:
    return f"takes {', '.join(map(_port_text, inputs))}; outputs {', '.join(map(_port_text, outputs))}"


def _port_text(port: PortDescription) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in port.shape[1:])
    return f"'{port.name}' ({sizes or '?'})"


def _inspect_function(reference: str, location: OutputLocation) -> ModelInfo:
    references.check(reference, location.folder)
    module, _, name = reference.partition(":")
    model_function = _find_function(module, name, location)
    missing_parameters = tuple(p for p in model_function.required_parameter_names if p not in ARGUMENTS_FROM_DATA)
    missing_text = ", ".join(missing_parameters)
    note = f"'{reference}' needs arguments that only you know: {missing_text}; write them under `model: args:`"
    return ModelInfo(
        name,
        reference,
        None,
        "built by a function, untrained",
        function=model_function,
        notes=(note,) if missing_parameters else (),
    )


def _find_function(module_name: str, function_name: str, location: OutputLocation) -> ModelFunction:
    for file in module_sources.import_closure(module_name, location.folder).values():
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.name == function_name:
                return _read_signature(node)
    return ModelFunction(function_name, (), (), frozenset())  # defined otherwise, such as by an assignment


def _read_signature(node: ast.FunctionDef) -> ModelFunction:
    arguments = node.args
    positional_arguments = [*arguments.posonlyargs, *arguments.args]
    required_arguments = positional_arguments[: len(positional_arguments) - len(arguments.defaults)]
    required_arguments += [
        a for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    string_constants = {
        child.value for child in ast.walk(node) if isinstance(child, ast.Constant) and isinstance(child.value, str)
    }
    parameter_names = tuple(argument.arg for argument in (*positional_arguments, *arguments.kwonlyargs))
    return ModelFunction(
        node.name, parameter_names, tuple(argument.arg for argument in required_arguments), frozenset(string_constants)
    )
