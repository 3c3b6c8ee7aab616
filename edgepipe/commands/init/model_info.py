"""What a model is, as far as its file or the source of its function says; nothing in it is run."""

import ast
from dataclasses import dataclass
from pathlib import Path

from edgepipe.commands.init.output_location import Place
from edgepipe.core import references
from edgepipe.core.artifact import Kind
from edgepipe.core.errors import InputError
from edgepipe.models.file_kind import read_config, sniff
from edgepipe.models.model_description import Description, Port, describe
from edgepipe.tflite import integer_check, reader
from edgepipe.tflite.model import Model, Tensor

FROM_DATA = ("input_shape", "classes")  # arguments of a function that edgepipe takes from the data
_BY_OPERATOR = {"SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}
_PRUNED = {"Conv2D", "Dense", "SeparableConv2D"}
_NESTED = {"Functional", "Model", "Sequential"}  # what is inside them only Keras could tell
_PASSING = {"QUANTIZE", "DEQUANTIZE", "RESHAPE"}
_SUBCLASSED = (
    "a class of its own, without a graph of layers: only its Python code can build it. Write a function that returns "
    "it as keras.Model(inputs, outputs), with its weights loaded, and name that: edgepipe init mymodule:build"
)


@dataclass(frozen=True)
class Function:
    """What the source of a `module:function` says: its parameters, those without default, the texts in its body."""

    name: str
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    words: frozenset[str]


@dataclass(frozen=True)
class Seen:
    """A model seen from outside. `kind` is None for a function, which builds an untrained Keras 3 model."""

    name: str
    reference: str  # as the pipeline names it
    kind: Kind | None
    title: str
    bytes: int = 0  # of the file
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    activation: str = "linear"
    code: tuple[str, ...] = ()
    integer: bool = False  # a .tflite that is fully integer already
    prunable: bool = True  # it has layers that `prune` works on, the last one excepted
    function: Function | None = None
    notes: tuple[str, ...] = ()

    @property
    def compressible(self) -> bool:
        """Whether `prune` and `quantize` can work on it: a Keras model of plain layers."""
        return self.kind in (None, Kind.KERAS, Kind.FLOAT) and not self.code


def look(model: str, place: Place) -> Seen:
    """What `model`, a path or `module:function`, is.

    Raises:
        InputError: there is no such model or function, the file is damaged, or the model is a subclassed one.
    """
    if not Path(model).exists() and references.is_reference(model):
        return _function(model, place)
    path = Path(model)
    kind = sniff(path)
    if kind in (Kind.KERAS, Kind.FLOAT):
        return _keras(path, place.path(path))
    if kind is Kind.TFLITE:
        return _tflite(path, place.path(path))
    code = ("a SavedModel is a program",) if kind is Kind.SAVED_MODEL else ()
    title = f"a {kind.replace('_', ' ')} folder; what it takes and gives shows when it is converted"
    return Seen(path.stem, place.path(path), kind, title, code=code)


def _keras(path: Path, reference: str) -> Seen:
    if "layers" not in read_config(path)["config"]:
        raise InputError(f"{path}: {_SUBCLASSED}")
    told = describe(path)
    dialect = "Keras 3" if told.kind is Kind.KERAS else "tf_keras"
    title = f"{dialect}, {len(told.layers)} layers; {_ports(told.inputs, told.outputs)}; ends in {told.last_activation}"
    return Seen(
        path.stem, reference, told.kind, title, path.stat().st_size, told.inputs, told.outputs, told.last_activation,
        told.code, prunable=_prunable(told), notes=_open_dimensions(told),
    )  # fmt: skip


def _prunable(told: Description) -> bool:
    classes = [cls for _, cls in told.layers]
    return not _NESTED.isdisjoint(classes) or sum(cls in _PRUNED for cls in classes) > 1


def _open_dimensions(told: Description) -> tuple[str, ...]:
    return tuple(
        f"input '{port.name}' has the shape {port.shape}: all but the first dimension must be fixed for a device; "
        "rebuild the model with a full Input(shape=...)"
        for port in told.inputs
        if None in port.shape[1:]
    )


def _tflite(path: Path, reference: str) -> Seen:
    model = reader.read(path)
    inputs, outputs = _named(model.input_names), _named(model.output_names)
    offenders = integer_check.findings(model)
    state = f"{len(offenders)} operators or tensors in float" if offenders else "fully integer"
    title = f"TFLite, {len(model.operators)} operators, {state}; {_ports(inputs, outputs)}"
    activation = _BY_OPERATOR.get(_last_operator(model), "linear")
    return Seen(
        path.stem, reference, Kind.TFLITE, title, model.bytes, inputs, outputs, activation, integer=not offenders
    )


def _named(tensors: dict[str, Tensor]) -> tuple[Port, ...]:
    return tuple(Port(name, (None, *tensor.shape[1:]), tensor.dtype) for name, tensor in tensors.items())


def _last_operator(model: Model) -> str:
    made_by = {t.index: op for op in model.operators if op.subgraph == 0 for t in op.outputs if t is not None}
    operator = made_by.get(model.outputs[0].index) if model.outputs else None
    while operator is not None and operator.name in _PASSING and operator.inputs[0] is not None:
        operator = made_by.get(operator.inputs[0].index)
    return operator.name if operator is not None else ""


def _ports(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> str:
    return f"takes {', '.join(map(_port, inputs))}; gives {', '.join(map(_port, outputs))}"


def _port(port: Port) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in port.shape[1:])
    return f"'{port.name}' ({sizes or '?'})"


def _function(reference: str, place: Place) -> Seen:
    references.check(reference, place.base)
    module, _, name = reference.partition(":")
    told = _source(module, name, place)
    missing = tuple(p for p in told.required if p not in FROM_DATA)
    note = f"'{reference}' needs arguments that only you know: {', '.join(missing)}; write them under `model: args:`"
    return Seen(
        name, reference, None, "built by a function, untrained", function=told, notes=(note,) if missing else ()
    )


def _source(module: str, name: str, place: Place) -> Function:
    for file in references.closure(module, place.base).values():
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return _signature(node)
    return Function(name, (), (), frozenset())  # made by other means, such as an assignment


def _signature(node: ast.FunctionDef) -> Function:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    bare = positional[: len(positional) - len(arguments.defaults)]
    bare += [a for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None]
    texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    named = tuple(argument.arg for argument in (*positional, *arguments.kwonlyargs))
    return Function(node.name, named, tuple(argument.arg for argument in bare), frozenset(texts))
