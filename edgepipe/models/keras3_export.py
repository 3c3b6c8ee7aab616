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
from edgepipe.models.bridge import TOLERANCE, Difference, TensorDifference, random_values, relative_difference
from edgepipe.models.bridge_layers import Keras3Layer, LayerScale, Operator, Weight
from edgepipe.models.input_shapes import check_shapes, input_name
from edgepipe.models.keras3_activations import PACKAGE
from edgepipe.models.keras_operators import apply
from edgepipe.models.perturb import perturbed, settle
from edgepipe.models.translate import constructor, matters, told

_RENAMED = {"alpha": "negative_slope"}  # of LeakyReLU
# what tf_keras writes and Keras 3 has no word for: how it computes, what it was built with
_IGNORED = {"implementation", "batch_input_shape", "query_shape", "key_shape", "value_shape", "rng_type"}
_IGNORED_OF = {"SeparableConv1D", "SeparableConv2D"}, {"kernel_initializer", "kernel_regularizer", "kernel_constraint"}
_OLD = "hard_sigmoid"  # clip(0.2 x + 0.5, 0, 1) in tf_keras, relu6(x + 3) / 6 in Keras 3
_INSTEAD = "export the model before it was bridged, or replace the layer"


@dataclass(frozen=True)
class Back:
    """The Keras 3 model and the proof that it computes what the tf_keras model does."""

    model: Any
    difference: Difference

    @property
    def text(self) -> str:
        """One line for a report."""
        return self.difference.text().replace("bridged to tf_keras", "written back to Keras 3")


class NotBack(Exception):  # noqa: N818 - not an error a user sees: they are gathered into one
    """Why a layer cannot be a Keras 3 layer."""


def to_keras(model: Any) -> Any:
    """The Keras 3 functional model that does what the tf_keras `model` does; see `written_back`."""
    return written_back(model).model


def written_back(model: Any) -> Back:
    """The Keras 3 model of a tf_keras `model`, and how far the two are apart on perturbed weights.

    Raises:
        InputError: layers that Keras 3 cannot do, all at once; or a layer that computes something else.
    """
    check_shapes(model)
    work = _Back(model)
    with perturbed(model):
        work.copy_weights()
        difference = work.compare()
    work.copy_weights()
    parted = difference.first_above(TOLERANCE)
    if parted is not None:
        raise InputError(
            f"'{model.name}' written back to Keras 3 is wrong from layer '{parted.layer}' on: its output differs by "
            f"{parted.relative:.1e} of its largest value (allowed {TOLERANCE:.0e}); please report it"
        )
    return Back(work.result, difference)


