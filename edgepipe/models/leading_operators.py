"""What a Keras model does to its input before its first weights: the preprocessing inside it. Without TensorFlow."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.models.file_kind import read_config
from edgepipe.models.layer_weights import read_layer_weights
from edgepipe.models.model_description import LayerDescription, describe_layers

_NESTED_MODEL_CLASSES = {"Functional", "Model", "Sequential"}
_SAME_VALUES_CLASSES = {  # their outputs are values of their input
    *(
        "InputLayer",
        "Identity",
        "Cast",
        "Reshape",
        "Permute",
        "Flatten",
        "Concatenate",
        "Stack",
        "ExpandDims",
        "Squeeze",
    ),
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    *("Resizing", "CenterCrop", "Cropping1D", "Cropping2D", "ZeroPadding1D", "ZeroPadding2D", "Pad", "UpSampling1D"),
    *("UpSampling2D", "RandomFlip", "RandomRotation", "RandomZoom", "RandomCrop", "RandomTranslation", "RandomHeight"),
    *("RandomContrast", "RandomBrightness", "RandomWidth", "RandAugment", "GetItem", "Flip", "SlicingOpLambda"),
}
_SAME_VALUES_FUNCTIONS = {"cast", "identity", "reshape", "expand_dims", "reverse", "image.resize"}
_SLICE_CLASSES, _JOIN_CLASSES = {"GetItem", "SlicingOpLambda"}, {"Stack", "Concatenate"}
_OPERATOR_BY_CLASS = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Divide": "divide", "TrueDivide": "divide",
}  # fmt: skip
_OPERATOR_BY_FUNCTION = {
    "math.add": "add", "__operators__.add": "add", "add": "add", "math.subtract": "subtract", "subtract": "subtract",
    "math.multiply": "multiply", "multiply": "multiply", "math.truediv": "divide", "math.divide": "divide",
    "divide": "divide", "nn.bias_add": "add",
}  # fmt: skip
Affine = tuple[Array, Array]  # factor and summand


@dataclass(frozen=True)
class PlacedLayer:
    """A layer, the layers of the model that holds it, and that model where it is nested in another."""

    layer: LayerDescription
    siblings: tuple[LayerDescription, ...]
    outer: "PlacedLayer | None" = None

    def read_weights(self, path: Path) -> list[Array]:
        """Its arrays in the file at `path`."""
        return read_layer_weights(path, self.layer_path, self.siblings)

    @property
    def layer_path(self) -> tuple[LayerDescription, ...]:
        """The nested models around it, outermost first, then the layer itself."""
        return (*(self.outer.layer_path if self.outer is not None else ()), self.layer)

    @property
    def readers(self) -> list["PlacedLayer"]:
        """What reads its output; at the end of a nested model, what reads that model."""
        readers = [replace(self, layer=other) for other in self.siblings if self.layer.name in other.input_layer_names]
        return readers or (self.outer.readers if self.outer is not None else [])

    @property
    def inner_start(self) -> list["PlacedLayer"]:
        """Of a nested model with one input, where it begins; empty for a layer."""
        if self.layer.class_name not in _NESTED_MODEL_CLASSES:
            return []
        layers = tuple(describe_layers(self.layer.serialized_layer))
        starts = [layer for layer in layers if layer.class_name == "InputLayer"] or layers[:1]
        return [PlacedLayer(start, layers, self) for start in starts] if len(starts) == 1 else []


@dataclass(frozen=True)
class LeadingOperators:
    """What happens to one input first: x * factor + summand, for all channels or each, in the named layers."""

    input_name: str
    factor: Array
    summand: Array
    layer_texts: tuple[str, ...] = ()
    next_layers: tuple[PlacedLayer, ...] = ()  # what reads the result

    @property
    def only_shifts(self) -> bool:
        """Whether the values are not scaled."""
        return bool(np.all(self.factor == 1))


def find_leading_operators(path: Path) -> tuple[LeadingOperators, ...]:
    """The leading operators of each input of the `.keras` or `.h5` file at `path`; none for a subclassed model."""
    layers = tuple(describe_layers(read_config(path)))
    input_layers = [layer for layer in layers if layer.class_name == "InputLayer"] or list(layers[:1])
    return tuple(_follow_input(path, PlacedLayer(layer, layers)) for layer in input_layers)


def _follow_input(path: Path, start: PlacedLayer) -> LeadingOperators:
    """Follow an input through its only readers, as long as they do no more than shift and scale it."""
    factor, summand, layer_texts = np.ones(1), np.zeros(1), []
    current = [start]
    while len(current) == 1:
        layer = current[0].layer
        affine = _read_affine(path, current[0])
        if affine is not None:
            factor, summand = factor * affine[0], summand * affine[0] + affine[1]
            layer_texts.append(f"{_title(layer)} '{layer.name}'")
        elif not current[0].inner_start and not _keeps_values(layer):
            break
        current = _join_slices(current[0].inner_start or current[0].readers)
    return LeadingOperators(start.layer.name, factor, summand, tuple(layer_texts), tuple(current))


def _join_slices(readers: list[PlacedLayer]) -> list[PlacedLayer]:
    """What puts slices of one tensor, such as its channels, together again; else the readers as they are."""
    joins = {reader.layer.name: reader for piece in readers for reader in piece.readers}
    are_slices = len(readers) > 1 and all(piece.layer.class_name in _SLICE_CLASSES for piece in readers)
    join = next(iter(joins.values())) if are_slices and len(joins) == 1 else None
    return [join] if join is not None and join.layer.class_name in _JOIN_CLASSES else readers


def _title(layer: LayerDescription) -> str:
    return f"tf.{layer.config.get('function')}" if layer.class_name == "TFOpLambda" else layer.class_name


def _keeps_values(layer: LayerDescription) -> bool:
    if layer.class_name == "TFOpLambda":
        return str(layer.config.get("function")) in _SAME_VALUES_FUNCTIONS
    if layer.class_name == "Activation":
        return layer.config.get("activation") == "linear"
    return layer.class_name in _SAME_VALUES_CLASSES


def _read_affine(path: Path, placed: PlacedLayer) -> Affine | None:
    """Factor and summand of a layer or operator that shifts and scales; None for another."""
    layer = placed.layer
    if layer.class_name == "Rescaling":
        return _as_numbers(layer.config.get("scale", 1.0)), _as_numbers(layer.config.get("offset", 0.0))
    if layer.class_name == "Normalization":
        return _read_normalization(path, placed)
    if layer.class_name == "TFOpLambda":
        operator = _OPERATOR_BY_FUNCTION.get(str(layer.config.get("function")))
        return None if operator is None else _to_affine(operator, *_legacy_operands(layer))
    operator = _OPERATOR_BY_CLASS.get(layer.class_name)
    return None if operator is None else _to_affine(operator, *_operands(layer))


def _read_normalization(path: Path, placed: PlacedLayer) -> Affine | None:
    config = placed.layer.config
    mean, variance = config.get("mean"), config.get("variance")
    if mean is None or variance is None:
        weights = placed.read_weights(path)
        if len(weights) < 2:
            return None
        mean, variance = weights[0], weights[1]
    deviation = np.maximum(np.sqrt(_as_numbers(variance)), 1e-7)
    return (deviation, _as_numbers(mean)) if config.get("invert") else (1 / deviation, -_as_numbers(mean) / deviation)


def _operands(layer: LayerDescription) -> tuple[Any, bool]:
    """The constant of a Keras 3 operator with one tensor, and whether it is the first operand; None if it has none."""
    nodes = layer.serialized_layer.get("inbound_nodes") or []
    arguments = nodes[0].get("args", []) if len(nodes) == 1 and isinstance(nodes[0], dict) else []
    constants = [_constant_value(argument) for argument in arguments]
    if len(arguments) != 2 or (constants[0] is None) == (constants[1] is None):
        return None, False
    return (constants[1], False) if constants[0] is None else (constants[0], True)


def _legacy_operands(layer: LayerDescription) -> tuple[Any, bool]:
    """The same for an operator of tf_keras, whose constants are in the last part of its only node."""
    nodes = layer.serialized_layer.get("inbound_nodes") or []
    node = nodes[0] if len(nodes) == 1 and isinstance(nodes[0], list) and len(nodes[0]) == 4 else [None] * 4
    if node[0] == "_CONSTANT_VALUE":
        return node[2], True
    return (node[3].get("y", node[3].get("bias")), False) if isinstance(node[3], dict) else (None, False)


def _constant_value(argument: Any) -> Any:
    """A number or an array as Keras 3 serializes it; None for a tensor of the graph."""
    if isinstance(argument, dict):
        is_array = argument.get("class_name") in ("__numpy__", "__tensor__")
        return argument["config"].get("value") if is_array and isinstance(argument.get("config"), dict) else None
    return argument if isinstance(argument, (int, float)) else None


def _to_affine(operator: str, constant: Any, is_first: bool) -> Affine | None:
    numbers = None if constant is None else _as_numbers(constant)
    if numbers is None or not numbers.size or (operator == "divide" and (is_first or not numbers.all())):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if operator == "add":
        return one, numbers
    if operator == "subtract":
        return (-one, numbers) if is_first else (one, -numbers)
    return (numbers, zero) if operator == "multiply" else (1 / numbers, zero)


def _as_numbers(values: Any) -> Array:
    """`values` as one number for each channel, or one for all; empty for what is not numbers."""
    try:
        return np.atleast_1d(np.squeeze(np.asarray(values, np.float64))).ravel()
    except (TypeError, ValueError):
        return np.empty(0)
