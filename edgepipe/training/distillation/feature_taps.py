"""Which tensor of a model is meant: by the name of a layer, inside the wrappers of tfmot, or by its place."""

from collections import defaultdict
from typing import Any

import keras

from edgepipe.core.errors import InputError, did_you_mean

PREFIXES = ("quant_", "cluster_", "prune_low_magnitude_")  # of tfmot's wrappers
FAKE_QUANT = "_fake_quant"  # of the layer that quantizes what another gives


def opened(model: Any) -> Any:
    """`model` as a graph of layers; a Sequential of Keras 3 shows none, and is told again with the same layers."""
    return keras.Model(model.inputs, model.outputs, name=model.name) if isinstance(model, keras.Sequential) else model


def tensor(model: Any, name: str, whose: str) -> Any:
    """What the layer `name` of `model` gives; in a fake-quant model, after fake-quant.

    Raises:
        InputError: no such layer, it stands inside a nested model, or it is called more than once.
    """
    known = _calls(model)
    found = known.get(f"{name}{FAKE_QUANT}") or known.get(name)
    if found is None:
        raise InputError(f"the {whose} '{model.name}' has no layer '{name}'{_hint(model, name, list(known))}")
    if len(found) > 1:
        raise InputError(f"layer '{name}' of the {whose} is called {len(found)} times; name another")
    return _single(found[0].outputs)


def _calls(model: Any) -> dict[str, list[Any]]:
    """The calls of each layer within `model`, in the order of computation: a layer may be part of other models too."""
    found = defaultdict(list)
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            found[plain(_layer(node).name)].append(node)
    return dict(found)


def _layer(node: Any) -> Any:
    return node.operation if hasattr(node, "operation") else node.layer  # Keras 3 and tf_keras


def _single(tensors: Any) -> Any:
    listed = tensors if isinstance(tensors, (list, tuple)) else [tensors]
    return listed[0] if len(listed) == 1 else listed


def _inputs(node: Any) -> Any:
    return _single(node.input_tensors)


def plain(name: str) -> str:
    """The name of a layer without tfmot's wrapper."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _hint(model: Any, name: str, known: list[str]) -> str:
    for outer in model.layers:
        if any(inner.name == name for inner in getattr(outer, "layers", [])):
            return f": it is inside the nested model '{outer.name}', where it cannot be taken"
    return did_you_mean(name, known)


def embedding(model: Any, whose: str) -> tuple[str, Any]:
    """What the last layer with weights takes, the usual features of a sample, and that layer's name.

    Raises:
        InputError: no layer has a kernel, or the last one takes several tensors.
    """
    for name, calls in reversed(_calls(model).items()):
        if _weighted(calls[-1]):
            taken = _inputs(calls[-1])
            if isinstance(taken, (list, tuple)):
                break
            return f"what '{name.removesuffix(FAKE_QUANT)}' takes", taken
    raise InputError(f"the {whose} '{model.name}' has no last layer with a kernel; name a pair of layers")


def last_map(model: Any, whose: str) -> tuple[str, Any]:
    """The last tensor of `model` that still has places (n, ..., channels) and weights behind it, and its layer.

    Raises:
        InputError: there is none.
    """
    behind = False
    for name, calls in reversed(_calls(model).items()):
        given = _single(calls[-1].outputs)
        shape = tuple(getattr(given, "shape", ()))
        made = type(_layer(calls[-1])).__name__ != "InputLayer"  # what goes in is no map of what was learned
        if behind and made and len(shape) >= 3 and None not in shape[1:]:
            return f"'{name.removesuffix(FAKE_QUANT)}'", given
        behind = behind or _weighted(calls[-1])
    raise InputError(f"the {whose} '{model.name}' has no layer whose output has places; name a pair of layers")


def _weighted(node: Any) -> bool:
    return any(len(weight.shape) > 1 for weight in getattr(_layer(node), "weights", []))
