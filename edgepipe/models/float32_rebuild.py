"""Rebuilds a model whose layers compute in other floats (mixed_float16, float64 ..) in float32, and proves it equal.

TFLite has float32 kernels only, and quantization starts from float32. The model is built anew from its configuration
with every policy set to float32. With *every* weight perturbed, each of its tensors is then compared with that of the
original, whose layers compute in float32 for the comparison: what the two policies round differently does not hide a
mistake. Where the original cannot do so (tf_keras with half-precision variables), it computes in its own floats, and as
much is allowed as those round.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from keras.src.backend import AutocastScope

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.models import custom_objects
from edgepipe.models.bridge import TOLERANCE, random_batch, relative_difference
from edgepipe.models.dtype_policies import (
    OTHER_FLOAT_POLICIES,
    as_float32,
    check_not_quantized,
    describe_float_policies,
)
from edgepipe.models.id_inputs import find_id_limits, find_tf_keras_id_limits
from edgepipe.models.input_shapes import input_name
from edgepipe.models.keras3_graph import build_graph
from edgepipe.models.keras_types import AnyKerasLayer, AnyKerasModel, KerasOperation, KerasTensor, Tensor
from edgepipe.models.perturb import perturbed_weights, refresh_normalization

_ROUNDINGS_ALLOWED = 32  # of the coarsest float, in a tensor that the original computes in its own floats
_STEP_BY_DTYPE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 0.0}


@dataclass(frozen=True)
class Float32Model:
    """A model that computes in float32, and a note on its policies and the proof; empty if it did so before."""

    model: AnyKerasModel
    note: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """The note, if there is one."""
        return (self.note,) if self.note else ()


def in_float32(model: AnyKerasModel) -> Float32Model:
    """`model` itself if it computes in float32, else the same model under the policy float32.

    The weights of `model` are perturbed for the comparison and restored.

    Args:
        model: a built Keras 3 or tf_keras model.

    Raises:
        InputError: Keras has quantized layers of it, it cannot be built from its configuration, or the new model
            computes something else.
    """
    if not getattr(model, "inputs", None) or not _computes_in_other_types(model):
        return Float32Model(model)
    with float32_by_default():
        config = _serialize(model)
        check_not_quantized(f"'{model.name}'", config)
        float32_model = _build_in_float32(model, config)
        proof_text = _prove_equal(model, float32_model)
        _copy_weights(model, float32_model)
        own_floats_text = _own_floats_text(model, float32_model)
    policies_text = describe_float_policies(config) or "inputs or casts in other floats than float32"
    return Float32Model(float32_model, f"{policies_text}: rebuilt in float32; {proof_text}; {own_floats_text}")


def _computes_in_other_types(model: AnyKerasModel) -> bool:
    """Whether a layer's policy, or a tensor between layers, is neither float32 nor an integer."""
    policies = [getattr(layer, "dtype_policy", None) for layer in _all_layers(model)]
    policies += [policy for mapped in policies for policy in getattr(mapped, "values", list)()]
    if any(getattr(policy, "quantization_mode", None) for policy in policies):
        return True
    tensors = [tensor for tensor in (*model.inputs, *_tensors(model)) if hasattr(tensor, "dtype")]
    names = {str(getattr(policy, "name", "")) for policy in policies}
    names |= {tf.as_dtype(tensor.dtype).name for tensor in tensors}
    return not OTHER_FLOAT_POLICIES.isdisjoint(names)


def _all_layers(model: AnyKerasModel) -> list[AnyKerasLayer]:
    return list(model._flatten_layers())


def _tensors(model: AnyKerasModel) -> list[KerasTensor]:
    return [tensor for _, tensor in _inner_tensors(model)]


