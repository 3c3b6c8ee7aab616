"""One Keras 3 layer or operator -> the tf_keras layers that do the same, or the reason why there are none."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.models.layers import OPERATORS, PACKAGE, Operator

Fresh = Callable[[str], str]

# activations that tf_keras has under the same name with the same meaning
_SAME = frozenset(
    {
        "elu",
        "exponential",
        "gelu",
        "linear",
        "mish",
        "relu",
        "selu",
        "sigmoid",
        "softmax",
        "softplus",
        "softsign",
        "tanh",
    }
)
_OURS = frozenset({"hard_sigmoid", "hard_silu", "leaky_relu", "log_softmax"})
_ALIASES = {"swish": "swish", "silu": "swish", "hard_swish": "hard_silu"}
_RELU6 = "relu6"
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# what Keras 3 writes and nothing depends on once a layer is built, or what only names a Keras 3 feature left unused
_COMMON_KEYS = {"name", "trainable", "dtype", "batch_input_shape"}
_ACTIVATION_OPERATORS = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "silu",
    "HardSilu": "hard_silu",
    "HardSigmoid": "hard_sigmoid",
}
_MERGES = {"Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "Maximum": "Maximum", "Minimum": "Minimum"}
_REPLACE = "write it with keras.ops or built-in layers; a plain `convert` needs no bridge"


class Uncarried(Exception):  # noqa: N818 - not an error a user sees: the bridge gathers them into one
    """Why a layer cannot be carried over, and what to do about it."""


@dataclass(frozen=True)
class Chain:
    """tf_keras layers to call one after the other in place of one Keras 3 layer."""

    layers: tuple[Any, ...]

    @property
    def weights(self) -> list[Any]:
        """The weights of all layers, in the order of the Keras 3 layer's."""
        return [weight for layer in self.layers for weight in layer.weights]


def translate(layer: Any, name: str, fresh: Fresh) -> Chain:
    """The tf_keras twin of the Keras 3 `layer`, called `name`; its weights are not set yet.

    Where one layer becomes two, `fresh` makes the wished name of each unique.

    Raises:
        Uncarried: with the reason and what to do.
    """
    cls = type(layer).__name__
    _check(layer, cls)
    config = {**layer.get_config(), "name": name}
    _check_config(layer, config)
    if cls == "SeparableConv2D":
        return _separable(config, fresh)
    if cls == "Activation":
        return Chain((_activation(config["activation"], name),))
    if cls in ("Conv1D", "Conv2D", "Conv2DTranspose", "Conv1DTranspose", "DepthwiseConv2D", "Dense"):
        return _with_activation(cls, config, fresh)
    return Chain((_same(cls, config),))


def _check(layer: Any, cls: str) -> None:
    if cls == "Lambda":
        raise Uncarried(f"a Lambda holds Python code; {_REPLACE}")
    builtin = getattr(keras.layers, cls, None)
    if builtin is None or not isinstance(layer, builtin) or not type(layer).__module__.startswith("keras."):
        raise Uncarried(f"a layer class of its own, which tf_keras does not know; {_REPLACE}")
    if not hasattr(tf_keras.layers, cls):
        raise Uncarried(f"tf_keras has no layer of this class; {_REPLACE}")
    if getattr(getattr(layer, "activation", None), "__name__", "") == "<lambda>":
        raise Uncarried(f"its activation is a lambda; {_REPLACE}")


def _check_config(layer: Any, config: dict[str, Any]) -> None:
    policy = layer.dtype_policy.name
    if policy not in ("float32", str(layer.dtype)) or "float16" in policy:
        raise Uncarried(f"its dtype policy is '{policy}'; rebuild the model under 'float32', the weights fit")
    if config.get("data_format") == "channels_first":
        raise Uncarried("data_format channels_first, which neither the CPU nor TFLite runs; rebuild as channels_last")
    if config.get("lora_rank"):
        raise Uncarried("it holds LoRA weights; merge them first (save and load the model)")


def _separable(config: dict[str, Any], fresh: Fresh) -> Chain:
    # tfmot splits a SeparableConv2D itself, into layers named by a global counter, which collide with the model's own
    shared = {key: config[key] for key in ("padding", "data_format", "dilation_rate", "trainable")}
    depthwise = tf_keras.layers.DepthwiseConv2D(
        config["kernel_size"],
        strides=config["strides"],
        depth_multiplier=config["depth_multiplier"],
        use_bias=False,
        name=fresh(f"{config['name']}_depthwise"),
        **{
            f"depthwise_{key}": _value(config[f"depthwise_{key}"])
            for key in ("initializer", "regularizer", "constraint")
        },
        **shared,
    )
    pointwise = {
        **{key: config[key] for key in ("filters", "use_bias", "activation", "data_format", "trainable")},
        **{f"kernel_{key}": config[f"pointwise_{key}"] for key in ("initializer", "regularizer", "constraint")},
        **{f"bias_{key}": config[f"bias_{key}"] for key in ("initializer", "regularizer", "constraint")},
        "kernel_size": (1, 1),
        "name": fresh(f"{config['name']}_pointwise"),
    }
    return Chain((depthwise, *_with_activation("Conv2D", pointwise, fresh).layers))


