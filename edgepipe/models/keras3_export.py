"""tf_keras -> Keras 3: a compressed `float` model as a Keras 3 model again, checked the way the bridge is.

Layers of the same class go back as they came; our own few go back to what they stand for; a layer that had stayed a
Keras 3 layer is one again. The result needs nothing of edgepipe: it is saved, loaded and trained by Keras 3 alone.
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

from edgepipe.core.errors import InputError
from edgepipe.models import custom_objects
from edgepipe.models.bridge import TOLERANCE, ModelDifference, TensorDifference, random_batch, relative_difference
from edgepipe.models.bridge_layers import Keras3Layer, LayerScale, Operator, Weight
from edgepipe.models.input_shapes import check_shapes, input_name
from edgepipe.models.keras3_activations import PACKAGE
from edgepipe.models.keras_operators import apply_operator
from edgepipe.models.perturb import perturbed_weights, refresh_normalization
from edgepipe.models.translate import constructor_defaults, is_significant_option, summarize_error

_RENAMED_OPTIONS = {"alpha": "negative_slope"}  # of LeakyReLU
# what tf_keras writes and Keras 3 has no word for: how it computes, what it was built with
_IGNORED_OPTIONS = {"implementation", "batch_input_shape", "query_shape", "key_shape", "value_shape", "rng_type"}
_IGNORED_FOR_SEPARABLE = (
    {"SeparableConv1D", "SeparableConv2D"},
    {"kernel_initializer", "kernel_regularizer", "kernel_constraint"},
)
_LEGACY_ACTIVATION = "hard_sigmoid"  # clip(0.2 x + 0.5, 0, 1) in tf_keras, relu6(x + 3) / 6 in Keras 3
_WORKAROUND = "export the model before it was bridged, or replace the layer"


@dataclass(frozen=True)
class Keras3Export:
    """The Keras 3 model and the proof that it computes what the tf_keras model does."""

    model: Any
    difference: ModelDifference

    @property
    def text(self) -> str:
        """One line for a report."""
        return self.difference.text().replace("bridged to tf_keras", "written back to Keras 3")


class UnexportableLayerError(Exception):
    """Why a layer cannot be a Keras 3 layer."""


def to_keras(model: Any) -> Any:
    """The Keras 3 functional model that does what the tf_keras `model` does; see `written_back`."""
    return export_to_keras3(model).model


def export_to_keras3(model: Any) -> Keras3Export:
    """The Keras 3 model of a tf_keras `model`, and how far the two are apart on perturbed weights.

    Raises:
        InputError: layers that Keras 3 cannot do, all at once; or a layer that computes something else.
    """
    check_shapes(model)
    exporter = _Exporter(model)
    with perturbed_weights(model):
        exporter.copy_weights()
        difference = exporter.compare()
    exporter.copy_weights()
    wrong_tensor = difference.first_tensor_above(TOLERANCE)
    if wrong_tensor is not None:
        raise InputError(
            f"'{model.name}' written back to Keras 3 is wrong from layer '{wrong_tensor.layer}' on: its output differs by "
            f"{wrong_tensor.relative_error:.1e} of its largest value (allowed {TOLERANCE:.0e}); please report it"
        )
    return Keras3Export(exporter.exported_model, difference)


@dataclass
class _Exporter:
    """A model on its way back: the new layers by the old ones, and every tensor of both."""

    model: Any
    new_layers: dict[int, Any] = field(default_factory=dict)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)  # (tf_keras variable, Keras 3 variable)
    tensors: list[tuple[str, Any, Any]] = field(default_factory=list)  # (layer, tf_keras tensor, Keras 3 tensor)
    exported_model: Any = None

    def __post_init__(self) -> None:
        _check_layers(self.model)
        inputs = [_build_input(tensor) for tensor in self.model.inputs]
        outputs = self._walk(self.model, inputs, "", is_outer=True)
        self.exported_model = keras.Model(_unwrap_single(inputs), _unwrap_single(outputs), name=self.model.name)

    def _walk(self, model: Any, inputs: list[Any], prefix: str, is_outer: bool) -> list[Any]:
        tensor_by_id = {id(tensor): new_tensor for tensor, new_tensor in zip(model.inputs, inputs, strict=True)}
        for node in _nodes(model):
            args, kwargs = tf.nest.map_structure(
                lambda argument: tensor_by_id.get(id(argument), argument), (node.call_args, node.call_kwargs)
            )
            outputs = self._call_layer(node.layer, list(args), _drop_unset(kwargs), prefix)
            old_outputs = tf.nest.flatten(node.outputs)
            tensor_by_id.update(
                (id(tensor), new_tensor) for tensor, new_tensor in zip(old_outputs, outputs, strict=True)
            )
            if is_outer:  # the tensors inside a nested model are none of the outer one's
                names = [prefix + node.layer.name] * len(old_outputs)
                self.tensors.extend(zip(names, old_outputs, outputs, strict=True))
        return [tensor_by_id[id(tensor)] for tensor in model.outputs]

    def _call_layer(self, layer: Any, args: list[Any], kwargs: dict[str, Any], prefix: str) -> list[Any]:
        tensors = tf.nest.flatten(args)
        if isinstance(layer, tf_keras.Model):
            return self._walk(layer, tensors, f"{prefix}{layer.name}_", is_outer=False)
        if isinstance(layer, Operator):
            return _flatten(apply_operator(layer.operator, json.loads(layer.arguments), tensors))
        new_layer = self._new_layer(layer, prefix)
        if isinstance(layer, Weight):
            # Keras 3 has no layer that only gives a weight: the one row of an Embedding, whatever is looked up
            row_index = keras.ops.zeros_like(keras.ops.max(tensors[0], keepdims=True))
            return [keras.ops.reshape(new_layer(keras.ops.cast(row_index, "int32")), layer.shape)]
        outputs = _flatten(new_layer(*args, **kwargs))
        return (
            [keras.ops.clip(output * 0.2 + 0.5, 0.0, 1.0) for output in outputs]
            if _has_legacy_sigmoid(layer)
            else outputs
        )

    def _new_layer(self, layer: Any, prefix: str) -> Any:
        if id(layer) not in self.new_layers:
            self.new_layers[id(layer)] = _convert_layer(layer, f"{prefix}{layer.name}")
        return self.new_layers[id(layer)]

    def copy_weights(self) -> None:
        """Give the new layers the weights that the old ones have now."""
        for layer, new_layer in _layer_pairs(self.model, self.new_layers):
            old_weights = layer.tf_weights if isinstance(layer, Keras3Layer) else layer.weights
            if [int(np.prod(w.shape)) for w in old_weights] != [int(np.prod(w.shape)) for w in new_layer.weights]:
                shapes = [[tuple(w.shape) for w in weights] for weights in (old_weights, new_layer.weights)]
                raise InputError(f"layer '{layer.name}' has weights of shapes {shapes[0]}, in Keras 3 {shapes[1]}")
            for source, target in zip(old_weights, new_layer.weights, strict=True):
                target.assign(np.asarray(source).reshape(target.shape))
        refresh_normalization(self.exported_model)

    def compare(self) -> ModelDifference:
        """Run both on the same random inputs; compare every tensor of the model, and the outputs."""
        sizes = [layer.input_dim for layer in self.model.submodules if isinstance(layer, tf_keras.layers.Embedding)]
        specs = [(tuple(t.shape), t.dtype.name, input_name(t)) for t in self.model.inputs]
        samples = random_batch(specs, min(sizes, default=2), seed=0)
        names, old_tensors, new_tensors = zip(*self.tensors, strict=True)
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
            _tensor_differences(names, old_arrays, new_arrays),
            _tensor_differences(tuple(self.model.output_names), *output_arrays),
        )


def _tensor_differences(
    names: tuple[str, ...], old_arrays: list[Any], new_arrays: list[Any]
) -> tuple[TensorDifference, ...]:
    return tuple(
        TensorDifference(name, relative_difference(a, b))
        for name, a, b in zip(names, old_arrays, new_arrays, strict=True)
    )


def _check_layers(model: Any) -> None:
    problems = []
    for layer in _all_layers(model):
        try:
            _convert_layer(layer, layer.name)
        except UnexportableLayerError as reason:
            problems.append(f"  '{layer.name}', of class {type(layer).__name__}: {reason}; {_WORKAROUND}")
    if problems:
        raise InputError("\n".join([f"layers of '{model.name}' that Keras 3 cannot do:", *problems]))


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from _all_layers(layer)
        elif not isinstance(layer, (Operator, tf_keras.layers.InputLayer)):
            yield layer


def _layer_pairs(model: Any, new_layers: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    yield from ((layer, new_layers[id(layer)]) for layer in _all_layers(model) if id(layer) in new_layers)


def _nodes(model: Any) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _drop_unset(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def _build_input(tensor: Any) -> Any:
    return keras.Input(
        tuple(tensor.shape[1:]), batch_size=tensor.shape[0], dtype=tensor.dtype.name, name=input_name(tensor)
    )


def _convert_layer(layer: Any, name: str) -> Any:
    """The Keras 3 layer, called `name`, that does what the tf_keras `layer` does; its weights are not set yet."""
    try:
        return _build_keras3_layer(layer, name)
    except UnexportableLayerError:
        raise
    except Exception as error:
        raise UnexportableLayerError(summarize_error(error)) from error


def _build_keras3_layer(layer: Any, name: str) -> Any:
    if isinstance(layer, Keras3Layer):
        config = layer.get_config()["layer"]
        config["config"]["trainable"] = layer.trainable
        return keras.saving.deserialize_keras_object(config, custom_objects=dict(custom_objects.active_objects()))
    if isinstance(layer, LayerScale):
        return keras.src.applications.convnext.LayerScale(
            layer.init_values, layer.projection_dim, name=name, trainable=layer.trainable
        )
    if isinstance(layer, Weight):
        return keras.layers.Embedding(1, int(np.prod(layer.shape)), name=name, trainable=layer.trainable)
    cls = _keras3_class(layer)
    config = _convert_config(type(layer), cls, layer.get_config())
    if _has_legacy_sigmoid(layer):
        config["activation"] = "linear"
    return cls.from_config({**config, "name": name})


def _keras3_class(layer: Any) -> Any:
    for cls in custom_objects.active_objects().values():
        if getattr(cls, "tf_keras_twin", None) is type(layer):
            return cls
    name = type(layer).__name__
    if not hasattr(keras.layers, name) or type(layer).__module__.split(".")[0] != "tf_keras":
        raise UnexportableLayerError("Keras 3 has no layer of this class")
    return getattr(keras.layers, name)


def _has_legacy_sigmoid(layer: Any) -> bool:
    is_function = isinstance(getattr(layer, "activation", None), type(tf_keras.activations.hard_sigmoid))
    return (
        is_function
        and layer.activation is tf_keras.activations.hard_sigmoid
        and not isinstance(layer, tf_keras.layers.RNN)
    )


def _convert_config(old_cls: Any, new_cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    if old_cls.__module__.split(".")[0] != "tf_keras":  # a twin of the user's own has the original's options
        return config
    new_names = _RENAMED_OPTIONS if old_cls.__name__ == "LeakyReLU" else {}
    new_options = _accepted_options(new_cls)
    ignored_options = (
        _IGNORED_OPTIONS
        | (_IGNORED_FOR_SEPARABLE[1] if old_cls.__name__ in _IGNORED_FOR_SEPARABLE[0] else set())
        | {"trainable", "dtype"} - new_options
    )
    renamed_options = {new_names.get(key, key): value for key, value in config.items() if key not in ignored_options}
    if old_cls is tf_keras.layers.BatchNormalization and isinstance(config["axis"], (list, tuple)):
        (renamed_options["axis"],) = config["axis"]
    lost_options = {
        key: v
        for key, v in renamed_options.items()
        if key not in new_options and is_significant_option(v, constructor_defaults(old_cls).get(key))
    }
    if lost_options:
        raise UnexportableLayerError(
            f"Keras 3 has no option {', '.join(f'{key}={value!r}' for key, value in lost_options.items())}"
        )
    return {key: _convert_option(key, value) for key, value in renamed_options.items() if key in new_options}


def _accepted_options(cls: Any) -> set[str]:
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {*constructor_defaults(cls), "name", "trainable", "dtype"}
    return set(parameters) - {"self"}


def _convert_option(key: str, value: Any) -> Any:
    if isinstance(value, str) and key.endswith("activation"):
        if value == _LEGACY_ACTIVATION and key != "activation":
            raise UnexportableLayerError(f"its {key} is tf_keras's hard_sigmoid, which Keras 3 no longer has")
        return value.removeprefix(f"{PACKAGE}>")
    if isinstance(value, (list, tuple)):
        return [_convert_option(key, element) for element in value]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    if value["class_name"] == "function":  # an activation of ours, by the name it is registered under
        return str(value["config"]).removeprefix(f"{PACKAGE}>")
    nested_cls = getattr(tf_keras.layers, value["class_name"], None)
    if nested_cls is None or value.get("module") not in (None, "keras.layers"):
        return value
    return {**value, "config": _convert_config(nested_cls, getattr(keras.layers, value["class_name"]), value["config"])}


def _unwrap_single(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors


def _flatten(structure: Any) -> list[Any]:
    return list(keras.tree.flatten(structure))
