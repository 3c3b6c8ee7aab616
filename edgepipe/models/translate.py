"""Translates one Keras 3 layer or operator to tf_keras layers that compute the same, or says why that is impossible."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.models import custom_objects
from edgepipe.models.bridge_layers import Keras3Layer, LayerScale, OperatorLayer
from edgepipe.models.keras3_activations import ACTIVATION_BY_NAME, REGISTRATION_PACKAGE
from edgepipe.models.keras3_graph import is_builtin, twin_class
from edgepipe.models.keras_operators import OPERATOR_NAMES, Constant, encode_call
from edgepipe.models.keras_types import (
    AnyKerasVariable,
    KerasActivation,
    KerasLayer,
    KerasOperation,
    KerasTensor,
    TfKerasLayer,
)

UniqueNameFn = Callable[[str], str]

# activations with the same name and meaning in tf_keras
_SHARED_ACTIVATIONS = frozenset(
    {
        "elu", "exponential", "gelu", "linear", "mish", "relu", "selu", "sigmoid", "softmax", "softplus", "softsign",
        "tanh",
    }
)  # fmt: skip
_ACTIVATION_ALIASES = {"swish": "swish", "silu": "swish", "hard_swish": "hard_silu"}
_RELU6_NAME = "relu6"
_RENAMED_OPTIONS = {"LeakyReLU": {"negative_slope": "alpha"}}
_COMMON_OPTION_NAMES = {"name", "trainable", "dtype", "batch_input_shape"}
_ACTIVATION_BY_OPERATOR = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "HardSilu": "hard_silu",
    "HardSigmoid": "hard_sigmoid",
}
_MERGE_LAYER_BY_OPERATOR = {
    "Add": "Add",
    "Subtract": "Subtract",
    "Multiply": "Multiply",
    "Maximum": "Maximum",
    "Minimum": "Minimum",
}
_MISMATCHED_LAYER_CLASSES = ("RandomCrop", "SpectralNormalization")
_WORKAROUND_HINT = "write it with keras.ops or built-in layers; a plain `convert` needs no bridge"


class UnsupportedLayerError(Exception):
    """A layer cannot be bridged; the text says why and what to do about it."""


class NoTwinError(UnsupportedLayerError):
    """tf_keras has no equivalent of a Keras 3 layer, which may stay a Keras 3 layer inside the twin."""


@dataclass(frozen=True)
class LayerChain:
    """tf_keras layers to call in sequence in place of one Keras 3 layer."""

    layers: tuple[TfKerasLayer, ...]
    keras3_reason: str = ""  # why (part of) it stays a Keras 3 layer; empty if it does not

    @property
    def weights(self) -> list[AnyKerasVariable]:
        """The weights of all layers, in the order of the Keras 3 layer's weights."""
        return [
            weight
            for layer in self.layers
            for weight in (layer.tf_weights if isinstance(layer, Keras3Layer) else layer.weights)
        ]


def translate_layer(layer: KerasLayer, name: str, make_unique: UniqueNameFn) -> LayerChain:
    """The tf_keras twin of the Keras 3 `layer`, called `name`; its weights are not set yet.

    Where one layer becomes two, `make_unique` makes the name of each unique. A layer for which tf_keras has no class or
    option stays a Keras 3 layer, wrapped.

    Raises:
        UnsupportedLayerError: the layer cannot be bridged; the text says why and what to do.
    """
    _check_layer(layer)
    if (twin_cls := twin_class(layer)) is not None:
        return _build_user_twin(twin_cls, layer, name)
    if not is_builtin(layer):
        return _wrap_layer(layer, name, "its `call` cannot be traced into layers and operators")
    try:
        return _translate_builtin(layer, name, make_unique)
    except NoTwinError as reason:
        return _wrap_layer(layer, name, str(reason))