@dataclass
class _Back:
    """A model on its way back: the new layers by the old ones, and every tensor of both."""

    model: Any
    layers: dict[int, Any] = field(default_factory=dict)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)  # (tf_keras variable, Keras 3 variable)
    tensors: list[tuple[str, Any, Any]] = field(default_factory=list)  # (layer, tf_keras tensor, Keras 3 tensor)
    result: Any = None

    def __post_init__(self) -> None:
        _check_layers(self.model)
        inputs = [_input(tensor) for tensor in self.model.inputs]
        outputs = self._walk(self.model, inputs, "", seen=True)
        self.result = keras.Model(_one(inputs), _one(outputs), name=self.model.name)

    def _walk(self, model: Any, inputs: list[Any], prefix: str, seen: bool) -> list[Any]:
        values = {id(tensor): value for tensor, value in zip(model.inputs, inputs, strict=True)}
        for node in _nodes(model):
            args, kwargs = tf.nest.map_structure(
                lambda part: values.get(id(part), part), (node.call_args, node.call_kwargs)
            )
            results = self._call(node.layer, list(args), _given(kwargs), prefix)
            old = tf.nest.flatten(node.outputs)
            values.update((id(tensor), value) for tensor, value in zip(old, results, strict=True))
            if seen:  # the tensors inside a nested model are none of the outer one's
                names = [prefix + node.layer.name] * len(old)
                self.tensors.extend(zip(names, old, results, strict=True))
        return [values[id(tensor)] for tensor in model.outputs]

    def _call(self, layer: Any, args: list[Any], kwargs: dict[str, Any], prefix: str) -> list[Any]:
        tensors = tf.nest.flatten(args)
        if isinstance(layer, tf_keras.Model):
            return self._walk(layer, tensors, f"{prefix}{layer.name}_", seen=False)
        if isinstance(layer, Operator):
            return _flat(apply(layer.operator, json.loads(layer.arguments), tensors))
        new = self._layer(layer, prefix)
        if isinstance(layer, Weight):
            # Keras 3 has no layer that only gives a weight: the one row of an Embedding, whatever is looked up
            nothing = keras.ops.zeros_like(keras.ops.max(tensors[0], keepdims=True))
            return [keras.ops.reshape(new(keras.ops.cast(nothing, "int32")), layer.shape)]
        result = _flat(new(*args, **kwargs))
        return [keras.ops.clip(part * 0.2 + 0.5, 0.0, 1.0) for part in result] if _is_old(layer) else result

    def _layer(self, layer: Any, prefix: str) -> Any:
        if id(layer) not in self.layers:
            self.layers[id(layer)] = _made(layer, f"{prefix}{layer.name}")
        return self.layers[id(layer)]

    def copy_weights(self) -> None:
        """Give the new layers the weights that the old ones have now."""
        for layer, new in _with_layers(self.model, self.layers):
            old = layer.carried if isinstance(layer, Keras3Layer) else layer.weights
            if [int(np.prod(w.shape)) for w in old] != [int(np.prod(w.shape)) for w in new.weights]:
                shapes = [[tuple(w.shape) for w in weights] for weights in (old, new.weights)]
                raise InputError(f"layer '{layer.name}' has weights of shapes {shapes[0]}, in Keras 3 {shapes[1]}")
            for source, target in zip(old, new.weights, strict=True):
                target.assign(np.asarray(source).reshape(target.shape))
        settle(self.result)

    def compare(self) -> Difference:
        """Run both on the same random inputs; compare every tensor of the model, and the outputs."""
        sizes = [layer.input_dim for layer in self.model.submodules if isinstance(layer, tf_keras.layers.Embedding)]
        specs = [(tuple(t.shape), t.dtype.name, input_name(t)) for t in self.model.inputs]
        samples = random_values(specs, min(sizes, default=2), seed=0)
        names, old, new = zip(*self.tensors, strict=True)
        ours = _flat(tf_keras.Model(self.model.inputs, list(old))(_one(samples), training=False))
        theirs = _flat(keras.Model(self.result.inputs, list(new))(_one(samples), training=False))
        whole = (_flat(self.model(_one(samples), training=False)), _flat(self.result(_one(samples), training=False)))
        return Difference(_differences(names, ours, theirs), _differences(tuple(self.model.output_names), *whole))


def _differences(names: tuple[str, ...], ours: list[Any], theirs: list[Any]) -> tuple[TensorDifference, ...]:
    return tuple(
        TensorDifference(name, relative_difference(a, b)) for name, a, b in zip(names, ours, theirs, strict=True)
    )


def _check_layers(model: Any) -> None:
    problems = []
    for layer in _all_layers(model):
        try:
            _made(layer, layer.name)
        except NotBack as reason:
            problems.append(f"  '{layer.name}', of class {type(layer).__name__}: {reason}; {_INSTEAD}")
    if problems:
        raise InputError("\n".join([f"layers of '{model.name}' that Keras 3 cannot do:", *problems]))


def _all_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if isinstance(layer, tf_keras.Model):
            yield from _all_layers(layer)
        elif not isinstance(layer, (Operator, tf_keras.layers.InputLayer)):
            yield layer


def _with_layers(model: Any, made: dict[int, Any]) -> Iterator[tuple[Any, Any]]:
    yield from ((layer, made[id(layer)]) for layer in _all_layers(model) if id(layer) in made)


