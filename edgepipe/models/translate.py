"""One Keras 3 layer or operator -> the tf_keras layers that do the same, or the reason why there are none."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.models import custom_objects
from edgepipe.models.bridge_layers import Keras3Layer, LayerScale, Operator
from edgepipe.models.keras3_activations import ACTIVATIONS, PACKAGE
from edgepipe.models.keras3_graph import is_builtin, twin_class
from edgepipe.models.keras_operators import OPERATORS

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
_WRONG = ("RandomCrop", "SpectralNormalization")
_REPLACE = "write it with keras.ops or built-in layers; a plain `convert` needs no bridge"


class Uncarried(Exception):  # noqa: N818 - not an error a user sees: the bridge gathers them into one
    """Why a layer cannot be carried over, and what to do about it."""


class NoTwin(Uncarried):
    """Why tf_keras cannot do what a layer of Keras 3 does; it may stay one inside the twin."""


@dataclass(frozen=True)
class Chain:
    """tf_keras layers to call one after the other in place of one Keras 3 layer."""

    layers: tuple[Any, ...]
    kept: str = ""  # why (a part of) it stays a Keras 3 layer, if it does

    @property
    def weights(self) -> list[Any]:
        """The weights of all layers, in the order of the Keras 3 layer's."""
        return [
            weight
            for layer in self.layers
            for weight in (layer.carried if isinstance(layer, Keras3Layer) else layer.weights)
        ]


def translate(layer: Any, name: str, fresh: Fresh) -> Chain:
    """The tf_keras twin of the Keras 3 `layer`, called `name`; its weights are not set yet.

    Where one layer becomes two, `fresh` makes the wished name of each unique. What tf_keras has no class or option for
    stays a Keras 3 layer, wrapped.

    Raises:
        Uncarried: with the reason and what to do.
    """
    _check(layer)
    if (twin := twin_class(layer)) is not None:
        return _users_twin(twin, layer, name)
    if not is_builtin(layer):
        return _kept(layer, name, "its `call` cannot be opened up to see what it consists of")
    try:
        return _builtin(layer, name, fresh)
    except NoTwin as reason:
        return _kept(layer, name, str(reason))


