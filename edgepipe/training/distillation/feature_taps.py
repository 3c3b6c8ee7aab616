"""Finds tensors in a model: by layer name, also inside tfmot wrappers, or by their position in the graph."""

from collections import defaultdict
from typing import Any

import keras

from edgepipe.core.errors import InputError, did_you_mean

WRAPPER_PREFIXES = ("quant_", "cluster_", "prune_low_magnitude_")  # of tfmot's wrappers
FAKE_QUANT_SUFFIX = "_fake_quant"  # of the layer that quantizes another's output


def as_functional_model(model: Any) -> Any:
    """`model` as a functional model; a Sequential of Keras 3 has no graph and is rebuilt from the same layers."""
    return keras.Model(model.inputs, model.outputs, name=model.name) if isinstance(model, keras.Sequential) else model


def find_layer_output(model: Any, name: str, role: str) -> Any:
    """The output of the layer `name` of `model`; in a fake-quant model, after fake-quant.

    Raises:
        InputError: no such layer, it is inside a nested model, or it is called more than once.
    """
    calls_by_layer = _calls_by_layer(model)
    layer_calls = calls_by_layer.get(f"{name}{FAKE_QUANT_SUFFIX}") or calls_by_layer.get(name)
    if layer_calls is None:
        raise InputError(
            f"the {role} '{model.name}' has no layer '{name}'{_missing_layer_hint(model, name, list(calls_by_layer))}"
        )
    if len(layer_calls) > 1:
        raise InputError(f"layer '{name}' of the {role} is called {len(layer_calls)} times; name another")
    return _unwrap_single(layer_calls[0].outputs)


def _calls_by_layer(model: Any) -> dict[str, list[Any]]:
    """The calls of each layer in `model`, in order of computation; calls in other models are not included."""
    calls_by_layer = defaultdict(list)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            calls_by_layer[strip_wrapper_prefix(_layer_of(node).name)].append(node)
    return dict(calls_by_layer)


def _layer_of(node: Any) -> Any:
    return node.operation if hasattr(node, "operation") else node.layer  # Keras 3 and tf_keras


def _unwrap_single(tensors: Any) -> Any:
    tensor_list = tensors if isinstance(tensors, (list, tuple)) else [tensors]
    return tensor_list[0] if len(tensor_list) == 1 else tensor_list


def _input_tensors(node: Any) -> Any:
    return _unwrap_single(node.input_tensors)


def strip_wrapper_prefix(name: str) -> str:
    """The layer name without the prefix of tfmot's wrapper."""
    return next((name.removeprefix(prefix) for prefix in WRAPPER_PREFIXES if name.startswith(prefix)), name)


def _missing_layer_hint(model: Any, name: str, layer_names: list[str]) -> str:
    for nested_model in model.layers:
        if any(layer.name == name for layer in getattr(nested_model, "layers", [])):
            return f": it is inside the nested model '{nested_model.name}', which is not supported"
    return did_you_mean(name, layer_names)


def find_embedding(model: Any, role: str) -> tuple[str, Any]:
    """The input of the last layer with a kernel, the default feature vector of a sample, and its description.

    Raises:
        InputError: no layer has a kernel, or the last one takes several tensors.
    """
    for name, layer_calls in reversed(_calls_by_layer(model).items()):
        if _has_kernel(layer_calls[-1]):
            input_tensor = _input_tensors(layer_calls[-1])
            if isinstance(input_tensor, (list, tuple)):
                break
            return f"the input of '{name.removesuffix(FAKE_QUANT_SUFFIX)}'", input_tensor
    raise InputError(f"the {role} '{model.name}' has no last layer with a kernel; name a pair of layers")


def find_last_feature_map(model: Any, role: str) -> tuple[str, Any]:
    """The last spatial tensor (n, ..., channels) of `model` with a kernel downstream, and its layer.

    Raises:
        InputError: there is none.
    """
    has_weights_behind = False
    for name, layer_calls in reversed(_calls_by_layer(model).items()):
        output_tensor = _unwrap_single(layer_calls[-1].outputs)
        shape = tuple(getattr(output_tensor, "shape", ()))
        is_computed = (
            type(_layer_of(layer_calls[-1])).__name__ != "InputLayer"
        )  # the input is not a learned feature map
        if has_weights_behind and is_computed and len(shape) >= 3 and None not in shape[1:]:
            return f"'{name.removesuffix(FAKE_QUANT_SUFFIX)}'", output_tensor
        has_weights_behind = has_weights_behind or _has_kernel(layer_calls[-1])
    raise InputError(f"the {role} '{model.name}' has no layer with a spatial output; name a pair of layers")


def _has_kernel(node: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in getattr(_layer_of(node), "weights", []))