def _nodes(model: Any) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def _input(tensor: Any) -> Any:
    return keras.Input(
        tuple(tensor.shape[1:]), batch_size=tensor.shape[0], dtype=tensor.dtype.name, name=input_name(tensor)
    )


def _made(layer: Any, name: str) -> Any:
    """The Keras 3 layer, called `name`, that does what the tf_keras `layer` does; its weights are not set yet."""
    try:
        return _same(layer, name)
    except NotBack:
        raise
    except Exception as error:
        raise NotBack(told(error)) from error


def _same(layer: Any, name: str) -> Any:
    if isinstance(layer, Keras3Layer):
        config = layer.get_config()["layer"]
        config["config"]["trainable"] = layer.trainable
        return keras.saving.deserialize_keras_object(config, custom_objects=dict(custom_objects.current()))
    if isinstance(layer, LayerScale):
        return keras.src.applications.convnext.LayerScale(
            layer.init_values, layer.projection_dim, name=name, trainable=layer.trainable
        )
    if isinstance(layer, Weight):
        return keras.layers.Embedding(1, int(np.prod(layer.shape)), name=name, trainable=layer.trainable)
    cls = _class(layer)
    config = _config(type(layer), cls, layer.get_config())
    if _is_old(layer):
        config["activation"] = "linear"
    return cls.from_config({**config, "name": name})


def _class(layer: Any) -> Any:
    for known in custom_objects.current().values():
        if getattr(known, "tf_keras_twin", None) is type(layer):
            return known
    name = type(layer).__name__
    if not hasattr(keras.layers, name) or type(layer).__module__.split(".")[0] != "tf_keras":
        raise NotBack("Keras 3 has no layer of this class")
    return getattr(keras.layers, name)


def _is_old(layer: Any) -> bool:
    own = isinstance(getattr(layer, "activation", None), type(tf_keras.activations.hard_sigmoid))
    return own and layer.activation is tf_keras.activations.hard_sigmoid and not isinstance(layer, tf_keras.layers.RNN)


def _config(old: Any, new: Any, config: dict[str, Any]) -> dict[str, Any]:
    if old.__module__.split(".")[0] != "tf_keras":  # a twin of the user's own has the original's options
        return config
    names = _RENAMED if old.__name__ == "LeakyReLU" else {}
    known = _accepted(new)
    ignored = _IGNORED | (_IGNORED_OF[1] if old.__name__ in _IGNORED_OF[0] else set()) | {"trainable", "dtype"} - known
    renamed = {names.get(key, key): value for key, value in config.items() if key not in ignored}
    if old is tf_keras.layers.BatchNormalization and isinstance(config["axis"], (list, tuple)):
        (renamed["axis"],) = config["axis"]
    lost = {key: v for key, v in renamed.items() if key not in known and matters(v, constructor(old).get(key))}
    if lost:
        raise NotBack(f"Keras 3 has no option {', '.join(f'{key}={value!r}' for key, value in lost.items())}")
    return {key: _value(key, value) for key, value in renamed.items() if key in known}


def _accepted(cls: Any) -> set[str]:
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {*constructor(cls), "name", "trainable", "dtype"}
    return set(parameters) - {"self"}


def _value(key: str, value: Any) -> Any:
    if isinstance(value, str) and key.endswith("activation"):
        if value == _OLD and key != "activation":
            raise NotBack(f"its {key} is tf_keras's hard_sigmoid, which Keras 3 no longer has")
        return value.removeprefix(f"{PACKAGE}>")
    if isinstance(value, (list, tuple)):
        return [_value(key, part) for part in value]
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    if value["class_name"] == "function":  # an activation of ours, by the name it is registered under
        return str(value["config"]).removeprefix(f"{PACKAGE}>")
    inner = getattr(tf_keras.layers, value["class_name"], None)
    if inner is None or value.get("module") not in (None, "keras.layers"):
        return value
    return {**value, "config": _config(inner, getattr(keras.layers, value["class_name"]), value["config"])}


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _flat(value: Any) -> list[Any]:
    return list(keras.tree.flatten(value))
