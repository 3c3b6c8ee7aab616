"""tf_keras -> Keras 3: exports a compressed `float` model as a Keras 3 model, verified the way the bridge is.

Layers are exported to the Keras 3 class of the same name, the layers of `bridge_layers` to what they represent; a
wrapped Keras 3 layer is unwrapped. The model does not depend on edgepipe: Keras 3 alone saves, loads and trains it.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.errors import InputError, ListedError
from edgepipe.models import custom_objects
from edgepipe.models.bridge import TOLERANCE, ModelDifference, TensorDifference, random_batch, relative_difference
from edgepipe.models.bridge_layers import (
    Keras3Layer,
    LayerScale,
    MaskAttachment,
    MaskReader,
    OperatorLayer,
    WeightLayer,
)
from edgepipe.models.id_inputs import find_tf_keras_id_limits
from edgepipe.models.input_shapes import check_input_shapes, input_name
from edgepipe.models.keras3_activations import REGISTRATION_PACKAGE
from edgepipe.models.keras_operators import apply_operator
from edgepipe.models.keras_types import (
    KerasLayer,
    KerasModel,
    KerasNode,
    KerasTensor,
    Tensor,
    TensorTree,
    TfKerasLayer,
    TfKerasModel,
)
from edgepipe.models.perturb import perturbed_weights, refresh_normalization
from edgepipe.models.port_names import number_repeats, output_names
from edgepipe.models.translate import constructor_defaults, is_significant_option, summarize_error

_RENAMED_OPTIONS = {"alpha": "negative_slope"}  # of LeakyReLU
# options that tf_keras writes and Keras 3 lacks: implementation choices, and shapes the layer was built with
_IGNORED_OPTIONS = {"implementation", "batch_input_shape", "query_shape", "key_shape", "value_shape", "rng_type"}
_IGNORED_FOR_SEPARABLE = (
    {"SeparableConv1D", "SeparableConv2D"},
    {"kernel_initializer", "kernel_regularizer", "kernel_constraint"},
)
_LEGACY_ACTIVATION_NAME = "hard_sigmoid"  # clip(0.2 x + 0.5, 0, 1) in tf_keras, relu6(x + 3) / 6 in Keras 3
_WORKAROUND_HINT = "export the model before it was bridged, or replace the layer"


@dataclass(frozen=True)
class Keras3Export:
    """The Keras 3 model, and the proof that it computes the same as the tf_keras model."""

    model: KerasModel
    difference: ModelDifference

    @property
    def text(self) -> str:
        """One line for a report."""
        return self.difference.text().replace("bridged to tf_keras", "written back to Keras 3")


class UnexportableLayerError(Exception):
    """A layer cannot be exported to Keras 3; the text says why."""


def to_keras(model: TfKerasModel) -> KerasModel:
    """The Keras 3 functional model that computes the same as the tf_keras `model`; see `export_to_keras3`."""
    return export_to_keras3(model).model


def export_to_keras3(model: TfKerasModel) -> Keras3Export:
    """Export a tf_keras `model` to Keras 3, and compare the two under perturbed weights.

    Raises:
        InputError: layers cannot be exported (all are listed), or an exported layer computes something else.
    """
    check_input_shapes(model)
    exporter = _Exporter(model)
    with perturbed_weights(model):
        exporter.copy_weights()
        difference = exporter.compare()
    exporter.copy_weights()
    wrong_tensor = difference.first_difference_above(TOLERANCE)
    if wrong_tensor is not None:
        raise InputError(
            f"'{model.name}' written back to Keras 3 is wrong from layer '{wrong_tensor.layer_name}' on: "
            f"its output differs by {wrong_tensor.relative_error:.1e} of its largest value "
            f"(allowed {TOLERANCE:.0e}); please report it"
        )
    return Keras3Export(exporter.exported_model, difference)


@dataclass
class _Exporter:
    """One export in progress: the new layers by the id of the old ones, and the tensors of both models."""

    model: TfKerasModel
    new_layer_by_id: dict[int, KerasLayer] = field(default_factory=dict)
    # (layer, tf_keras tensor, Keras 3 tensor)
    named_tensor_pairs: list[tuple[str, KerasTensor, KerasTensor]] = field(default_factory=list)
    exported_model: KerasModel = None

    def __post_init__(self) -> None:
        _check_layers(self.model)
        inputs = [_build_input(tensor) for tensor in self.model.inputs]
        outputs = self._walk(self.model, inputs, "", is_outer=True)
        self.exported_model = keras.Model(
            _unwrap_single(inputs), _name_outputs(outputs, output_names(self.model)), name=self.model.name
        )

    def _walk(
        self, model: TfKerasModel, inputs: list[KerasTensor], name_prefix: str, is_outer: bool
    ) -> list[KerasTensor]:
        tensor_by_id = {id(tensor): new_tensor for tensor, new_tensor in zip(model.inputs, inputs, strict=True)}
        for node in _iter_nodes(model):
            args, kwargs = tf.nest.map_structure(
                lambda argument: tensor_by_id.get(id(argument), argument), (node.call_args, node.call_kwargs)
            )
            outputs = self._call_layer(node.layer, list(args), _drop_unset_kwargs(kwargs), name_prefix)
            old_outputs = tf.nest.flatten(node.outputs)
            tensor_by_id.update(
                (id(tensor), new_tensor) for tensor, new_tensor in zip(old_outputs, outputs, strict=True)
            )
            if is_outer:  # tensors inside a nested model do not belong to the outer model
                layer_names = [name_prefix + node.layer.name] * len(old_outputs)
                self.named_tensor_pairs.extend(zip(layer_names, old_outputs, outputs, strict=True))
        return [tensor_by_id[id(tensor)] for tensor in model.outputs]

    def _call_layer(
        self, layer: TfKerasLayer, args: list[Any], kwargs: dict[str, Any], name_prefix: str
    ) -> list[KerasTensor]:
        tensors = tf.nest.flatten(args)
        if isinstance(layer, tf_keras.Model):
            return self._walk(layer, tensors, f"{name_prefix}{layer.name}_", is_outer=False)
        if isinstance(layer, OperatorLayer):
            return _flatten(apply_operator(layer.operator, json.loads(layer.arguments), tensors))
        new_layer = self._get_or_convert_layer(layer, name_prefix)
        if isinstance(layer, WeightLayer):
            # Keras 3 has no layer that only returns a weight: look up the single row of an Embedding
            row_index = keras.ops.zeros_like(keras.ops.max(tensors[0], keepdims=True))
            return [keras.ops.reshape(new_layer(keras.ops.cast(row_index, "int32")), layer.shape)]
        outputs = _flatten(new_layer(*args, **kwargs))
        return (
            [keras.ops.clip(output * 0.2 + 0.5, 0.0, 1.0) for output in outputs]
            if _has_legacy_sigmoid(layer)
            else outputs
        )

    def _get_or_convert_layer(self, layer: TfKerasLayer, name_prefix: str) -> KerasLayer:
        if id(layer) not in self.new_layer_by_id:
            self.new_layer_by_id[id(layer)] = _convert_layer(layer, f"{name_prefix}{layer.name}")
        return self.new_layer_by_id[id(layer)]

    def copy_weights(self) -> None:
        """Copy the current weights of the old layers to the new ones."""
        for layer, new_layer in _layer_pairs(self.model, self.new_layer_by_id):
            old_weights = layer.tf_weights if isinstance(layer, Keras3Layer) else layer.weights
            if [int(np.prod(w.shape)) for w in old_weights] != [int(np.prod(w.shape)) for w in new_layer.weights]:
                weight_shapes = [[tuple(w.shape) for w in weights] for weights in (old_weights, new_layer.weights)]
                raise InputError(
                    f"layer '{layer.name}' has weights of shapes {weight_shapes[0]}, in Keras 3 {weight_shapes[1]}"
                )
            for old_weight, new_weight in zip(old_weights, new_layer.weights, strict=True):
                new_weight.assign(np.asarray(old_weight).reshape(new_weight.shape))
        refresh_normalization(self.exported_model)

    def compare(self) -> ModelDifference:
        """Run both models on the same random inputs; compare every tensor, and the outputs."""
        input_specs = [(tuple(t.shape), t.dtype.name, input_name(t)) for t in self.model.inputs]
        samples = random_batch(input_specs, find_tf_keras_id_limits(self.model), seed=0)
        layer_names, old_tensors, new_tensors = zip(*self.named_tensor_pairs, strict=True)
        old_arrays = _flatten(
            tf_keras.Model(self.model.inputs, list(old_tensors))(_unwrap_single(samples), training=False)
        )
        new_arrays = _flatten(
            keras.Model(self.exported_model.inputs, list(new_tensors))(_unwrap_single(samples), training=False)
        )
        output_arrays = (
            _flatten(self.model(_unwrap_single(samples), training=False)),
            _flatten(self.exported_model(_unwrap_single(samples), training=False)),
        )
        return ModelDifference(
            _tensor_differences(layer_names, old_arrays, new_arrays),
            _tensor_differences(tuple(output_names(self.model)), *output_arrays),
        )


def _name_outputs(outputs: list[KerasTensor], names: list[str]) -> TensorTree:
    """The outputs in a structure that gives them these names: a dictionary, unless they are the names of layers.

    A single output stays a tensor, whatever its name. Keras sorts a dictionary by its keys, so names in another order
    are those of layers.
    """
    layer_names = number_repeats([input_name(tensor) for tensor in outputs])
    if len(outputs) == 1 or names == layer_names or names != sorted(names):
        return _unwrap_single(outputs)
    return dict(zip(names, outputs, strict=True))


def _tensor_differences(
    tensor_names: tuple[str, ...], old_arrays: list[Tensor], new_arrays: list[Tensor]
) -> tuple[TensorDifference, ...]:
    return tuple(
        TensorDifference(name, relative_difference(a, b))
        for name, a, b in zip(tensor_names, old_arrays, new_arrays, strict=True)
    )


def _check_layers(model: TfKerasModel) -> None:
    problem_lines = []
    for layer in _all_layers(model):
        try:
            _convert_layer(layer, layer.name)
        except UnexportableLayerError as unexportable_error:
            problem_lines.append(
                f"'{layer.name}', of class {type(layer).__name__}: {unexportable_error}; {_WORKAROUND_HINT}"
            )
    if problem_lines:
        raise ListedError(f"layers of '{model.name}' that Keras 3 cannot do:", problem_lines)


def _all_layers(model: TfKerasModel) -> Iterator[TfKerasLayer]:
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from _all_layers(layer)
        elif not isinstance(layer, (OperatorLayer, tf_keras.layers.InputLayer)):
            yield layer


def _layer_pairs(
    model: TfKerasModel, new_layer_by_id: dict[int, KerasLayer]
) -> Iterator[tuple[TfKerasLayer, KerasLayer]]:
    yield from ((layer, new_layer_by_id[id(layer)]) for layer in _all_layers(model) if id(layer) in new_layer_by_id)


def _iter_nodes(model: TfKerasModel) -> Iterator[KerasNode]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _drop_unset_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: argument for key, argument in kwargs.items() if argument is not None and key != "training"}


def _build_input(tensor: KerasTensor) -> KerasTensor:
    return keras.Input(
        tuple(tensor.shape[1:]), batch_size=tensor.shape[0], dtype=tensor.dtype.name, name=input_name(tensor)
    )


def _convert_layer(layer: TfKerasLayer, name: str) -> KerasLayer:
    """The Keras 3 layer, called `name`, that computes the same as the tf_keras `layer`; its weights are not set yet."""
    try:
        return _build_keras3_layer(layer, name)
    except UnexportableLayerError:
        raise
    except Exception as error:
        raise UnexportableLayerError(summarize_error(error)) from error


def _build_keras3_layer(layer: TfKerasLayer, name: str) -> KerasLayer:
    if isinstance(layer, Keras3Layer):
        config = layer.get_config()["layer"]
        config["config"]["trainable"] = layer.trainable
        return keras.saving.deserialize_keras_object(config, custom_objects=dict(custom_objects.active_objects()))
    if isinstance(layer, LayerScale):
        return keras.src.applications.convnext.LayerScale(
            layer.init_values, layer.projection_dim, name=name, trainable=layer.trainable
        )
    if isinstance(layer, (MaskReader, MaskAttachment)):
        raise UnexportableLayerError(
            "it stands for the mask that a custom layer handed on, and Keras 3 has no layer that gives a tensor a mask"
        )
    if isinstance(layer, WeightLayer):
        return keras.layers.Embedding(1, int(np.prod(layer.shape)), name=name, trainable=layer.trainable)
    keras3_class = _keras3_class(layer)
    config = _convert_config(type(layer), keras3_class, layer.get_config())
    if _has_legacy_sigmoid(layer):
        config["activation"] = "linear"
    return keras3_class.from_config({**config, "name": name})


def _keras3_class(layer: TfKerasLayer) -> Any:
    for cls in custom_objects.active_objects().values():
        if getattr(cls, "tf_keras_twin", None) is type(layer):
            return cls
    name = type(layer).__name__
    if not hasattr(keras.layers, name) or type(layer).__module__.split(".")[0] != "tf_keras":
        raise UnexportableLayerError("Keras 3 has no layer of this class")
    return getattr(keras.layers, name)


def _has_legacy_sigmoid(layer: TfKerasLayer) -> bool:
    is_function = isinstance(getattr(layer, "activation", None), type(tf_keras.activations.hard_sigmoid))
    return (
        is_function
        and layer.activation is tf_keras.activations.hard_sigmoid
        and not isinstance(layer, tf_keras.layers.RNN)
    )


def _convert_config(old_cls: Any, new_cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    if old_cls.__module__.split(".")[0] != "tf_keras":  # the user's own twin class takes the options of the original
        return config
    new_name_by_option = _RENAMED_OPTIONS if old_cls.__name__ == "LeakyReLU" else {}
    accepted_names = _accepted_option_names(new_cls)
    ignored_names = (
        _IGNORED_OPTIONS
        | (_IGNORED_FOR_SEPARABLE[1] if old_cls.__name__ in _IGNORED_FOR_SEPARABLE[0] else set())
        | {"trainable", "dtype"} - accepted_names
    )
    renamed_options = {
        new_name_by_option.get(key, key): value for key, value in config.items() if key not in ignored_names
    }
    if old_cls is tf_keras.layers.BatchNormalization and isinstance(config["axis"], (list, tuple)):
        (renamed_options["axis"],) = config["axis"]
    lost_options = {
        key: option
        for key, option in renamed_options.items()
        if key not in accepted_names and is_significant_option(option, constructor_defaults(old_cls).get(key))
    }
    if lost_options:
        options_text = ", ".join(f"{key}={option!r}" for key, option in lost_options.items())
        raise UnexportableLayerError(f"Keras 3 has no option {options_text}")
    return {key: _convert_option(key, option) for key, option in renamed_options.items() if key in accepted_names}


def _accepted_option_names(cls: Any) -> set[str]:
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {*constructor_defaults(cls), "name", "trainable", "dtype"}
    return set(parameters) - {"self"}


def _convert_option(key: str, option: Any) -> Any:
    if isinstance(option, str) and key.endswith("activation"):
        if option == _LEGACY_ACTIVATION_NAME and key != "activation":
            raise UnexportableLayerError(f"its {key} is tf_keras's hard_sigmoid, which Keras 3 no longer has")
        return option.removeprefix(f"{REGISTRATION_PACKAGE}>")
    if isinstance(option, (list, tuple)):
        return [_convert_option(key, element) for element in option]
    if not isinstance(option, dict) or "class_name" not in option:
        return option
    if option["class_name"] == "function":  # one of our activations, by its registered name
        return str(option["config"]).removeprefix(f"{REGISTRATION_PACKAGE}>")
    nested_cls = getattr(tf_keras.layers, option["class_name"], None)
    if nested_cls is None or option.get("module") not in (None, "keras.layers"):
        return option
    return {
        **option,
        "config": _convert_config(nested_cls, getattr(keras.layers, option["class_name"]), option["config"]),
    }


def _unwrap_single(tensors: list[Tensor]) -> TensorTree:
    return tensors[0] if len(tensors) == 1 else tensors


def _flatten(structure: TensorTree) -> list[Tensor]:
    return list(keras.tree.flatten(structure))
