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

K = tf_keras.layers
FAKE_QUANT_SUFFIX = "_fake_quant"
EXPORTABLE_QUANTIZERS = (WeightQuantizer, ActivationQuantizer, FixedRange)


@dataclass(frozen=True)
class QatRecipe:
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
class FakeQuantModel:
    """A fake-quant model and what is known about it."""

    model: Any
    difference: float | None  # of the lowered model from the base, relative; None if not compared
    coverage: tuple[LayerCoverage, ...]
    kernel_structures: dict[str, KernelStructure]  # what training keeps of each kernel, by lowered layer


def build_fake_quant(base: Any, recipe: QatRecipe, samples: Any = None) -> FakeQuantModel:
    """`base` with fake-quant, its weights those of `base`; ranges of activations are not set yet.

    On `samples`, a few inputs, the lowered model is compared with `base` before fake-quant goes in.

    Raises:
        InputError: a name or a type to leave alone that no layer has; or the lowered model computes something else.
    """
    recipe.overrides.check(list(base._flatten_layers(include_self=False, recursive=True)))
    lowered_model = lower_model(base, recipe.overrides.is_excluded)
    difference = None if samples is None else check_equal(base, lowered_model.model, samples)
    builder = _FakeQuantBuilder.from_lowered(lowered_model, recipe)
    return FakeQuantModel(
        builder.build(), difference, compute_coverage(lowered_model, builder.roles), builder.kernel_structures
    )


def is_fake_quant(model: Any) -> bool:
    """Whether `model` has ranges that were trained."""
    return isinstance(model, tf_keras.Model) and bool(activation_layers(model) or kernel_wrappers(model))


@contextmanager
def export_mode(model: Any, ranges: bool = False) -> Iterator[None]:
    """Inside the block kernels pass as they are: the converter folds batch norms into them, then quantizes them.

    With `ranges` activations pass as they are too: the model computes in float, with the weights it was trained to.
    Other models than fake-quant ones stay what they are.
    """
    quantizers = _exportable_quantizers(model, ranges) if is_fake_quant(model) else []
    for quantizer in quantizers:
        quantizer.exporting = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.exporting = False


def _exportable_quantizers(model: Any, ranges: bool) -> list[Any]:
    kernels = [quantizer for wrapper in kernel_wrappers(model) for _, quantizer, _ in wrapper._weight_vars]
    activations = [layer.quantizer for layer in activation_layers(model)] if ranges else []
    return [quantizer for quantizer in (*kernels, *activations) if isinstance(quantizer, EXPORTABLE_QUANTIZERS)]


def trained_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Low and high of each activation of a fake-quant model, by the name of the layer that gives it; else nothing."""
    layers = activation_layers(model) if is_fake_quant(model) else []
    return {layer.name.removesuffix(FAKE_QUANT_SUFFIX): read_fake_quant_range(layer).real_limits for layer in layers}


def kernel_wrappers(model: Any) -> list[Any]:
    """The layers of a fake-quant model whose kernel is fake-quantized."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]


def activation_layers(model: Any) -> list[Any]:
    """The layers of a fake-quant model that give one tensor its range, in the order of computation."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeLayer)]


def freeze_batch_norms(model: Any) -> list[str]:
    """Let every BatchNormalization compute with its moving statistics, in training too; their names."""
    batch_norms = [layer for layer in model.layers if isinstance(layer, K.BatchNormalization)]
    for layer in batch_norms:
        layer.trainable = False
    return [layer.name for layer in batch_norms]


@dataclass
class _FakeQuantBuilder:
    lowered_model: LoweredModel
    recipe: QatRecipe
    roles: dict[str, Role]
    readers_by_name: dict[str, list[Any]]
    output_names: set[str]
    call_counts: Counter[str]
    wrappers_by_name: dict[str, Any] = field(default_factory=dict)
    quantizers: dict[str, Any] = field(default_factory=dict)
    kernel_structures: dict[str, KernelStructure] = field(default_factory=dict)

    @classmethod
    def from_lowered(cls, lowered_model: LoweredModel, recipe: QatRecipe) -> "_FakeQuantBuilder":
        """The builder for a lowered model."""
        roles = {name: quantization_role(lowered_model.model.get_layer(name), origin.opaque_reason) for name, origin in lowered_model.origins.items()
                 if name in {layer.name for layer in lowered_model.model.layers}}  # fmt: skip
        output_names = {tensor._keras_history.layer.name for tensor in lowered_model.model.outputs}
        call_counts = Counter(node.layer.name for node in nodes(lowered_model.model))
        return cls(lowered_model, recipe, roles, find_readers(lowered_model.model), output_names, call_counts)

    def build(self) -> Any:
        """Call every lowered layer again, with its fake-quant."""
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

    def _quantize_input(self, tensor: Any) -> Any:
        if not tensor.dtype.is_floating:
            return tensor
        return QuantizeLayer(ActivationQuantizer(), name=f"{tensor._keras_history.layer.name}{FAKE_QUANT_SUFFIX}")(
            tensor
        )

    def _call_layer(self, layer: Any, args: Any, kwargs: Any) -> Any:
        output = self._wrap_kernel(layer)(*args, **kwargs)
        reader_roles = [self.roles[reader.name] for reader in self.readers_by_name[layer.name]]
        placement = place_fake_quant(
            layer, self.roles[layer.name], reader_roles, self.call_counts[layer.name], layer.name in self.output_names
        )
        if not placement.has_range or isinstance(output, (list, tuple)) or not output.dtype.is_floating:
            return output
        return self._activation_quantizer(layer.name, placement)(output)

    def _wrap_kernel(self, layer: Any) -> Any:
        if self.roles[layer.name] != "weighted":
            return layer
        if layer.name not in self.wrappers_by_name:
            attribute, axis = locate_kernel(layer)
            structure = detect_structure(np.asarray(getattr(layer, attribute)), axis)
            kept_structure = KernelStructure(structure.zero_mask if self.recipe.keep_zeros else None,
                        structure.cluster_index if self.recipe.keep_clusters else None)  # fmt: skip
            self.kernel_structures[layer.name] = kept_structure
            self.wrappers_by_name[layer.name] = QuantizeWrapperV2(
                layer, KernelQuantizeConfig(attribute, WeightQuantizer(axis, kept_structure))
            )
        return self.wrappers_by_name[layer.name]

    def _activation_quantizer(self, name: str, placement: FakeQuantPlacement) -> Any:
        if name not in self.quantizers:
            quantizer = ActivationQuantizer()
            if placement.limits is not None:
                quantizer = FixedRange(*placement.limits, in_training=name not in self.output_names)
            self.quantizers[name] = QuantizeLayer(quantizer, name=f"{name}{FAKE_QUANT_SUFFIX}")
        return self.quantizers[name]


def locate_kernel(layer: Any) -> tuple[str, tuple[int, ...]]:
    """The attribute that holds the kernel, and the axes of it that output channels lie on."""
    if isinstance(layer, K.DepthwiseConv2D):
        return "depthwise_kernel", (2, 3)
    return "kernel", (2,) if isinstance(layer, K.Conv2DTranspose) else (len(layer.kernel.shape) - 1,)
