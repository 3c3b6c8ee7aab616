"""Builds the fake-quant model of a tf_keras model: lowered, with fake-quant on each kernel and tensor that needs it."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import QuantizeWrapperV2

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.qat.activation_placement import (
    FakeQuantPlacement,
    QuantizationRole,
    place_fake_quant,
    quantization_role,
    tflite_operator,
)
from edgepipe.compress.qat.coverage import LayerCoverage, compute_coverage
from edgepipe.compress.qat.lowering.lower import (
    LoweredModel,
    check_equal_outputs,
    find_readers,
    iter_nodes,
    lower_model,
    resolve_arguments,
)
from edgepipe.compress.qat.mask_fills import find_filled_layers
from edgepipe.compress.qat.quantizers import (
    ActivationQuantizer,
    FixedRangeQuantizer,
    KernelQuantizeConfig,
    KernelStructure,
    NonzeroQuantizer,
    WeightQuantizer,
    detect_structure,
)
from edgepipe.compress.quantizer.kernel_requirements import EQUALITY_OPERATORS
from edgepipe.core.arrays import Arrays
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.id_inputs import find_tf_keras_id_limits
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer, TfKerasModel
from edgepipe.models.port_names import output_names

K = tf_keras.layers
INVERTING_OPERATORS = frozenset({"DIV", "LOG", "RSQRT"})  # of their last argument
FAKE_QUANT_SUFFIX = "_fake_quant"


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
    layer_coverages: tuple[LayerCoverage, ...]
    kernel_structures: dict[str, KernelStructure]  # zeros and clusters that training keeps, by lowered layer


def build_fake_quant(base_model: TfKerasModel, recipe: QatRecipe, samples: Arrays | None = None) -> FakeQuantModel:
    """`base` with fake-quant and with its weights; activation ranges are not initialized yet.

    If a few `samples` are given, the lowered model is compared with `base` on them before fake-quant is added.

    Raises:
        InputError: the recipe excludes a name or type that no layer has, or the lowered model computes something else.
    """
    recipe.overrides.check(list(base_model._flatten_layers(include_self=False, recursive=True)))
    lowered_model = lower_model(base_model, recipe.overrides.is_excluded)
    difference = None if samples is None else check_equal_outputs(base_model, lowered_model.model, samples)
    builder = _FakeQuantBuilder.from_lowered(lowered_model, recipe)
    return FakeQuantModel(
        builder.build(), difference, compute_coverage(lowered_model, builder.role_by_name), builder.kernel_structures
    )


def is_fake_quant(model: object) -> bool:
    """Whether `model` is a tf_keras model with fake-quant."""
    return isinstance(model, tf_keras.Model) and bool(activation_quantize_layers(model) or kernel_wrappers(model))


@contextmanager
def constant_kernels(model: object) -> Iterator[None]:
    """Inside the block, the kernels of a fake-quant model are constants, rounded as fake-quant rounds them.

    So the converter can fold batch norms into them. Models without fake-quant are not changed.
    """
    wrappers = kernel_wrappers(model) if is_fake_quant(model) else []
    quantizers = [quantizer for wrapper in wrappers for _, quantizer, _ in wrapper._weight_vars]
    own_quantizers = [quantizer for quantizer in quantizers if isinstance(quantizer, WeightQuantizer)]
    for quantizer in own_quantizers:
        quantizer.exporting = True
    try:
        yield
    finally:
        for quantizer in own_quantizers:
            quantizer.exporting = False


def kernel_wrappers(model: TfKerasModel) -> list[TfKerasLayer]:
    """The layers of a fake-quant model with fake-quant on their kernel."""
    return [layer for layer in model.layers if isinstance(layer, QuantizeWrapperV2)]


def activation_quantize_layers(model: TfKerasModel) -> list[TfKerasLayer]:
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
    role_by_name: dict[str, QuantizationRole]
    reader_layers_by_name: dict[str, list[TfKerasLayer]]
    output_names: set[str]
    call_count_by_name: Counter[str]
    inverted_names: set[str]
    wrapper_by_name: dict[str, TfKerasLayer] = field(default_factory=dict)
    quantize_layer_by_name: dict[str, TfKerasLayer] = field(default_factory=dict)
    kernel_structures: dict[str, KernelStructure] = field(default_factory=dict)

    @classmethod
    def from_lowered(cls, lowered_model: LoweredModel, recipe: QatRecipe) -> "_FakeQuantBuilder":
        """The builder for a lowered model."""
        model = lowered_model.model
        layer_by_name = {layer.name: layer for layer in model.layers}
        role_by_name = {
            name: quantization_role(layer_by_name[name], origin.opaque_reason)
            for name, origin in lowered_model.origin_by_name.items()
            if name in layer_by_name
        }
        output_names = {tensor._keras_history.layer.name for tensor in model.outputs}
        call_count_by_name = Counter(node.layer.name for node in iter_nodes(model))
        readers_by_name = find_readers(model)
        for name in find_filled_layers(model.layers, readers_by_name, output_names):
            if role_by_name[name] != "excluded":
                role_by_name[name] = "filled"
        return cls(
            lowered_model,
            recipe,
            role_by_name,
            readers_by_name,
            output_names,
            call_count_by_name,
            _find_inverted_layers(model),
        )

    def build(self) -> TfKerasModel:
        """Call every lowered layer again, with fake-quant."""
        model = self.lowered_model.model
        id_limits = find_tf_keras_id_limits(model)
        tensor_by_id = {
            str(id(tensor)): tensor if id_limit is not None else self._quantize_input(tensor)
            for tensor, id_limit in zip(model.inputs, id_limits, strict=True)
        }
        # a number that marks masked steps equals none once it is rounded
        unrounded_by_id = {str(id(tensor)): tensor for tensor in model.inputs}
        for node in iter_nodes(model):
            args, kwargs = resolve_arguments(node, unrounded_by_id if _tests_equality(node.layer) else tensor_by_id)
            layer_outputs = self._wrap_kernel(node.layer)(*args, **kwargs)
            output_ids = [str(id(tensor)) for tensor in tf.nest.flatten(node.outputs)]
            unrounded_by_id |= zip(output_ids, tf.nest.flatten(layer_outputs), strict=True)
            rounded_outputs = self._quantize_output(node.layer, layer_outputs)
            tensor_by_id |= zip(output_ids, tf.nest.flatten(rounded_outputs), strict=True)
        outputs = [tensor_by_id[str(id(tensor))] for tensor in model.outputs]
        fake_quant_model = tf_keras.Model(model.input, outputs if len(outputs) > 1 else outputs[0], name=model.name)
        fake_quant_model.output_names = output_names(model)
        return fake_quant_model

    def _quantize_input(self, tensor: KerasTensor) -> KerasTensor:
        if not tensor.dtype.is_floating:
            return tensor
        name = f"{tensor._keras_history.layer.name}{FAKE_QUANT_SUFFIX}"
        return QuantizeLayer(ActivationQuantizer(), name=name)(tensor)

    def _quantize_output(self, layer: TfKerasLayer, output: TensorTree) -> TensorTree:
        reader_roles = [self.role_by_name[reader.name] for reader in self.reader_layers_by_name[layer.name]]
        placement = place_fake_quant(
            layer,
            self.role_by_name[layer.name],
            reader_roles,
            self.call_count_by_name[layer.name],
            layer.name in self.output_names,
        )
        if not placement.has_own_range or isinstance(output, (list, tuple)) or not output.dtype.is_floating:
            return output
        return self._get_quantize_layer(layer.name, placement)(output)

    def _wrap_kernel(self, layer: TfKerasLayer) -> TfKerasLayer:
        if self.role_by_name[layer.name] != "weighted":
            return layer
        if layer.name not in self.wrapper_by_name:
            kernel_attribute, channel_axes = locate_kernel(layer)
            detected_structure = detect_structure(np.asarray(getattr(layer, kernel_attribute)), channel_axes)
            kept_structure = KernelStructure(
                detected_structure.zero_mask if self.recipe.keep_zeros else None,
                detected_structure.cluster_indices if self.recipe.keep_clusters else None,
            )
            self.kernel_structures[layer.name] = kept_structure
            self.wrapper_by_name[layer.name] = QuantizeWrapperV2(
                layer, KernelQuantizeConfig(kernel_attribute, WeightQuantizer(channel_axes, kept_structure))
            )
        return self.wrapper_by_name[layer.name]

    def _get_quantize_layer(self, name: str, placement: FakeQuantPlacement) -> TfKerasLayer:
        if name not in self.quantize_layer_by_name:
            quantizer = NonzeroQuantizer() if name in self.inverted_names else ActivationQuantizer()
            if placement.fixed_limits is not None:
                quantizer = FixedRangeQuantizer(*placement.fixed_limits, in_training=name not in self.output_names)
            self.quantize_layer_by_name[name] = QuantizeLayer(quantizer, name=f"{name}{FAKE_QUANT_SUFFIX}")
        return self.quantize_layer_by_name[name]


def _find_inverted_layers(model: TfKerasModel) -> set[str]:
    """The layers whose output must not be zero: divisors, and what a root of the inverse or a logarithm is taken of."""
    last_arguments = [
        (node, json.loads(node.layer.arguments)["args"][-1])
        for node in iter_nodes(model)
        if isinstance(node.layer, OperatorLayer) and tflite_operator(node.layer) in INVERTING_OPERATORS
    ]
    return {
        tf.nest.flatten(node.keras_inputs)[argument["tensor"]]._keras_history.layer.name
        for node, argument in last_arguments
        if isinstance(argument, dict) and "tensor" in argument
    }


def _tests_equality(layer: TfKerasLayer) -> bool:
    return tflite_operator(layer) in EQUALITY_OPERATORS


def locate_kernel(layer: TfKerasLayer) -> tuple[str, tuple[int, ...]]:
    """The attribute that holds the kernel, and the kernel's axes of output channels."""
    if isinstance(layer, K.DepthwiseConv2D):
        return "depthwise_kernel", (2, 3)
    return "kernel", (2,) if isinstance(layer, K.Conv2DTranspose) else (len(layer.kernel.shape) - 1,)