def _with_activation(cls: str, config: dict[str, Any], fresh: Fresh) -> Chain:
    activation = config["activation"]
    if activation in _SAME or activation in ("silu", "swish"):
        return Chain((_same(cls, config),))
    # an activation that tf_keras lacks becomes a layer of its own, which tfmot can at least see
    after = _activation(activation, fresh(f"{config['name']}_activation"))
    return Chain((_same(cls, {**config, "activation": "linear"}), after))


def _activation(activation: Any, name: str) -> Any:
    if activation == _RELU6:
        return tf_keras.layers.ReLU(6.0, name=name)
    return tf_keras.layers.Activation(_activation_name(activation), name=name)


def _activation_name(activation: Any) -> str:
    if not isinstance(activation, str):
        inner = activation.get("class_name", "?") if isinstance(activation, dict) else activation
        shown = activation.get("config", inner) if inner == "function" else inner
        raise Uncarried(f"its activation '{shown}' is no built-in one; {_REPLACE}")
    name = _ALIASES.get(activation, activation)
    if name in _OURS:
        return f"{PACKAGE}>{name}"
    if name in _SAME or name in ("swish", _RELU6):
        return name
    raise Uncarried(f"its activation '{activation}' has no twin in tf_keras; {_REPLACE}")


def _same(cls: str, config: dict[str, Any]) -> Any:
    twin = getattr(tf_keras.layers, cls)
    if cls == "MultiHeadAttention":  # its from_config wants shapes that only tf_keras would have stored
        return twin(**_config(cls, config))
    return twin.from_config(_config(cls, config))


def _config(cls: str, config: dict[str, Any]) -> dict[str, Any]:
    twin, original = getattr(tf_keras.layers, cls), getattr(keras.layers, cls)
    renamed = {_RENAMED.get(cls, {}).get(key, key): value for key, value in config.items()}
    known = _parameters(twin).keys() | _COMMON_KEYS
    ignored = known | {"seed"}  # no stream of random numbers survives the crossing anyway
    lost = {
        key: value
        for key, value in renamed.items()
        if key not in ignored and _matters(value, _parameters(original).get(key))
    }
    if lost:
        told = ", ".join(f"{key}={value!r}" for key, value in lost.items())
        raise Uncarried(f"tf_keras has no option {told}; leave it at its default")
    return {key: _converted(key, value) for key, value in renamed.items() if key in known}


def _parameters(cls: Any) -> dict[str, Any]:
    # Constructors pass on to their bases, so what the bases take the class takes too.
    found: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:
        if base.__module__.split(".")[0] in ("keras", "tf_keras") and "__init__" in vars(base):
            signature = inspect.signature(base.__init__)
            found = {**{key: parameter.default for key, parameter in signature.parameters.items()}, **found}
    return {key: value for key, value in found.items() if key not in ("self", "args", "kwargs")}


def _matters(value: Any, default: Any) -> bool:
    # channels_last is what a tf_keras layer without that option does; channels_first was refused before
    return value not in (None, False, "channels_last") and value != default


def _converted(key: str, value: Any) -> Any:
    if (
        key.endswith("activation")
        and value is not None
        and not (isinstance(value, dict) and "layers" in str(value.get("module")))
    ):
        return _activation_name(value)
    return _value(value)


def _value(value: Any) -> Any:
    """A value of a Keras 3 config as tf_keras writes it: policies by name, objects without what is new in Keras 3."""
    if isinstance(value, (list, tuple)):
        return type(value)(_value(part) for part in value)
    if not isinstance(value, dict) or "class_name" not in value:
        return {key: _value(part) for key, part in value.items()} if isinstance(value, dict) else value
    cls, config = value["class_name"], value.get("config") or {}
    if cls == "DTypePolicy":
        return config["name"]
    if cls == "__numpy__":
        return np.array(config["value"], config["dtype"])
    if value.get("module") == "keras.layers":
        return {"class_name": cls, "config": _config(cls, config)}
    if str(value.get("module")).startswith("keras."):
        return {
            "class_name": cls,
            "config": {key: _value(part) for key, part in config.items() if not key.endswith("put_axes")},
        }
    raise Uncarried(
        f"it holds an object of the class '{value.get('registered_name') or cls}', which tf_keras does not know"
    )


def operator_chain(operation: Any, tensors: list[Any], arguments: str, name: str) -> Chain:
    """The tf_keras twin of a `keras.ops` node; layers that compression knows are preferred to our own.

    Raises:
        Uncarried: the operator is not one that a graph may hold.
    """
    cls = type(operation).__name__
    if cls not in OPERATORS or not type(operation).__module__.startswith("keras."):
        raise Uncarried(f"the operator {cls} is not carried over; {_REPLACE}")
    if cls in _MERGES and len(tensors) == 2:
        return Chain((getattr(tf_keras.layers, _MERGES[cls])(name=name),))
    if cls == "Concatenate" and len(tensors) > 1 and "array" not in arguments:
        return Chain((tf_keras.layers.Concatenate(axis=operation.axis, name=name),))
    if cls in _ACTIVATION_OPERATORS:
        return Chain((_activation(_ACTIVATION_OPERATORS[cls], name),))
    if cls == "Relu6":
        return Chain((_activation(_RELU6, name),))
    return Chain((Operator(cls, arguments, name=name),))
