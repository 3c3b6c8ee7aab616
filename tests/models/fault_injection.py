"""Fault injection for the bridge's check: damage a bridged model in one place, and see whether that place is reported.

Used by the tests; `python tests/models/fault_injection.py [FAMILY ..]` runs it over all model families.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tf_keras

from edgepipe.models.bridge import TOLERANCE, TwinModel, bridge, build_twin, compare, copy_weights, unsaturate
from edgepipe.models.perturb import perturbed_weights

A = keras.applications


def _with_head(application: Callable[..., Any], size: int) -> Callable[[], Any]:
    return lambda: application(input_shape=(size, size, 3), weights=None, classes=10)


# every family at the smallest input that keras.applications allows for it with its head on
FAMILIES: dict[str, Callable[[], Any]] = {
    "MobileNet": _with_head(A.MobileNet, 32),
    "MobileNetV2": _with_head(A.MobileNetV2, 32),
    "MobileNetV3Small": _with_head(A.MobileNetV3Small, 32),
    "MobileNetV3Large": _with_head(A.MobileNetV3Large, 32),
    "EfficientNetB0": _with_head(A.EfficientNetB0, 32),
    "EfficientNetV2B0": _with_head(A.EfficientNetV2B0, 32),
    "ResNet50": _with_head(A.ResNet50, 32),
    "ResNet50V2": _with_head(A.ResNet50V2, 32),
    "DenseNet121": _with_head(A.DenseNet121, 32),
    "NASNetMobile": _with_head(A.NASNetMobile, 32),
    "Xception": _with_head(A.Xception, 71),
    "InceptionV3": _with_head(A.InceptionV3, 75),
    "VGG16": _with_head(A.VGG16, 32),
    "ConvNeXtTiny": _with_head(A.ConvNeXtTiny, 32),
}
ROLES = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "variable")  # the last is LayerScale's


@dataclass(frozen=True)
class InjectedFault:
    """One fault: what was damaged, in which layer of the original, and which layer the comparison reported."""

    damage: str
    layer: str
    reported_layer: str | None

    @property
    def is_located(self) -> bool:
        """Whether the fault was reported where it is."""
        return self.reported_layer == self.layer


def inject_faults(model: Any) -> list[InjectedFault]:
    """Drop one weight of each role, swap the kernels of two layers, remove an activation: one fault at a time."""
    faults = []
    with perturbed_weights(model):
        twin = build_twin(model)
        unsaturate(twin.graph)
        copy_weights(twin)
        if (wrong_tensor := compare(model, twin).first_difference_above(TOLERANCE)) is not None:
            raise AssertionError(f"'{wrong_tensor.layer_name}' differs without any damage")
        for damage, layer, damaged in _damages(model, twin):
            with damaged:
                wrong_tensor = compare(model, twin).first_difference_above(TOLERANCE)
            faults.append(InjectedFault(damage, layer, wrong_tensor.layer_name if wrong_tensor else None))
    return faults


def _damages(model: Any, twin: TwinModel) -> Iterator[tuple[str, str, AbstractContextManager[None]]]:
    layer_by_weight = {id(weight): layer.name for layer in model._flatten_layers() for weight in layer.weights}
    weights = [(layer_by_weight[id(source)], source, target) for source, target in twin.weight_pairs]
    for role in ROLES:
        role_weights = [entry for entry in weights if entry[1].name == role]
        if role_weights:
            layer, _, target = role_weights[len(role_weights) // 2]
            neutral = 1.0 if role in ("gamma", "moving_variance") else 0.0
            yield f"dropped {role}", layer, _replaced_weights((target, np.full(target.shape, neutral)))
    if (kernels := _same_shape_kernels(weights)) is not None:
        (layer, _, kernel), (_, _, later_kernel) = kernels
        yield (
            "swapped kernels",
            layer,
            _replaced_weights((kernel, later_kernel.numpy()), (later_kernel, kernel.numpy())),
        )
    active_layers = [layer for layer in twin.model.layers if _has_activation(layer)]
    if active_layers:
        active_layer = active_layers[len(active_layers) // 2]
        names = {name for name, _ in twin.named_tensors if active_layer.name.startswith(name)}
        yield "lost activation", max(names, key=len), _without_activation(active_layer)


def _same_shape_kernels(weights: list[Any]) -> Any:
    """Two kernels of the same shape, of different layers, in the order of computation; None if there are none."""
    kernel_by_shape: dict[tuple[int, ...], Any] = {}
    kernels = [entry for entry in weights if entry[1].name == "kernel"]
    for entry in kernels[len(kernels) // 3 :]:
        shape = tuple(entry[1].shape)
        if shape in kernel_by_shape:
            return kernel_by_shape[shape], entry
        kernel_by_shape[shape] = entry
    return None


def _has_activation(layer: Any) -> bool:
    if isinstance(layer, tf_keras.layers.ReLU):
        return True
    return getattr(layer, "activation", tf_keras.activations.linear) is not tf_keras.activations.linear


@contextmanager
def _replaced_weights(*replacements: tuple[Any, Any]) -> Iterator[None]:
    originals = [(target, target.numpy()) for target, _ in replacements]
    for target, array in replacements:
        target.assign(array)
    yield
    for target, array in originals:
        target.assign(array)


@contextmanager
def _without_activation(layer: Any) -> Iterator[None]:
    """`layer` without its nonlinearity."""
    linear_options = {"max_value": None, "negative_slope": 1.0} if isinstance(layer, tf_keras.layers.ReLU) else {
        "activation": tf_keras.activations.linear
    }  # fmt: skip
    original_options = {name: getattr(layer, name) for name in linear_options}
    for name, option in linear_options.items():
        setattr(layer, name, option)
    yield
    for name, option in original_options.items():
        setattr(layer, name, option)


def main(names: list[str]) -> None:
    """Print one line per family: seconds of the bridge, tensors, the worst difference, and the located faults."""
    for name in names or FAMILIES:
        model = FAMILIES[name]()
        start = time.perf_counter()
        bridged_model = bridge(model)
        seconds = time.perf_counter() - start
        worst = bridged_model.difference.worst_difference
        faults = inject_faults(model)
        missed = [fault for fault in faults if not fault.is_located]
        print(
            f"{name:18} {seconds:6.1f} s {len(bridged_model.difference.tensor_differences):5} "
            f"{worst.relative_error:.1e} {worst.layer_name}: "
            f"{len(faults) - len(missed)} of {len(faults)} faults located {missed or ''} "
            f"kept {len(bridged_model.keras3_notes)}",
            flush=True,
        )
        keras.backend.clear_session()


if __name__ == "__main__":
    main(sys.argv[1:])
