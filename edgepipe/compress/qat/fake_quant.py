"""The fake-quant model of a tf_keras model: lowered, fake-quant on each kernel and tensor that needs it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.activation_placement import Placement, Role, place, role
from edgepipe.compress.qat.coverage import Coverage, cover
from edgepipe.compress.qat.lowering.lower import Lowered, arguments, check_equal, lower, nodes, readers
from edgepipe.compress.qat.quantizers import ActivationQuantizer, FixedRange, Ties, WeightQuantizer, WeightsOnly, ties
from edgepipe.compress.qat.scales import fake_range

K = tf_keras.layers
SUFFIX = "_fake_quant"
EXPORTING = (WeightQuantizer, ActivationQuantizer, FixedRange)


@dataclass(frozen=True)
class Recipe:
    """What decides, besides the base model, how its fake-quant model is built."""

    keep_zeros: bool = True
    keep_clusters: bool = True
    leave: tuple[str, ...] = ()  # regular expressions of layer names, whole
    leave_types: tuple[str, ...] = ()  # layer classes

    @property
    def overrides(self) -> Overrides[None]:
        """Which layers get no fake-quant because the user says so."""
        return Overrides(dict.fromkeys(self.leave_types), dict.fromkeys(self.leave))


@dataclass(frozen=True)
class FakeQuant:
    """A fake-quant model and what is known about it."""

    model: Any
    difference: float | None  # of the lowered model from the base, relative; None if not compared
    coverage: tuple[Coverage, ...]
    held: dict[str, Ties]  # what training keeps of each kernel, by lowered layer


def fake_quant(base: Any, recipe: Recipe, samples: Any = None) -> FakeQuant:
    """`base` with fake-quant, its weights those of `base`; ranges of activations are not set yet.

    On `samples`, a few inputs, the lowered model is compared with `base` before fake-quant goes in.

    Raises:
        InputError: a name or a type to leave alone that no layer has; or the lowered model computes something else.
    """
    recipe.overrides.check(list(base._flatten_layers(include_self=False, recursive=True)))
    lowered = lower(base, recipe.overrides.left_alone)
    difference = None if samples is None else check_equal(base, lowered.model, samples)
    builder = _Builder.of(lowered, recipe)
    return FakeQuant(builder.build(), difference, cover(lowered, builder.roles), builder.held)


def is_fake_quant(model: Any) -> bool:
    """Whether `model` has ranges that were trained."""
    return isinstance(model, tf_keras.Model) and bool(activation_layers(model) or wrappers(model))


@contextmanager
def exporting(model: Any, ranges: bool = False) -> Iterator[None]:
    """Inside the block kernels pass as they are: the converter folds batch norms into them, then quantizes them.

    With `ranges` activations pass as they are too: the model computes in float, with the weights it was trained to.
    Other models than fake-quant ones stay what they are.
    """
    found = _quantizers(model, ranges) if is_fake_quant(model) else []
    for quantizer in found:
        quantizer.exporting = True
    try:
        yield
    finally:
        for quantizer in found:
            quantizer.exporting = False


def _quantizers(model: Any, ranges: bool) -> list[Any]:
    kernels = [quantizer for wrapper in wrappers(model) for _, quantizer, _ in wrapper._weight_vars]
    activations = [layer.quantizer for layer in activation_layers(model)] if ranges else []
    return [quantizer for quantizer in (*kernels, *activations) if isinstance(quantizer, EXPORTING)]


def trained_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Low and high of each activation of a fake-quant model, by the name of the layer that gives it; else nothing."""
    layers = activation_layers(model) if is_fake_quant(model) else []
    return {layer.name.removesuffix(SUFFIX): fake_range(layer).ends for layer in layers}


def wrappers(model: Any) -> list[Any]:
    """The layers of a fake-quant model whose kernel is fake-quantized."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]


def activation_layers(model: Any) -> list[Any]:
    """The layers of a fake-quant model that give one tensor its range, in the order of computation."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeLayer)]


