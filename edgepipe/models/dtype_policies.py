"""The dtype policies in a model's configuration: which layers compute in other floats, and which are quantized.

Works on the JSON of a model file, without TensorFlow.
"""

from collections.abc import Iterator
from typing import Any

from edgepipe.core.errors import InputError
from edgepipe.core.units import plural

# what Keras 3 and tf_keras can compute in besides float32; a mixed policy keeps its variables in float32
OTHER_FLOAT_POLICIES = frozenset({"float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"})
_POLICY_CLASSES = frozenset({"DTypePolicy", "DTypePolicyMap", "FloatDTypePolicy", "Policy", "PolicyV1"})
_MAX_LAYERS_SHOWN = 3


def find_float_policies(config: Any) -> dict[str, list[str]]:
    """The names of the layers under each policy that computes in other floats than float32."""
    layers_by_policy: dict[str, list[str]] = {}
    for layer_name, dtype in _iter_layer_dtypes(config):
        for policy_name in _policy_names(dtype):
            if policy_name in OTHER_FLOAT_POLICIES:
                layers_by_policy.setdefault(policy_name, []).append(layer_name)
    return layers_by_policy


def find_quantized_layers(config: Any) -> dict[str, str]:
    """The mode (`int8`, `int4`, `float8`, `gptq`..) of each layer that Keras itself has quantized."""
    return {layer_name: mode for layer_name, dtype in _iter_layer_dtypes(config) if (mode := _quantization_mode(dtype))}


def quantized_layers_problem(mode_by_layer: dict[str, str]) -> str:
    """What is wrong with a model of which Keras has quantized layers, and the remedy; empty if there are none."""
    if not mode_by_layer:
        return ""
    modes = ", ".join(dict.fromkeys(mode_by_layer.values()))
    layers_text = _layers_text(list(mode_by_layer))
    return (
        f"Keras has quantized {layers_text} already (`model.quantize`, mode {modes}), in a form that TFLite does not "
        "have; give the float model, saved before `quantize`: edgepipe quantizes it"
    )


def check_not_quantized(title: str, config: Any) -> None:
    """Raise an `InputError` if Keras has quantized layers of the model `title`."""
    if problem_text := quantized_layers_problem(find_quantized_layers(config)):
        raise InputError(f"{title}: {problem_text}")


def describe_float_policies(config: Any) -> str:
    """The policies that compute in other floats than float32, with the number of layers of each; empty if none does."""
    policies_text = ", ".join(
        f"{policy_name} ({_layers_text(layer_names)})"
        for policy_name, layer_names in find_float_policies(config).items()
    )
    return f"dtype policy {policies_text}" if policies_text else ""


def as_float32(config: Any) -> Any:
    """A copy of `config` in which every float policy and every other float dtype is float32."""
    if isinstance(config, (list, tuple)):
        return type(config)(as_float32(child) for child in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") in _POLICY_CLASSES and isinstance(config.get("config"), dict):
        return "float32" if any(name in OTHER_FLOAT_POLICIES for name in _policy_names(config)) else config
    return {
        key: "float32" if _is_dtype_key(key) and _dtype_name(child) in OTHER_FLOAT_POLICIES else as_float32(child)
        for key, child in config.items()
    }


def _is_dtype_key(key: Any) -> bool:
    return isinstance(key, str) and (key == "dtype" or key.endswith("_dtype"))


def _iter_layer_dtypes(config: Any) -> Iterator[tuple[str, Any]]:
    """(layer, its dtype) of every layer and operator in a config, not of models that hold layers."""
    if isinstance(config, (list, tuple)):
        for child in config:
            yield from _iter_layer_dtypes(child)
    if not isinstance(config, dict):
        return
    layer_config = config.get("config")
    if isinstance(layer_config, dict) and isinstance(layer_config.get("name"), str) and "layers" not in layer_config:
        yield layer_config["name"], layer_config.get("dtype")
    for key, child in config.items():
        if key != "compile_config":  # losses and metrics are no part of the model
            yield from _iter_layer_dtypes(child)


def _policy_names(dtype: Any) -> list[str]:
    """The names of the policies in a serialized dtype: one, or those of a map from layers to policies."""
    if not isinstance(dtype, dict):
        return [_dtype_name(dtype)]
    policy_config = dtype.get("config") or {}
    if "policy_map" in policy_config:
        policies = [policy_config.get("default_policy"), *policy_config["policy_map"].values()]
        return list(dict.fromkeys(name for policy in policies for name in _policy_names(policy)))
    return [str(policy_config.get("name") or policy_config.get("source_name") or "")]


def _dtype_name(dtype: Any) -> str:
    """The name of a dtype that stands as text or, in a config that was never stored, as an object."""
    return dtype if isinstance(dtype, str) else str(getattr(dtype, "name", ""))


def _quantization_mode(dtype: Any) -> str:
    """`int8` of a policy of the class QuantizedDTypePolicy, or of the text `int8_from_float32`; empty if none."""
    if not isinstance(dtype, dict):
        mode, separator, _ = _dtype_name(dtype).partition("_from_")
        return mode.partition("/")[0] if separator else ""
    policy_config = dtype.get("config") or {}
    if "policy_map" in policy_config:
        policies = [policy_config.get("default_policy"), *policy_config["policy_map"].values()]
        return next((mode for mode in map(_quantization_mode, policies) if mode), "")
    stated_mode = policy_config.get("mode")
    return _quantization_mode(policy_config.get("name")) if stated_mode is None else stated_mode.partition("/")[0]


def _layers_text(layer_names: list[str]) -> str:
    names_text = ", ".join(f"'{name}'" for name in layer_names[:_MAX_LAYERS_SHOWN])
    if len(layer_names) <= _MAX_LAYERS_SHOWN:
        return f"{'layer' if len(layer_names) == 1 else 'layers'} {names_text}"
    return f"{plural(len(layer_names), 'layer')}: {names_text} .."
