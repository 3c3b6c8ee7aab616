"""Builds the fake-quant model of a tf_keras model: lowered, with fake-quant on each kernel and tensor that needs it."""

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
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.activation_placement import FakeQuantPlacement, Role, place_fake_quant, quantization_role
from edgepipe.compress.qat.coverage import LayerCoverage, compute_coverage
from edgepipe.compress.qat.lowering.lower import (
    LoweredModel,
    check_equal,
    find_readers,
    lower_model,
    nodes,
    resolve_arguments,
)
from edgepipe.compress.qat.quantizers import (
    ActivationQuantizer,
    FixedRange,
    KernelQuantizeConfig,
    KernelStructure,
    WeightQuantizer,
    detect_structure,
)
from edgepipe.compress.qat.scales import read_fake_quant_range
from edgepipe.core.arrays import Arrays
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer, TfKerasModel

K = tf_keras.layers
FAKE_QUANT_SUFFIX = "_fake_quant"
EXPORTABLE_QUANTIZERS = (WeightQuantizer, ActivationQuantizer, FixedRange)


@dataclass(frozen=True)
class QatRecipe:
    """The options that, with the base model, determine the fake-quant model."""

    keep_zeros: bool = True
    keep_clusters: bool = True
    excluded_layers: tuple[str, ...] = ()  # regular expressions that match whole layer names
    excluded_types: tuple[str, ...] = ()  # layer classes

    @property
    def overrides(self) -> Overrides[None]:
        """The layers that the user excludes from fake-quant."""
        return Overrides(dict.fromkeys(self.excluded_types), dict.fromkeys(self.excluded_layers))


@dataclass(frozen=True)
class FakeQuantModel:
    """A fake-quant model, how it was verified, and which layers it covers."""

    model: TfKerasModel
    difference: float | None  # relative, of the lowered model from the base; None if not compared
    coverage: tuple[LayerCoverage, ...]
    kernel_structures: dict[str, KernelStructure]  # zeros and clusters that training keeps, by lowered layer


def build_fake_quant(base: TfKerasModel, recipe: QatRecipe, samples: Arrays | None = None) -> FakeQuantModel:
    """`base` with fake-quant and with its weights; activation ranges are not initialized yet.

    If a few `samples` are given, the lowered model is compared with `base` on them before fake-quant is added.

    Raises:
        InputError: the recipe excludes a name or type that no layer has, or the lowered model computes something else.
    """
    recipe.overrides.check(list(base._flatten_layers(include_self=False, recursive=True)))
    lowered_model = lower_model(base, recipe.overrides.is_excluded)
    difference = None if samples is None else check_equal(base, lowered_model.model, samples)
    builder = _FakeQuantBuilder.from_lowered(lowered_model, recipe)
    return FakeQuantModel(
        builder.build(), difference, compute_coverage(lowered_model, builder.roles), builder.kernel_structures
    )


def is_fake_quant(model: object) -> bool:
    """Whether `model` is a tf_keras model with fake-quant."""
    return isinstance(model, tf_keras.Model) and bool(activation_layers(model) or kernel_wrappers(model))


@contextmanager
def export_mode(model: object, ranges: bool = False) -> Iterator[None]:
    """Disable fake-quant of kernels inside the block: the converter folds batch norms into them, then quantizes them.

    With `ranges`, fake-quant of activations is disabled too: the model computes in float with its trained weights.
    Models without fake-quant are not changed.
    """
    quantizers = _exportable_quantizers(model, ranges) if is_fake_quant(model) else []
    for quantizer in quantizers:
        quantizer.exporting = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.exporting = False


def _exportable_quantizers(model: TfKerasModel, ranges: bool) -> list[Quantizer]:
    kernels = [quantizer for wrapper in kernel_wrappers(model) for _, quantizer, _ in wrapper._weight_vars]
    activations = [layer.quantizer for layer in activation_layers(model)] if ranges else []
    return [quantizer for quantizer in (*kernels, *activations) if isinstance(quantizer, EXPORTABLE_QUANTIZERS)]


def trained_ranges(model: object) -> dict[str, tuple[float, float]]:
    """(low, high) of each activation of a fake-quant model, by the name of its layer; empty for other models."""
    layers = activation_layers(model) if is_fake_quant(model) else []
    return {layer.name.removesuffix(FAKE_QUANT_SUFFIX): read_fake_quant_range(layer).real_limits for layer in layers}


def kernel_wrappers(model: TfKerasModel) -> list[TfKerasLayer]:
    """The layers of a fake-quant model with fake-quant on their kernel."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]


def activation_layers(model: TfKerasModel) -> list[TfKerasLayer]:
    """The fake-quant layers of activations, in the order of computation."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeLayer)]