def freeze_batch_norms(model: Any) -> list[str]:
    """Let every BatchNormalization compute with its moving statistics, in training too; their names."""
    found = [layer for layer in model.layers if isinstance(layer, K.BatchNormalization)]
    for layer in found:
        layer.trainable = False
    return [layer.name for layer in found]


@dataclass
class _Builder:
    lowered: Lowered
    recipe: Recipe
    roles: dict[str, Role]
    read_by: dict[str, list[Any]]
    outputs: set[str]
    calls: Counter[str]
    wrapped: dict[str, Any] = field(default_factory=dict)
    quantizers: dict[str, Any] = field(default_factory=dict)
    held: dict[str, Ties] = field(default_factory=dict)

    @classmethod
    def of(cls, lowered: Lowered, recipe: Recipe) -> "_Builder":
        """The builder for a lowered model."""
        roles = {name: role(lowered.model.get_layer(name), origin.whole) for name, origin in lowered.origins.items()
                 if name in {layer.name for layer in lowered.model.layers}}  # fmt: skip
        outputs = {tensor._keras_history.layer.name for tensor in lowered.model.outputs}
        calls = Counter(node.layer.name for node in nodes(lowered.model))
        return cls(lowered, recipe, roles, readers(lowered.model), outputs, calls)

    def build(self) -> Any:
        """Call every lowered layer again, with its fake-quant."""
        model = self.lowered.model
        values = {str(id(tensor)): self._input(tensor) for tensor in model.inputs}
        for node in nodes(model):
            args, kwargs = arguments(node, values)
            result = self._call(node.layer, args, kwargs)
            for tensor, value in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(result), strict=True):
                values[str(id(tensor))] = value
        outputs = [values[str(id(tensor))] for tensor in model.outputs]
        twin = tf_keras.Model(model.input, outputs if len(outputs) > 1 else outputs[0], name=model.name)
        twin.output_names = list(model.output_names)
        return twin

    def _input(self, tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        return QuantizeLayer(ActivationQuantizer(), name=f"{tensor._keras_history.layer.name}{SUFFIX}")(tensor)

    def _call(self, layer: Any, args: Any, kwargs: Any) -> Any:
        result = self._wrapped(layer)(*args, **kwargs)
        following = [self.roles[reader.name] for reader in self.read_by[layer.name]]
        placed = place(layer, self.roles[layer.name], following, self.calls[layer.name], layer.name in self.outputs)
        if not placed.ranged or isinstance(result, (list, tuple)) or not result.dtype.is_floating:
            return result
        return self._quantizer(layer.name, placed)(result)

    def _wrapped(self, layer: Any) -> Any:
        if self.roles[layer.name] != "weighted":
            return layer
        if layer.name not in self.wrapped:
            attribute, axis = kernel_of(layer)
            found = ties(np.asarray(getattr(layer, attribute)), axis)
            kept = Ties(found.zero if self.recipe.keep_zeros else None,
                        found.cluster if self.recipe.keep_clusters else None)  # fmt: skip
            self.held[layer.name] = kept
            self.wrapped[layer.name] = QuantizeWrapperV2(layer, WeightsOnly(attribute, WeightQuantizer(axis, kept)))
        return self.wrapped[layer.name]

    def _quantizer(self, name: str, placed: Placement) -> Any:
        if name not in self.quantizers:
            chosen = ActivationQuantizer()
            if placed.limits is not None:
                chosen = FixedRange(*placed.limits, in_training=name not in self.outputs)
            self.quantizers[name] = QuantizeLayer(chosen, name=f"{name}{SUFFIX}")
        return self.quantizers[name]


def kernel_of(layer: Any) -> tuple[str, tuple[int, ...]]:
    """The attribute that holds the kernel, and the axes of it that output channels lie on."""
    if isinstance(layer, K.DepthwiseConv2D):
        return "depthwise_kernel", (2, 3)
    return "kernel", (2,) if isinstance(layer, K.Conv2DTranspose) else (len(layer.kernel.shape) - 1,)