def _translate_builtin(layer: KerasLayer, name: str, make_unique: UniqueNameFn) -> LayerChain:
    class_name, config = type(layer).__name__, {**layer.get_config(), "name": name}
    if class_name == "LayerScale":
        return LayerChain((LayerScale.from_config({key: _convert_value(option) for key, option in config.items()}),))
    if class_name == "StochasticDepth":
        return LayerChain((_build_stochastic_depth(layer, name),))
    if getattr(keras.layers, class_name, None) is not type(layer) or not hasattr(tf_keras.layers, class_name):
        raise NoTwinError("tf_keras has no layer of this class")
    if class_name in _MISMATCHED_LAYER_CLASSES:
        raise NoTwinError("tf_keras's layer of that name does something else or does not run")
    if class_name == "SeparableConv2D":
        return _split_separable(layer, config, make_unique)
    if class_name == "Activation":
        return _translate_activation(layer.activation, config["activation"], name, make_unique)
    if class_name in ("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
               "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "Dense", "EinsumDense"):  # fmt: skip
        return _split_activation(class_name, layer, config, make_unique)
    return LayerChain((_build_twin(class_name, config),))


def _build_user_twin(twin_cls: Any, layer: KerasLayer, name: str) -> LayerChain:
    try:
        config = {key: _convert_value(option) for key, option in layer.get_config().items()}
        twin_layer = twin_cls.from_config({**config, "name": name})
    except Exception as error:
        raise UnsupportedLayerError(
            f"its tf_keras_twin cannot be built from its get_config(): {summarize_error(error)}"
        ) from error
    if not isinstance(twin_layer, tf_keras.layers.Layer):
        raise UnsupportedLayerError(f"its tf_keras_twin is a {type(twin_layer).__name__}, not a layer of tf_keras")
    return LayerChain((twin_layer,))


def _wrap_layer(layer: KerasLayer, name: str, reason: str) -> LayerChain:
    layer_classes = [
        type(component)
        for component in (*layer._flatten_layers(), getattr(layer, "activation", None))
        if component is not None
    ]
    objects_by_name: dict[str, Any] = {cls.__name__: cls for cls in layer_classes}
    function = getattr(layer, "activation", None)
    objects_by_name |= {function.__name__: function} if inspect.isfunction(function) else {}
    try:
        with custom_objects.scope(objects_by_name):
            twin = _rebuild_layer(layer, name, first_call=None)
            if _weight_shapes(twin.tf_weights) != _weight_shapes(layer.weights) and layer._inbound_nodes:
                # inner layers that its build() leaves out are built when it is called
                arguments = layer._inbound_nodes[0].arguments
                twin = _rebuild_layer(layer, name, encode_call(arguments.args, arguments.kwargs))
    except Exception as error:
        raise UnsupportedLayerError(
            f"{reason}, and it cannot be rebuilt from its get_config(): {summarize_error(error)}; {_WORKAROUND_HINT}"
        ) from error
    shapes, rebuilt_shapes = _weight_shapes(layer.weights), _weight_shapes(twin.tf_weights)
    if shapes != rebuilt_shapes:
        raise UnsupportedLayerError(
            f"{reason}, and rebuilt from its get_config() it has weights of shapes {rebuilt_shapes} "
            f"instead of {shapes}; create them in its build(input_shape)"
        )
    return LayerChain((twin,), reason)


def _rebuild_layer(layer: KerasLayer, name: str, first_call: dict[str, Any] | None) -> Keras3Layer:
    return Keras3Layer(keras.saving.serialize_keras_object(layer), first_call, name=name, trainable=layer.trainable)


def _weight_shapes(weights: Iterable[AnyKerasVariable]) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def summarize_error(error: Exception) -> str:
    """The class of `error` and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first_line = next((line for line in lines if not line.startswith("Exception encountered")), "")
    return f"{type(error).__name__}: {first_line[:200]}"


def _build_stochastic_depth(layer: KerasLayer, name: str) -> TfKerasLayer:
    # drops whole samples (Huang et al. 2016, arXiv 1603.09382): one random number per sample
    rank = len(layer._inbound_nodes[0].input_tensors[0].shape)
    return tf_keras.layers.Dropout(layer.drop_path_rate, noise_shape=(None, *(1,) * (rank - 1)), name=name)


def _check_layer(layer: KerasLayer) -> None:
    if isinstance(layer, keras.layers.Lambda):
        raise UnsupportedLayerError(f"a Lambda holds Python code that needs values, not symbols; {_WORKAROUND_HINT}")
    if getattr(getattr(layer, "activation", None), "__name__", "") == "<lambda>":
        raise UnsupportedLayerError(f"its activation is a lambda; {_WORKAROUND_HINT}")
    policy_name = layer.dtype_policy.name
    if policy_name not in ("float32", str(layer.dtype)) or "float16" in policy_name:
        raise UnsupportedLayerError(
            f"its dtype policy is '{policy_name}'; rebuild the model under 'float32', the weights fit"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise UnsupportedLayerError(
            "data_format channels_first, which neither the CPU nor TFLite runs; rebuild as channels_last"
        )
    if getattr(layer, "lora_rank", None):
        raise UnsupportedLayerError("it holds LoRA weights; merge them first (save and load the model)")


def _split_separable(layer: Any, config: dict[str, Any], make_unique: UniqueNameFn) -> LayerChain:
    # tfmot splits a SeparableConv2D itself, into layers named by a global counter, which collide with the model's own
    common_options = {key: config[key] for key in ("padding", "data_format", "dilation_rate", "trainable")}
    depthwise_layer = tf_keras.layers.DepthwiseConv2D(
        config["kernel_size"],
        strides=config["strides"],
        depth_multiplier=config["depth_multiplier"],
        use_bias=False,
        name=make_unique(f"{config['name']}_depthwise"),
        **{
            f"depthwise_{key}": _convert_value(config[f"depthwise_{key}"])
            for key in ("initializer", "regularizer", "constraint")
        },
        **common_options,
    )
    pointwise_config = {
        **{key: config[key] for key in ("filters", "use_bias", "activation", "data_format", "trainable")},
        **{f"kernel_{key}": config[f"pointwise_{key}"] for key in ("initializer", "regularizer", "constraint")},
        **{f"bias_{key}": config[f"bias_{key}"] for key in ("initializer", "regularizer", "constraint")},
        "kernel_size": (1, 1),
        "name": make_unique(f"{config['name']}_pointwise"),
    }
    pointwise_chain = _split_activation("Conv2D", layer, pointwise_config, make_unique)
    return LayerChain((depthwise_layer, *pointwise_chain.layers), pointwise_chain.keras3_reason)


def _split_activation(
    class_name: str, layer: KerasLayer, config: dict[str, Any], make_unique: UniqueNameFn
) -> LayerChain:
    activation = config["activation"]
    if activation is None or (
        isinstance(activation, str) and (activation in _SHARED_ACTIVATIONS or activation in ("silu", "swish"))
    ):
        return LayerChain((_build_twin(class_name, config),))
    # an activation that tf_keras lacks becomes a separate layer, which compression can at least see
    activation_chain = _translate_activation(
        layer.activation, activation, make_unique(f"{config['name']}_activation"), make_unique
    )
    return LayerChain(
        (_build_twin(class_name, {**config, "activation": "linear"}), *activation_chain.layers),
        activation_chain.keras3_reason,
    )


def _translate_activation(
    keras_activation: KerasActivation, activation_config: str | dict[str, Any], name: str, make_unique: UniqueNameFn
) -> LayerChain:
    """The twin of the activation `function`, which Keras serialized as `config`: a name, or an object."""
    if isinstance(keras_activation, keras.Layer):
        if not keras_activation.built:
            raise UnsupportedLayerError(
                "its activation is a layer that Keras has not built; call that layer separately, after this one"
            )
        return translate_layer(keras_activation, name, make_unique)
    if activation_config == _RELU6_NAME:
        return LayerChain((tf_keras.layers.ReLU(6.0, name=name),))
    if isinstance(activation_config, str):
        return LayerChain((tf_keras.layers.Activation(_activation_name(activation_config), name=name),))
    activation_label = getattr(keras_activation, "__name__", type(keras_activation).__name__)
    return _wrap_layer(
        keras.layers.Activation(keras_activation), name, f"its activation '{activation_label}' is no built-in one"
    )


def _activation_name(activation_config: Any) -> str:
    if not isinstance(activation_config, str):
        class_name = (
            activation_config.get("class_name", "?") if isinstance(activation_config, dict) else activation_config
        )
        activation_label = activation_config.get("config", class_name) if class_name == "function" else class_name
        raise NoTwinError(f"its activation '{activation_label}' is no built-in one")
    name = _ACTIVATION_ALIASES.get(activation_config, activation_config)
    if name in ACTIVATION_BY_NAME:
        return f"{REGISTRATION_PACKAGE}>{name}"
    if name in _SHARED_ACTIVATIONS or name in ("swish", _RELU6_NAME):
        return name
    raise NoTwinError(f"its activation '{activation_config}' has no twin in tf_keras")


def _build_twin(class_name: str, config: dict[str, Any]) -> TfKerasLayer:
    twin_cls = getattr(tf_keras.layers, class_name)
    if class_name == "MultiHeadAttention":  # its from_config requires shapes that only tf_keras stores
        return twin_cls(**_twin_config(class_name, config))
    return twin_cls.from_config(_twin_config(class_name, config))


def _twin_config(class_name: str, config: dict[str, Any]) -> dict[str, Any]:
    twin_cls, original_cls = getattr(tf_keras.layers, class_name), getattr(keras.layers, class_name)
    renamed_options = {_RENAMED_OPTIONS.get(class_name, {}).get(key, key): option for key, option in config.items()}
    accepted_names = constructor_defaults(twin_cls).keys() | _COMMON_OPTION_NAMES
    ignored_names = accepted_names | {"seed"}  # random number streams differ between the two anyway
    lost_options = {
        key: option
        for key, option in renamed_options.items()
        if key not in ignored_names and is_significant_option(option, constructor_defaults(original_cls).get(key))
    }
    if lost_options:
        options_text = ", ".join(f"{key}={option!r}" for key, option in lost_options.items())
        raise NoTwinError(f"tf_keras has no option {options_text}")
    return {key: _convert_option(key, option) for key, option in renamed_options.items() if key in accepted_names}


def constructor_defaults(cls: Any) -> dict[str, Any]:
    """The options that a layer class of either Keras accepts, with their defaults."""
    # constructors pass options on to their bases, so the class accepts those of its bases too
    defaults: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:
        if base.__module__.split(".")[0] in ("keras", "tf_keras") and "__init__" in vars(base):
            signature = inspect.signature(base.__init__)
            defaults = {**{key: parameter.default for key, parameter in signature.parameters.items()}, **defaults}
    if issubclass(cls, tf_keras.layers.RNN):
        defaults["zero_output_for_mask"] = False  # taken out of its **kwargs
    return {key: default for key, default in defaults.items() if key not in ("self", "args", "kwargs")}


def is_significant_option(option: Any, default: Any) -> bool:
    """Whether the value of an option that the other Keras lacks changes what the layer computes."""
    # a tf_keras layer without the option data_format is channels_last; channels_first was refused before
    return option not in (None, False, "channels_last") and option != default


def _convert_option(key: str, option: Any) -> Any:
    is_layer = isinstance(option, dict) and "layers" in str(option.get("module"))
    if key.endswith("activation") and option is not None and not is_layer:
        return _activation_name(option)
    return _convert_value(option)


def _convert_value(value: Any) -> Any:
    """A value of a Keras 3 config in tf_keras form: policies by name, objects without the keys new in Keras 3."""
    if isinstance(value, (list, tuple)):
        return type(value)(_convert_value(element) for element in value)
    if not isinstance(value, dict) or "class_name" not in value:
        return {key: _convert_value(element) for key, element in value.items()} if isinstance(value, dict) else value
    class_name, config = value["class_name"], value.get("config") or {}
    if class_name == "DTypePolicy":
        return config["name"]
    if class_name == "__numpy__":
        return np.array(config["value"], config["dtype"])
    if value.get("module") == "keras.layers":
        return {"class_name": class_name, "config": _twin_config(class_name, config)}
    if str(value.get("module")).startswith("keras."):
        return {
            "class_name": class_name,
            "config": {key: _convert_value(element) for key, element in config.items() if not key.endswith("put_axes")},
        }
    raise NoTwinError(f"it contains a '{value.get('registered_name') or class_name}', which tf_keras does not know")


def translate_operator(
    keras_operation: KerasOperation, operand_tensors: list[KerasTensor], arguments_json: str, name: str
) -> LayerChain:
    """The tf_keras twin of a `keras.ops` node: a standard layer, which compression knows, or an `OperatorLayer`.

    Args:
        keras_operation: The Operation of the node.
        operand_tensors: The symbolic tensors (or weights) among its arguments.
        arguments_json: All its arguments as JSON, with `{"tensor": i}` for `operand_tensors[i]`.
        name: Name of the layer.

    Raises:
        UnsupportedLayerError: the operator cannot be bridged.
    """
    class_name = type(keras_operation).__name__
    is_builtin_operator = isinstance(keras_operation, Constant) or type(keras_operation).__module__.startswith("keras.")
    if class_name not in OPERATOR_NAMES or not is_builtin_operator:
        raise UnsupportedLayerError(f"the operator {class_name} is not carried over; {_WORKAROUND_HINT}")
    if class_name in _MERGE_LAYER_BY_OPERATOR and len(operand_tensors) == 2 and _are_mergeable(operand_tensors):
        return LayerChain((getattr(tf_keras.layers, _MERGE_LAYER_BY_OPERATOR[class_name])(name=name),))
    if (
        class_name == "Concatenate"
        and len(operand_tensors) > 1
        and _are_mergeable(operand_tensors)
        and "array" not in arguments_json
    ):
        return LayerChain((tf_keras.layers.Concatenate(axis=keras_operation.axis, name=name),))
    if class_name in _ACTIVATION_BY_OPERATOR:
        return LayerChain(
            (tf_keras.layers.Activation(_activation_name(_ACTIVATION_BY_OPERATOR[class_name]), name=name),)
        )
    if class_name == "Relu6":
        return LayerChain((tf_keras.layers.ReLU(6.0, name=name),))
    return LayerChain((OperatorLayer(class_name, arguments_json, name=name),))


def _are_mergeable(tensors: list[KerasTensor]) -> bool:
    # tf_keras's merging layers take no weights, convert no types, and broadcast ranks and batches differently
    are_symbolic = all(isinstance(tensor, keras.KerasTensor) for tensor in tensors)
    return are_symbolic and len({(tensor.dtype, len(tensor.shape), tensor.shape[:1]) for tensor in tensors}) == 1