def freeze_batch_norms(model: TfKerasModel) -> list[str]:
    """Make every BatchNormalization use its moving statistics in training too; returns their names."""
    batch_norms = [layer for layer in model.layers if isinstance(layer, K.BatchNormalization)]
    for layer in batch_norms:
        layer.trainable = False
    return [layer.name for layer in batch_norms]


@dataclass
class _FakeQuantBuilder:
    lowered_model: LoweredModel
    recipe: QatRecipe
    roles: dict[str, Role]
    readers_by_name: dict[str, list[TfKerasLayer]]
    output_names: set[str]
    call_counts: Counter[str]
    wrappers_by_name: dict[str, TfKerasLayer] = field(default_factory=dict)
    quantizers: dict[str, TfKerasLayer] = field(default_factory=dict)
    kernel_structures: dict[str, KernelStructure] = field(default_factory=dict)

    @classmethod
    def from_lowered(cls, lowered_model: LoweredModel, recipe: QatRecipe) -> "_FakeQuantBuilder":
        """The builder for a lowered model."""
        model = lowered_model.model
        layer_by_name = {layer.name: layer for layer in model.layers}
        roles = {
            name: quantization_role(layer_by_name[name], origin.opaque_reason)
            for name, origin in lowered_model.origins.items()
            if name in layer_by_name
        }
        output_names = {tensor._keras_history.layer.name for tensor in model.outputs}
        call_counts = Counter(node.layer.name for node in nodes(model))
        return cls(lowered_model, recipe, roles, find_readers(model), output_names, call_counts)

    def build(self) -> TfKerasModel:
        """Call every lowered layer again, with fake-quant."""
        model = self.lowered_model.model
        tensor_by_id = {str(id(tensor)): self._quantize_input(tensor) for tensor in model.inputs}
        for node in nodes(model):
            args, kwargs = resolve_arguments(node, tensor_by_id)
            layer_outputs = self._call_layer(node.layer, args, kwargs)
            for tensor, new_tensor in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(layer_outputs), strict=True):
                tensor_by_id[str(id(tensor))] = new_tensor
        outputs = [tensor_by_id[str(id(tensor))] for tensor in model.outputs]
        twin = tf_keras.Model(model.input, outputs if len(outputs) > 1 else outputs[0], name=model.name)
        twin.output_names = list(model.output_names)
        return twin

    def _quantize_input(self, tensor: KerasTensor) -> KerasTensor:
        if not tensor.dtype.is_floating:
            return tensor
        name = f"{tensor._keras_history.layer.name}{FAKE_QUANT_SUFFIX}"
        return QuantizeLayer(ActivationQuantizer(), name=name)(tensor)

    def _call_layer(self, layer: TfKerasLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
        output = self._wrap_kernel(layer)(*args, **kwargs)
        reader_roles = [self.roles[reader.name] for reader in self.readers_by_name[layer.name]]
        placement = place_fake_quant(
            layer, self.roles[layer.name], reader_roles, self.call_counts[layer.name], layer.name in self.output_names
        )
        if not placement.has_range or isinstance(output, (list, tuple)) or not output.dtype.is_floating:
            return output
        return self._activation_quantizer(layer.name, placement)(output)

    def _wrap_kernel(self, layer: TfKerasLayer) -> TfKerasLayer:
        if self.roles[layer.name] != "weighted":
            return layer
        if layer.name not in self.wrappers_by_name:
            attribute, axis = locate_kernel(layer)
            structure = detect_structure(np.asarray(getattr(layer, attribute)), axis)
            kept_structure = KernelStructure(
                structure.zero_mask if self.recipe.keep_zeros else None,
                structure.cluster_index if self.recipe.keep_clusters else None,
            )
            self.kernel_structures[layer.name] = kept_structure
            self.wrappers_by_name[layer.name] = QuantizeWrapperV2(
                layer, KernelQuantizeConfig(attribute, WeightQuantizer(axis, kept_structure))
            )
        return self.wrappers_by_name[layer.name]

    def _activation_quantizer(self, name: str, placement: FakeQuantPlacement) -> TfKerasLayer:
        if name not in self.quantizers:
            quantizer = ActivationQuantizer()
            if placement.limits is not None:
                quantizer = FixedRange(*placement.limits, in_training=name not in self.output_names)
            self.quantizers[name] = QuantizeLayer(quantizer, name=f"{name}{FAKE_QUANT_SUFFIX}")
        return self.quantizers[name]


def locate_kernel(layer: TfKerasLayer) -> tuple[str, tuple[int, ...]]:
    """The attribute that holds the kernel, and the kernel's axes of output channels."""
    if isinstance(layer, K.DepthwiseConv2D):
        return "depthwise_kernel", (2, 3)
    return "kernel", (2,) if isinstance(layer, K.Conv2DTranspose) else (len(layer.kernel.shape) - 1,)
