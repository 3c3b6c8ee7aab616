"""Whether the bridge's check has teeth: damage a bridged model in one place, and see that this place is named.

Used by the tests and, over all families, by `python tests/models/teeth.py [FAMILY ..]` and the benchmark of families.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.models.bridge import TOLERANCE, TwinModel, bridge, build_twin, compare, copy_weights, unsaturate
from edgepipe.models.perturb import perturbed_weights

A = keras.applications


def _top(function: Callable[..., Any], size: int, **more: Any) -> Callable[[], Any]:
    return lambda: function(input_shape=(size, size, 3), weights=None, classes=10, **more)


# every family at the smallest input that keras.applications allows for it with its head on
FAMILIES: dict[str, Callable[[], Any]] = {
    "MobileNet": _top(A.MobileNet, 32),
    "MobileNetV2": _top(A.MobileNetV2, 32),
    "MobileNetV3Small": _top(A.MobileNetV3Small, 32),
    "MobileNetV3Large": _top(A.MobileNetV3Large, 32),
    "EfficientNetB0": _top(A.EfficientNetB0, 32),
    "EfficientNetV2B0": _top(A.EfficientNetV2B0, 32),
    "ResNet50": _top(A.ResNet50, 32),
    "ResNet50V2": _top(A.ResNet50V2, 32),
    "DenseNet121": _top(A.DenseNet121, 32),
    "NASNetMobile": _top(A.NASNetMobile, 32),
    "Xception": _top(A.Xception, 71),
    "InceptionV3": _top(A.InceptionV3, 75),
    "VGG16": _top(A.VGG16, 32),
    "ConvNeXtTiny": _top(A.ConvNeXtTiny, 32),
}
ROLES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "variable")  # the last is LayerScale's


@dataclass(frozen=True)
class Bite:
    """One damage: what was done to which layer of the original, and which layer the comparison named."""

    damage: str
    layer: str
    named: str | None

    @property
    def right(self) -> bool:
        """Whether the damage was found where it is."""
        return self.named == self.layer


def bites(model: Any) -> list[Bite]:
    """Drop one weight of each role; swap the kernels of two layers; lose an activation: each by itself."""
    found = []
    with perturbed_weights(model):
        twin = build_twin(model)
        unsaturate(twin.graph)
        copy_weights(twin)
        if (parted := compare(model, twin).first_tensor_above(TOLERANCE)) is not None:
            raise AssertionError(f"'{parted.layer}' differs without any damage")
        for damage, layer, done in _damages(model, twin):
            with done:
                parted = compare(model, twin).first_tensor_above(TOLERANCE)
            found.append(Bite(damage, layer, parted.layer if parted else None))
    return found


def _damages(model: Any, twin: TwinModel) -> Iterator[tuple[str, str, Any]]:
    owner = {id(weight): layer.name for layer in model._flatten_layers() for weight in layer.weights}
    pairs = [(owner[id(source)], source, target) for source, target in twin.weight_pairs]
    for role in ROLES:
        matching = [pair for pair in pairs if pair[1].name == role]
        if matching:
            layer, _, target = matching[len(matching) // 2]
            neutral = 1.0 if role in ("gamma", "moving_variance") else 0.0
            yield f"dropped {role}", layer, _weights((target, np.full(target.shape, neutral)))
    if (twins := _equal(pairs)) is not None:
        (layer, _, first), (_, _, second) = twins
        yield "swapped kernels", layer, _weights((first, second.numpy()), (second, first.numpy()))
    active = [layer for layer in twin.model.layers if _activation(layer)]
    if active:
        lost = active[len(active) // 2]
        names = {name for name, _ in twin.tensors}
        yield "lost activation", max((n for n in names if lost.name.startswith(n)), key=len), _linear(lost)


def _equal(pairs: list[Any]) -> Any:
    """Two kernels of one shape, of different layers, the first in the order of computation first."""
    seen: dict[tuple[int, ...], Any] = {}
    kernels = [pair for pair in pairs if pair[1].name == "kernel"]
    for pair in kernels[len(kernels) // 3 :]:
        shape = tuple(pair[1].shape)
        if shape in seen:
            return seen[shape], pair
        seen[shape] = pair
    return None


def _activation(layer: Any) -> bool:
    if isinstance(layer, tf_keras.layers.ReLU):
        return True
    return getattr(layer, "activation", tf_keras.activations.linear) is not tf_keras.activations.linear


@contextmanager
def _weights(*changes: tuple[Any, Any]) -> Iterator[None]:
    kept = [(target, target.numpy()) for target, _ in changes]
    for target, value in changes:
        target.assign(value)
    yield
    for target, value in kept:
        target.assign(value)


@contextmanager
def _linear(layer: Any) -> Iterator[None]:
    """`layer` without what makes it nonlinear."""
    changed = {"max_value": None, "negative_slope": 1.0} if isinstance(layer, tf_keras.layers.ReLU) else {
        "activation": tf_keras.activations.linear
    }  # fmt: skip
    kept = {name: getattr(layer, name) for name in changed}
    for name, value in changed.items():
        setattr(layer, name, value)
    yield
    for name, value in kept.items():
        setattr(layer, name, value)


def main(names: list[str]) -> None:
    """Print one line a family: seconds of the bridge, tensors, the worst difference, and what bit."""
    for name in names or FAMILIES:
        model = FAMILIES[name]()
        start = time.perf_counter()
        bridged = bridge(model)
        seconds = time.perf_counter() - start
        worst = bridged.difference.worst_tensor
        found = bites(model)
        wrong = [bite for bite in found if not bite.right]
        print(
            f"{name:18} {seconds:6.1f} s {len(bridged.difference.tensors):5} {worst.relative_error:.1e} {worst.layer}: "
            f"{len(found) - len(wrong)} of {len(found)} right {wrong or ''} kept {len(bridged.keras3_notes)}",
            flush=True,
        )
        keras.backend.clear_session()


if __name__ == "__main__":
    main(sys.argv[1:])
