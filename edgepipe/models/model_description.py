"""Reads a model's inputs, outputs and layers from its Keras file without TensorFlow, for `init` and messages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.models.file_kind import detect_kind, find_code_layers, read_config

Shape = tuple[int | None, ...]
_SHAPE_PRESERVING = {
    "Activation", "BatchNormalization", "Dropout", "ELU", "Identity", "LayerNormalization", "LeakyReLU", "PReLU",
    "ReLU", "Softmax",
}  # fmt: skip
_VALUE_PRESERVING = {"Dropout", "Flatten", "Identity", "Reshape", "Permute"}


@dataclass(frozen=True)
class PortDescription:
    """An input or output: its layer, its shape with the batch axis (None where unknown), its dtype."""

    name: str
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True)
class ModelDescription:
    """Inputs and outputs of a model, its layers as (name, class), and the code it contains."""

    kind: ArtifactKind
    inputs: tuple[PortDescription, ...]
    outputs: tuple[PortDescription, ...]
    last_activation: str  # of the first output; "linear" if there is none
    layers: tuple[tuple[str, str], ...]
    code_layers: tuple[str, ...]  # layers that contain code, which need `allow_code: true`


@dataclass(frozen=True)
class _LayerDescription:
    name: str
    cls: str
    config: dict[str, Any]
    entry: dict[str, Any]
    input_layers: tuple[str, ...]  # names of the layers it reads


def describe(path: Path) -> ModelDescription:
    """Describe the model in the `.keras` or `.h5` file at `path`.

    Raises:
        InputError: the file is damaged or not a Keras file, or the model is subclassed, without a graph of layers.
    """
    kind = detect_kind(path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{path}: a {kind} file does not describe its layers; only .keras and .h5 files do")
    model = read_config(path)
    layers = _layers(model)
    if not layers:
        raise InputError(f"{path}: the {model.get('class_name')} in it has no graph of layers (a subclassed model)")
    layer_by_name = {layer.name: layer for layer in layers}
    output_names = _output_names(model, layers)
    return ModelDescription(
        kind=kind,
        inputs=tuple(_input_port(layer) for layer in layers if layer.cls == "InputLayer")
        or _sequential_input(model, layers),
        outputs=tuple(
            PortDescription(name, _output_shape(layer_by_name[name], layer_by_name)) for name in output_names
        ),
        last_activation=_output_activation(layer_by_name[output_names[0]], layer_by_name),
        layers=tuple((layer.name, layer.cls) for layer in layers),
        code_layers=find_code_layers(model),
    )


def _layers(model: dict[str, Any]) -> list[_LayerDescription]:
    entries = [entry for entry in model["config"].get("layers", []) if isinstance(entry.get("config"), dict)]
    is_sequential = model.get("class_name") == "Sequential"
    names = [str(entry["config"].get("name") or entry.get("name")) for entry in entries]
    input_layers = [
        tuple(names[:index][-1:]) if is_sequential else tuple(_source_names(entry.get("inbound_nodes")))
        for index, entry in enumerate(entries)
    ]
    return [
        _LayerDescription(name, str(entry["class_name"]), entry["config"], entry, input_names)
        for name, entry, input_names in zip(names, entries, input_layers, strict=True)
    ]


def _source_names(inbound: Any) -> list[str]:
    if isinstance(inbound, dict):
        history = inbound.get("keras_history")
        return (
            [str(history[0])]
            if isinstance(history, list)
            else [name for child in inbound.values() for name in _source_names(child)]
        )
    if isinstance(inbound, list):
        if len(inbound) >= 3 and isinstance(inbound[0], str) and isinstance(inbound[1], int):
            return [inbound[0]]
        return [name for child in inbound for name in _source_names(child)]
    return []


def _output_names(model: dict[str, Any], layers: list[_LayerDescription]) -> list[str]:
    if model.get("class_name") == "Sequential":
        return [layers[-1].name]
    return _source_names(model["config"].get("output_layers")) or _source_names(
        list(_mapping_values(model["config"].get("output_layers")))
    )


def _mapping_values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else []


def _input_port(layer: _LayerDescription) -> PortDescription:
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape") or ()
    dtype = layer.config.get("dtype")
    return PortDescription(layer.name, tuple(shape), dtype if isinstance(dtype, str) else "float32")


def _sequential_input(model: dict[str, Any], layers: list[_LayerDescription]) -> tuple[PortDescription, ...]:
    shape = model["config"].get("build_input_shape") or layers[0].config.get("batch_input_shape") or ()
    return (PortDescription(f"{layers[0].name}_input", tuple(shape)),)


def _output_shape(layer: _LayerDescription, layer_by_name: dict[str, _LayerDescription]) -> Shape:
    # the file gives the number of output channels; only Keras could compute the rest of the shape
    built_shape = (layer.entry.get("build_config") or {}).get("input_shape") or [None]
    if layer.cls == "InputLayer":
        return _input_port(layer).shape
    if layer.cls == "Reshape":
        return (None, *layer.config["target_shape"])
    if "units" in layer.config:
        return (
            (*built_shape[:-1], layer.config["units"])
            if built_shape[0:1] != [None] or len(built_shape) > 1
            else (None, layer.config["units"])
        )
    if "filters" in layer.config:
        return (*[None] * max(len(built_shape) - 1, 1), layer.config["filters"])
    if layer.input_layers and layer.input_layers[0] in layer_by_name:
        return _forwarded_shape(layer, _output_shape(layer_by_name[layer.input_layers[0]], layer_by_name))
    return (None,)


def _forwarded_shape(layer: _LayerDescription, shape: Shape) -> Shape:
    if layer.cls in _SHAPE_PRESERVING:
        return shape
    if layer.cls.startswith("Global"):
        return (None, shape[-1])
    return (None,)


def _output_activation(layer: _LayerDescription, layer_by_name: dict[str, _LayerDescription]) -> str:
    activation = layer.config.get("activation")
    if isinstance(activation, str) and (activation != "linear" or "units" in layer.config or "filters" in layer.config):
        return activation
    if layer.cls in ("Softmax", "ReLU"):
        return layer.cls.lower()
    if layer.cls in _VALUE_PRESERVING and layer.input_layers and layer.input_layers[0] in layer_by_name:
        return _output_activation(layer_by_name[layer.input_layers[0]], layer_by_name)
    return "linear"