def _builtin(layer: Any, name: str, fresh: Fresh) -> Chain:
    cls, config = type(layer).__name__, {**layer.get_config(), "name": name}
    if cls == "LayerScale":
        return Chain((LayerScale.from_config({key: _value(value) for key, value in config.items()}),))
    if cls == "StochasticDepth":
        return Chain((_stochastic_depth(layer, name),))
    if getattr(keras.layers, cls, None) is not type(layer) or not hasattr(tf_keras.layers, cls):
        raise NoTwin("tf_keras has no layer of this class")
    if cls in _WRONG:
        raise NoTwin("tf_keras's own layer of that name does something else or does not run")
    if cls == "SeparableConv2D":
        return _separable(layer, config, fresh)
    if cls == "Activation":
        return _activation(layer.activation, config["activation"], name, fresh)
    if cls in ("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
               "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "Dense", "EinsumDense"):  # fmt: skip
        return _with_activation(cls, layer, config, fresh)
    return Chain((_same(cls, config),))


def _users_twin(twin: Any, layer: Any, name: str) -> Chain:
    try:
        made = twin.from_config({**{key: _value(value) for key, value in layer.get_config().items()}, "name": name})
    except Exception as error:
        raise Uncarried(f"its tf_keras_twin cannot be made from its get_config(): {told(error)}") from error
    if not isinstance(made, tf_keras.layers.Layer):
        raise Uncarried(f"its tf_keras_twin is a {type(made).__name__}, not a layer of tf_keras")
    return Chain((made,))


def _kept(layer: Any, name: str, reason: str) -> Chain:
    own = [type(part) for part in (*layer._flatten_layers(), getattr(layer, "activation", None)) if part is not None]
    known: dict[str, Any] = {cls.__name__: cls for cls in own}
    function = getattr(layer, "activation", None)
    known |= {function.__name__: function} if inspect.isfunction(function) else {}
    try:
        with custom_objects.known(known):
            twin = Keras3Layer(keras.saving.serialize_keras_object(layer), name=name, trainable=layer.trainable)
    except Exception as error:
        raise Uncarried(
            f"{reason}, and it cannot be rebuilt from its get_config(): {told(error)}; {_REPLACE}"
        ) from error
    shapes = [[tuple(weight.shape) for weight in weights] for weights in (layer.weights, twin.carried)]
    if shapes[0] != shapes[1]:
        raise Uncarried(
            f"{reason}, and rebuilt from its get_config() it has weights of shapes {shapes[1]} instead of {shapes[0]}; "
            "make them in its build(input_shape)"
        )
    return Chain((twin,), reason)


def told(error: Exception) -> str:
    """The class of `error` and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("Exception encountered")), "")
    return f"{type(error).__name__}: {first[:200]}"


def _stochastic_depth(layer: Any, name: str) -> Any:
    # whole samples are dropped (Huang et al. 2016, arXiv 1603.09382): one random number for each
    rank = len(layer._inbound_nodes[0].input_tensors[0].shape)
    return tf_keras.layers.Dropout(layer.drop_path_rate, noise_shape=(None, *(1,) * (rank - 1)), name=name)


def _check(layer: Any) -> None:
    if isinstance(layer, keras.layers.Lambda):
        raise Uncarried(f"a Lambda holds Python code that needs values, not symbols; {_REPLACE}")
    if getattr(getattr(layer, "activation", None), "__name__", "") == "<lambda>":
        raise Uncarried(f"its activation is a lambda; {_REPLACE}")
    policy = layer.dtype_policy.name
    if policy not in ("float32", str(layer.dtype)) or "float16" in policy:
        raise Uncarried(f"its dtype policy is '{policy}'; rebuild the model under 'float32', the weights fit")
    if getattr(layer, "data_format", None) == "channels_first":
        raise Uncarried("data_format channels_first, which neither the CPU nor TFLite runs; rebuild as channels_last")
    if getattr(layer, "lora_rank", None):
        raise Uncarried("it holds LoRA weights; merge them first (save and load the model)")


def _separable(layer: Any, config: dict[str, Any], fresh: Fresh) -> Chain:
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
    after = _with_activation("Conv2D", layer, pointwise, fresh)
    return Chain((depthwise, *after.layers), after.kept)


def _with_activation(cls: str, layer: Any, config: dict[str, Any], fresh: Fresh) -> Chain:
    activation = config["activation"]
    if activation is None or (isinstance(activation, str) and (activation in _SAME or activation in ("silu", "swish"))):
        return Chain((_same(cls, config),))
    # an activation that tf_keras lacks becomes a layer of its own, which compression can at least see
    after = _activation(layer.activation, activation, fresh(f"{config['name']}_activation"), fresh)
    return Chain((_same(cls, {**config, "activation": "linear"}), *after.layers), after.kept)


def _activation(function: Any, config: Any, name: str, fresh: Fresh) -> Chain:
    """The twin of the activation `function`, which Keras wrote as `config`: a name, or an object."""
    if isinstance(function, keras.Layer):
        if not function.built:
            raise Uncarried("its activation is a layer that Keras has not built; call that layer by itself behind it")
        return translate(function, name, fresh)
    if config == _RELU6:
        return Chain((tf_keras.layers.ReLU(6.0, name=name),))
    if isinstance(config, str):
        return Chain((tf_keras.layers.Activation(_activation_name(config), name=name),))
    shown = getattr(function, "__name__", type(function).__name__)
    return _kept(keras.layers.Activation(function), name, f"its activation '{shown}' is no built-in one")


def _activation_name(activation: Any) -> str:
    if not isinstance(activation, str):
        inner = activation.get("class_name", "?") if isinstance(activation, dict) else activation
        shown = activation.get("config", inner) if inner == "function" else inner
        raise NoTwin(f"its activation '{shown}' is no built-in one")
    name = _ALIASES.get(activation, activation)
    if name in ACTIVATIONS:
        return f"{PACKAGE}>{name}"
    if name in _SAME or name in ("swish", _RELU6):
        return name
    raise NoTwin(f"its activation '{activation}' has no twin in tf_keras")


def _same(cls: str, config: dict[str, Any]) -> Any:
    twin = getattr(tf_keras.layers, cls)
    if cls == "MultiHeadAttention":  # its from_config wants shapes that only tf_keras would have stored
        return twin(**_config(cls, config))
    return twin.from_config(_config(cls, config))


def _config(cls: str, config: dict[str, Any]) -> dict[str, Any]:
    twin, original = getattr(tf_keras.layers, cls), getattr(keras.layers, cls)
    renamed = {_RENAMED.get(cls, {}).get(key, key): value for key, value in config.items()}
    known = constructor(twin).keys() | _COMMON_KEYS
    ignored = known | {"seed"}  # no stream of random numbers survives the crossing anyway
    lost = {
        key: value
        for key, value in renamed.items()
        if key not in ignored and matters(value, constructor(original).get(key))
    }
    if lost:
        options = ", ".join(f"{key}={value!r}" for key, value in lost.items())
        raise NoTwin(f"tf_keras has no option {options}")
    return {key: _converted(key, value) for key, value in renamed.items() if key in known}


def constructor(cls: Any) -> dict[str, Any]:
    """The options a layer class of either Keras takes, with their defaults."""
    # Constructors pass on to their bases, so what the bases take the class takes too.
    found: dict[str, Any] = {}
    for base in cls.__mro__[:-1]:
        if base.__module__.split(".")[0] in ("keras", "tf_keras") and "__init__" in vars(base):
            signature = inspect.signature(base.__init__)
            found = {**{key: parameter.default for key, parameter in signature.parameters.items()}, **found}
    if issubclass(cls, tf_keras.layers.RNN):
        found["zero_output_for_mask"] = False  # taken out of its **kwargs
    return {key: value for key, value in found.items() if key not in ("self", "args", "kwargs")}


def matters(value: Any, default: Any) -> bool:
    """Whether an option that the other Keras lacks changes what the layer does."""
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
    raise NoTwin(f"it holds a '{value.get('registered_name') or cls}', which tf_keras does not know")


def operator_chain(operation: Any, tensors: list[Any], arguments: str, name: str) -> Chain:
    """The tf_keras twin of a `keras.ops` node; layers that compression knows are preferred to our own.

    Raises:
        Uncarried: the operator is not one that a graph may hold.
    """
    cls = type(operation).__name__
    if cls not in OPERATORS or not type(operation).__module__.startswith("keras."):
        raise Uncarried(f"the operator {cls} is not carried over; {_REPLACE}")
    if cls in _MERGES and len(tensors) == 2 and _alike(tensors):
        return Chain((getattr(tf_keras.layers, _MERGES[cls])(name=name),))
    if cls == "Concatenate" and len(tensors) > 1 and _alike(tensors) and "array" not in arguments:
        return Chain((tf_keras.layers.Concatenate(axis=operation.axis, name=name),))
    if cls in _ACTIVATION_OPERATORS:
        return Chain((tf_keras.layers.Activation(_activation_name(_ACTIVATION_OPERATORS[cls]), name=name),))
    if cls == "Relu6":
        return Chain((tf_keras.layers.ReLU(6.0, name=name),))
    return Chain((Operator(cls, arguments, name=name),))


def _alike(tensors: list[Any]) -> bool:
    # tf_keras's merging layers take no weights, do not convert types, and line up ranks in a way of their own
    symbols = all(isinstance(tensor, keras.KerasTensor) for tensor in tensors)
    return symbols and len({(tensor.dtype, len(tensor.shape)) for tensor in tensors}) == 1
