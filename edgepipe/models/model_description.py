"""Reads a model's inputs, outputs and layers from its Keras file without TensorFlow, for `init` and messages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.models.file_kind import detect_kind, find_code_layers, read_config

Shape = tuple[int | None, ...]
_SHAPE_PRESERVING_CLASSES = {
    "Activation", "BatchNormalization", "Dropout", "ELU", "Identity", "LayerNormalization", "LeakyReLU", "PReLU",
    "ReLU", "Softmax",
}  # fmt: skip
_VALUE_PRESERVING_CLASSES = {"Dropout", "Flatten", "Identity", "Reshape", "Permute"}


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
class LayerDescription:
    """A layer, or an operator between layers, as the file describes it."""

    name: str
    class_name: str
    config: dict[str, Any]
    serialized_layer: dict[str, Any]
    input_layer_names: tuple[str, ...]  # names of the layers it reads


def describe(path: Path) -> ModelDescription:
    """Describe the model in the `.keras` or `.h5` file at `path`.

    Raises:
        InputError: the file is damaged or not a Keras file, or the model is subclassed, without a graph of layers.
    """
    kind = detect_kind(path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{path}: a {kind} file does not describe its layers; only .keras and .h5 files do")
    model_config = read_config(path)
    layer_descriptions = describe_layers(model_config)
    if not layer_descriptions:
        raise InputError(
            f"{path}: the {model_config.get('class_name')} in it has no graph of layers (a subclassed model)"
        )
    layer_by_name = {layer.name: layer for layer in layer_descriptions}
    output_layer_names = _output_layer_names(model_config, layer_descriptions)
    return ModelDescription(
        kind=kind,
        inputs=tuple(_describe_input(layer) for layer in layer_descriptions if layer.class_name == "InputLayer")
        or _describe_sequential_input(model_config, layer_descriptions),
        outputs=tuple(
            PortDescription(name, _output_shape(layer_by_name[name], layer_by_name)) for name in output_layer_names
        ),
        last_activation=_output_activation(layer_by_name[output_layer_names[0]], layer_by_name),
        layers=tuple((layer.name, layer.class_name) for layer in layer_descriptions),
        code_layers=find_code_layers(model_config),
    )


def describe_layers(model_config: dict[str, Any]) -> list[LayerDescription]:
    """The layers of a model, those of nested models not included, in the order of the file."""
    serialized_layers = [
        entry for entry in model_config["config"].get("layers", []) if isinstance(entry.get("config"), dict)
    ]
    is_sequential = model_config.get("class_name") == "Sequential"
    layer_names = [str(entry["config"].get("name") or entry.get("name")) for entry in serialized_layers]
    input_layer_names = [
        tuple(layer_names[:index][-1:]) if is_sequential else tuple(_source_layer_names(entry.get("inbound_nodes")))
        for index, entry in enumerate(serialized_layers)
    ]
    return [
        LayerDescription(name, str(entry["class_name"]), entry["config"], entry, input_names)
        for name, entry, input_names in zip(layer_names, serialized_layers, input_layer_names, strict=True)
    ]


def _source_layer_names(inbound_nodes: Any) -> list[str]:
    if isinstance(inbound_nodes, dict):
        keras_history = inbound_nodes.get("keras_history")
        return (
            [str(keras_history[0])]
            if isinstance(keras_history, list)
            else [name for child in inbound_nodes.values() for name in _source_layer_names(child)]
        )
    if isinstance(inbound_nodes, list):
        if len(inbound_nodes) >= 3 and isinstance(inbound_nodes[0], str) and isinstance(inbound_nodes[1], int):
            return [inbound_nodes[0]]
        return [name for child in inbound_nodes for name in _source_layer_names(child)]
    return []


def _output_layer_names(model_config: dict[str, Any], layer_descriptions: list[LayerDescription]) -> list[str]:
    if model_config.get("class_name") == "Sequential":
        return [layer_descriptions[-1].name]
    return _source_layer_names(model_config["config"].get("output_layers")) or _source_layer_names(
        list(_mapping_values(model_config["config"].get("output_layers")))
    )


def _mapping_values(mapping: Any) -> list[Any]:
    return list(mapping.values()) if isinstance(mapping, dict) else []


def _describe_input(layer: LayerDescription) -> PortDescription:
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape") or ()
    dtype = layer.config.get("dtype")
    return PortDescription(layer.name, tuple(shape), dtype if isinstance(dtype, str) else "float32")


def _describe_sequential_input(
    model_config: dict[str, Any], layer_descriptions: list[LayerDescription]
) -> tuple[PortDescription, ...]:
    shape = (
        model_config["config"].get("build_input_shape") or layer_descriptions[0].config.get("batch_input_shape") or ()
    )
    return (PortDescription(f"{layer_descriptions[0].name}_input", tuple(shape)),)


def _output_shape(layer: LayerDescription, layer_by_name: dict[str, LayerDescription]) -> Shape:
    # the file gives the number of output channels; only Keras could compute the rest of the shape
    built_shape = (layer.serialized_layer.get("build_config") or {}).get("input_shape") or [None]
    if layer.class_name == "InputLayer":
        return _describe_input(layer).shape
    if layer.class_name == "Reshape":
        return (None, *layer.config["target_shape"])
    if "units" in layer.config:
        return (
            (*built_shape[:-1], layer.config["units"])
            if built_shape[0:1] != [None] or len(built_shape) > 1
            else (None, layer.config["units"])
        )
    if "filters" in layer.config:
        return (*[None] * max(len(built_shape) - 1, 1), layer.config["filters"])
    if layer.input_layer_names and layer.input_layer_names[0] in layer_by_name:
        return _forwarded_shape(layer, _output_shape(layer_by_name[layer.input_layer_names[0]], layer_by_name))
    return (None,)


def _forwarded_shape(layer: LayerDescription, shape: Shape) -> Shape:
    if layer.class_name in _SHAPE_PRESERVING_CLASSES:
        return shape
    if layer.class_name.startswith("Global"):
        return (None, shape[-1])
    return (None,)


def _output_activation(layer: LayerDescription, layer_by_name: dict[str, LayerDescription]) -> str:
    activation = layer.config.get("activation")
    if isinstance(activation, str) and (activation != "linear" or "units" in layer.config or "filters" in layer.config):
        return activation
    if layer.class_name in ("Softmax", "ReLU"):
        return layer.class_name.lower()
    if (
        layer.class_name in _VALUE_PRESERVING_CLASSES
        and layer.input_layer_names
        and layer.input_layer_names[0] in layer_by_name
    ):
        return _output_activation(layer_by_name[layer.input_layer_names[0]], layer_by_name)
    return "linear"