def _inner_tensors(model: AnyKerasModel) -> list[tuple[str, KerasTensor]]:
    """(layer, symbolic output) of every call in the graph of `model`, in the order of computation."""
    nodes_by_depth = getattr(getattr(model, "_functional", None) or model, "_nodes_by_depth", {})
    nodes = [node for depth in sorted(nodes_by_depth, reverse=True) for node in nodes_by_depth[depth]]
    if isinstance(model, keras.Model):
        return [(node.operation.name, tensor) for node in nodes for tensor in node.output_tensors]
    return [(node.layer.name, tensor) for node in nodes for tensor in tf.nest.flatten(node.outputs)]


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Layers without a policy of their own are built in float32 inside the block."""
    previous_policies = keras.config.dtype_policy(), tf_keras.mixed_precision.global_policy()
    keras.config.set_dtype_policy("float32")
    tf_keras.mixed_precision.set_global_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous_policies[0])
        # The default policy follows `set_floatx` only as long as none is set.
        was_default = previous_policies[1].name == tf_keras.backend.floatx()
        tf_keras.mixed_precision.set_global_policy(None if was_default else previous_policies[1])


def _serialize(model: AnyKerasModel) -> Any:
    keras_package: Any = keras if isinstance(model, keras.Model) else tf_keras
    return keras_package.saving.serialize_keras_object(model)


def _build_in_float32(model: AnyKerasModel, config: Any) -> AnyKerasModel:
    """The model of `config` under the policy float32, with weights of the same shapes as those of `model`."""
    keras_package: Any = keras if isinstance(model, keras.Model) else tf_keras
    classes = {type(layer).__name__: type(layer) for layer in _all_layers(model) if not _is_own_class(layer)}
    float32_config = {key: entry for key, entry in as_float32(config).items() if key != "compile_config"}
    try:
        float32_model = keras_package.saving.deserialize_keras_object(
            float32_config, custom_objects={**classes, **custom_objects.active_objects()}, safe_mode=False
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"'{model.name}' has the {describe_float_policies(config)} and cannot be rebuilt in float32: "
            f"{type(error).__name__}: {reason[:200]}; build it under the policy float32 and load its weights"
        ) from error
    shapes, float32_shapes = ([tuple(weight.shape) for weight in m.weights] for m in (model, float32_model))
    if shapes != float32_shapes:
        raise InputError(
            f"'{model.name}' rebuilt in float32 has weights of shapes {float32_shapes}, not {shapes}; build it under "
            "the policy float32 and load its weights"
        )
    return float32_model


def _is_own_class(layer: AnyKerasLayer) -> bool:
    return type(layer).__module__.partition(".")[0] in ("keras", "tf_keras")


def _copy_weights(model: AnyKerasModel, float32_model: AnyKerasModel) -> None:
    for weight, float32_weight in zip(model.weights, float32_model.weights, strict=True):
        array = np.asarray(weight)
        float32_weight.assign(array.astype(np.float32) if _is_floating(array) else array)
    refresh_normalization(float32_model)


def _is_floating(array: Array) -> bool:
    return bool(tf.as_dtype(array.dtype).is_floating)


@dataclass(frozen=True)
class _Comparison:
    """The largest relative difference of each tensor, by layer, and how much is allowed."""

    floats: str  # that the original computed in
    layer_errors: tuple[tuple[str, float], ...]
    tolerance: float

    @property
    def first_wrong_layer(self) -> tuple[str, float] | None:
        """The first layer whose output differs by more than is allowed, and by how much."""
        return next((pair for pair in self.layer_errors if not pair[1] <= self.tolerance), None)

    def text(self) -> str:
        """For a note."""
        return (
            f"{plural(len(self.layer_errors), 'tensor')} compared with the original computed in {self.floats}, under "
            f"perturbed weights, largest relative difference {max(error for _, error in self.layer_errors):.1e} "
            f"(allowed {self.tolerance:.0e})"
        )


def _prove_equal(model: AnyKerasModel, float32_model: AnyKerasModel) -> str:
    """Compare all tensors under perturbed weights; says how, and the largest difference.

    Raises:
        InputError: a tensor differs by more than is allowed.
    """
    with perturbed_weights(model):
        _copy_weights(model, float32_model)
        comparison = _compare_in_float32(model, float32_model)
        if comparison is None or comparison.first_wrong_layer is not None:
            comparison = _compare_in_own_floats(model, float32_model)
    if comparison.first_wrong_layer is not None:
        layer_name, error = comparison.first_wrong_layer
        raise InputError(
            f"'{model.name}' rebuilt in float32 is wrong from layer '{layer_name}' on: its output differs by "
            f"{error:.1e} of its largest value (allowed {comparison.tolerance:.0e}); build the model under the policy "
            "float32 and load its weights"
        )
    return comparison.text()


def _compare_in_float32(model: AnyKerasModel, float32_model: AnyKerasModel) -> _Comparison | None:
    """The comparison with the original computed in float32; None if it does not run so."""
    if not isinstance(model, keras.Model) and any(map(_is_bound_to_its_floats, _all_layers(model))):
        return None
    try:
        with _computing_in_float32(model):
            layer_errors = _layer_errors(model, float32_model)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError):  # a constant in floats of its own
        return None
    return _Comparison("float32", layer_errors, TOLERANCE)


def _compare_in_own_floats(model: AnyKerasModel, float32_model: AnyKerasModel) -> _Comparison:
    """The comparison with the original as it is."""
    coarsest_step = max(_STEP_BY_DTYPE.get(tf.as_dtype(tensor.dtype).name, 0.0) for tensor in _tensors(model))
    tolerance = max(TOLERANCE, _ROUNDINGS_ALLOWED * coarsest_step)
    return _Comparison("its own floats", _layer_errors(model, float32_model), tolerance)


def _layer_errors(model: AnyKerasModel, float32_model: AnyKerasModel) -> tuple[tuple[str, float], ...]:
    samples = _random_samples(model)
    tensor_pairs = zip(*(_run(m, _tensors(m), samples) for m in (model, float32_model)), strict=True)
    errors = [relative_difference(_widen(tensor), _widen(float32_tensor)) for tensor, float32_tensor in tensor_pairs]
    return tuple(zip((layer_name for layer_name, _ in _inner_tensors(model)), errors, strict=True))


@contextlib.contextmanager
def _computing_in_float32(model: AnyKerasModel) -> Iterator[None]:
    """Let the layers of `model` compute in float32 inside the block."""
    with contextlib.ExitStack() as restored:
        for layer in _all_layers(model):
            restored.enter_context(_policy_set_to_float32(layer))
        for operation in _casts(model):
            restored.enter_context(_cast_set_to_float32(operation))
        if isinstance(model, keras.Model):
            restored.enter_context(AutocastScope("float32"))  # casts half-precision variables
        refresh_normalization(model)
        yield


@contextlib.contextmanager
def _policy_set_to_float32(layer: AnyKerasLayer) -> Iterator[None]:
    policy = layer.dtype_policy
    computes_in_floats = tf.as_dtype(layer.compute_dtype or "float32").is_floating
    is_keras3 = isinstance(layer, keras.Layer)
    float32_policy = keras.DTypePolicy("float32") if is_keras3 else tf_keras.mixed_precision.Policy("float32")
    constants = {name: getattr(layer, name) for name in _given_statistics(layer)}
    _set_policy(layer, float32_policy if computes_in_floats else policy)
    for name, array in _given_statistics(layer).items():
        setattr(layer, name, tf.constant(array))
    try:
        yield
    finally:
        _set_policy(layer, policy)
        for name, constant in constants.items():
            setattr(layer, name, constant)


def _given_statistics(layer: AnyKerasLayer) -> dict[str, Array]:
    """Mean and variance given to a Normalization, which holds them as constants in its own floats."""
    if type(layer).__name__ != "Normalization" or getattr(layer, "input_mean", None) is None or not layer.built:
        return {}
    return {
        name: np.reshape(np.asarray(getattr(layer, f"input_{name}"), np.float32), np.shape(getattr(layer, name)))
        for name in ("mean", "variance")
    }


def _set_policy(layer: AnyKerasLayer, policy: Any) -> None:
    if isinstance(layer, keras.Layer):
        layer._dtype_policy = policy  # the public setter of a layer under a map of policies writes into the map
    else:
        layer._set_dtype_policy(policy)


def _casts(model: AnyKerasModel) -> list[KerasOperation]:
    """The operators of Keras 3 that give floats of a type of their own, in nested models too."""
    if not isinstance(model, keras.Model):
        return []
    graphs = [layer for layer in _all_layers(model) if hasattr(layer, "_operations")]
    operations = {id(operation): operation for graph in graphs for operation in graph._operations}
    return [
        operation
        for operation in operations.values()
        if not isinstance(operation, keras.Layer) and getattr(operation, "dtype", None) in OTHER_FLOAT_POLICIES
    ]


@contextlib.contextmanager
def _cast_set_to_float32(operation: KerasOperation) -> Iterator[None]:
    dtype, operation.dtype = operation.dtype, "float32"
    try:
        yield
    finally:
        operation.dtype = dtype


def _is_bound_to_its_floats(layer: AnyKerasLayer) -> bool:
    """Whether a tf_keras layer has variables in other floats, which are not cast, or is a `tf.cast`."""
    has_other_variables = any(weight.dtype.is_floating and weight.dtype != tf.float32 for weight in layer.weights)
    return has_other_variables or getattr(layer, "symbol", None) == "cast"


def _own_floats_text(model: AnyKerasModel, float32_model: AnyKerasModel) -> str:
    """The largest relative difference of the outputs, each model as it is."""
    samples = _random_samples(model)
    outputs, float32_outputs = (list(map(_widen, _run(m, list(m.outputs), samples))) for m in (model, float32_model))
    if not all(np.isfinite(array).all() for array in outputs):
        return "in its own floats, the original's outputs are not all finite on random inputs"
    difference = max(map(relative_difference, outputs, float32_outputs))
    return (
        f"with its own weights and floats, the original's outputs differ by {difference:.1e} of their largest value on "
        "random inputs"
    )


def _random_samples(model: AnyKerasModel) -> list[Tensor]:
    """A small batch for each input, of the type of that input: both models then start from the same numbers."""
    is_keras3 = isinstance(model, keras.Model)
    id_limits = find_id_limits(build_graph(model)) if is_keras3 else find_tf_keras_id_limits(model)
    input_specs = [(tuple(tensor.shape), tf.as_dtype(tensor.dtype).name, input_name(tensor)) for tensor in model.inputs]
    return random_batch(input_specs, id_limits, seed=0)


def _run(model: AnyKerasModel, tensors: list[KerasTensor], samples: list[Tensor]) -> list[Tensor]:
    """The values of symbolic `tensors` of `model` on `samples`."""
    inputs = [tf.cast(sample, tensor.dtype) for sample, tensor in zip(samples, model.inputs, strict=True)]
    keras_package: Any = keras if isinstance(model, keras.Model) else tf_keras
    return list(keras_package.Model(model.inputs, tensors)(inputs, training=False))


def _widen(tensor: Tensor) -> Array:
    return np.asarray(tf.cast(tensor, tf.float64))
