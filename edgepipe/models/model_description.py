"""What a Keras file says about its model, read without TensorFlow: for `edgepipe init` and for messages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.core.artifact import Kind
from edgepipe.core.errors import InputError
from edgepipe.models.file_kind import code_inside, read_config, sniff

Shape = tuple[int | None, ...]
_SAME_CHANNELS = {
    "Activation",
    "BatchNormalization",
    "Dropout",
    "ELU",
    "Identity",
    "LayerNormalization",
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "Softmax",
}
_SAME_VALUES = {"Dropout", "Flatten", "Identity", "Reshape", "Permute"}


@dataclass(frozen=True)
class Port:
    """An input or output: its layer, its shape with the batch axis (None where the file does not say), its dtype."""

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class Description:
    """The outside of a model, its layers as (name, class), and the code it carries."""

    kind: Kind
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    last_activation: str  # of the first output; "linear" if there is none
    layers: tuple[tuple[str, str], ...]
    code: tuple[str, ...]  # layers that hold code, which need `allow_code: true`


@dataclass(frozen=True)
class _Layer:
    name: str
    cls: str
    config: dict[str, Any]
    entry: dict[str, Any]
    before: tuple[str, ...]  # the layers it reads


def describe(path: Path) -> Description:
    """Read what the `.keras` or `.h5` file at `path` says about its model.

    Raises:
        InputError: the file is damaged or no Keras file, or the model is a class of its own, without a layer graph.
    """
    kind = sniff(path)
    if kind not in (Kind.KERAS, Kind.FLOAT):
        raise InputError(f"{path}: a {kind} does not say how it is built; describe takes .keras and .h5 files")
    model = read_config(path)
    layers = _layers(model)
    if not layers:
        raise InputError(f"{path}: the {model.get('class_name')} in it has no graph of layers (a subclassed model)")
    table = {layer.name: layer for layer in layers}
    ends = _ends(model, layers)
    return Description(
        kind=kind,
        inputs=tuple(_input(layer) for layer in layers if layer.cls == "InputLayer")
        or _sequential_input(model, layers),
        outputs=tuple(Port(name, _output_shape(table[name], table)) for name in ends),
        last_activation=_activation(table[ends[0]], table),
        layers=tuple((layer.name, layer.cls) for layer in layers),
        code=code_inside(model),
    )


def _layers(model: dict[str, Any]) -> list[_Layer]:
    entries = [entry for entry in model["config"].get("layers", []) if isinstance(entry.get("config"), dict)]
    chain = model.get("class_name") == "Sequential"
    names = [str(entry["config"].get("name") or entry.get("name")) for entry in entries]
    before = [
        tuple(names[:index][-1:]) if chain else tuple(_sources(entry.get("inbound_nodes")))
        for index, entry in enumerate(entries)
    ]
    return [
        _Layer(name, str(entry["class_name"]), entry["config"], entry, into)
        for name, entry, into in zip(names, entries, before, strict=True)
    ]


def _sources(value: Any) -> list[str]:
    if isinstance(value, dict):
        history = value.get("keras_history")
        return (
            [str(history[0])]
            if isinstance(history, list)
            else [name for inner in value.values() for name in _sources(inner)]
        )
    if isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int):
            return [value[0]]
        return [name for inner in value for name in _sources(inner)]
    return []


def _ends(model: dict[str, Any], layers: list[_Layer]) -> list[str]:
    if model.get("class_name") == "Sequential":
        return [layers[-1].name]
    return _sources(model["config"].get("output_layers")) or _sources(
        list(_values(model["config"].get("output_layers")))
    )


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _input(layer: _Layer) -> Port:
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape") or ()
    dtype = layer.config.get("dtype")
    return Port(layer.name, tuple(shape), dtype if isinstance(dtype, str) else "float32")


def _sequential_input(model: dict[str, Any], layers: list[_Layer]) -> tuple[Port, ...]:
    shape = model["config"].get("build_input_shape") or layers[0].config.get("batch_input_shape") or ()
    return (Port(f"{layers[0].name}_input", tuple(shape)),)


def _output_shape(layer: _Layer, table: dict[str, _Layer]) -> Shape:
    # The file says how many channels the last weights make; the rest of the shape only Keras could compute.
    built = (layer.entry.get("build_config") or {}).get("input_shape") or [None]
    if layer.cls == "InputLayer":
        return _input(layer).shape
    if layer.cls == "Reshape":
        return (None, *layer.config["target_shape"])
    if "units" in layer.config:
        return (
            (*built[:-1], layer.config["units"])
            if built[0:1] != [None] or len(built) > 1
            else (None, layer.config["units"])
        )
    if "filters" in layer.config:
        return (*[None] * max(len(built) - 1, 1), layer.config["filters"])
    if layer.before and layer.before[0] in table:
        return _passed_on(layer, _output_shape(table[layer.before[0]], table))
    return (None,)


def _passed_on(layer: _Layer, shape: Shape) -> Shape:
    if layer.cls in _SAME_CHANNELS:
        return shape
    if layer.cls.startswith("Global"):
        return (None, shape[-1])
    return (None,)


def _activation(layer: _Layer, table: dict[str, _Layer]) -> str:
    named = layer.config.get("activation")
    if isinstance(named, str) and (named != "linear" or "units" in layer.config or "filters" in layer.config):
        return named
    if layer.cls in ("Softmax", "ReLU"):
        return layer.cls.lower()
    if layer.cls in _SAME_VALUES and layer.before and layer.before[0] in table:
        return _activation(table[layer.before[0]], table)
    return "linear"
