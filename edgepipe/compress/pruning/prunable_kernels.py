"""The kernels of a tf_keras model that can be pruned, and why the others are not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.overrides import Overrides
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.tflite import pruned_zeros

K = tf_keras.layers
LAST_LAYER_REASON = "the last layer is excluded (exclude_last: true)"
DEPTHWISE_LAYERS = (K.DepthwiseConv1D, K.DepthwiseConv2D)


@dataclass(frozen=True)
class PrunableKernel:
    """One weight tensor: `input_axes` are summed over the input channels, `output_axes` are the output channels; the
    other axes are kernel positions.
    """

    name: str  # of the layer, plus inner layer and tensor where there are several
    class_name: str
    layer: Any  # the top layer that holds it
    weight: Any  # the variable
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the variable."""
        return tuple(self.weight.shape)

    @property
    def size(self) -> int:
        """The number of weights."""
        return int(np.prod(self.shape))

    def to_rows(self, array: Array) -> Array:
        """`array`, shaped as the kernel, as (output channels, positions, input channels): TFLite's order."""
        channel_counts = [
            int(np.prod([self.shape[axis] for axis in axes])) for axes in (self.output_axes, self.input_axes)
        ]
        return array.transpose(self._axis_order).reshape(channel_counts[0], -1, channel_counts[1])

    def from_rows(self, rows: Array) -> Array:
        """The inverse of `to_rows`."""
        transposed_shape = [self.shape[axis] for axis in self._axis_order]
        return rows.reshape(transposed_shape).transpose(np.argsort(self._axis_order))

    @property
    def _axis_order(self) -> tuple[int, ...]:
        position_axes = tuple(a for a in range(len(self.shape)) if a not in self.input_axes + self.output_axes)
        return (*self.output_axes, *position_axes, *self.input_axes)


@dataclass(frozen=True)
class PrunableKernels:
    """The kernels to prune, and name -> reason for those that are not pruned."""

    kernels: tuple[PrunableKernel, ...]
    exclusion_reasons: dict[str, str]
    excluded_kernels: tuple[PrunableKernel, ...]  # not pruned, but their zeros are counted

    def exclude_refused(self, refusal_reasons: dict[str, str], model_name: str) -> "PrunableKernels":
        """Exclude the kernels in `refusal_reasons` (name -> reason) as well.

        Raises:
            InputError: nothing is left to prune.
        """
        kept_kernels = tuple(kernel for kernel in self.kernels if kernel.name not in refusal_reasons)
        exclusion_reasons = {**self.exclusion_reasons, **refusal_reasons}
        _check_not_empty(kept_kernels, exclusion_reasons, model_name)
        refused_kernels = tuple(kernel for kernel in self.kernels if kernel.name in refusal_reasons)
        return PrunableKernels(kept_kernels, exclusion_reasons, self.excluded_kernels + refused_kernels)


def _check_not_empty(kernels: tuple[PrunableKernel, ...], exclusion_reasons: dict[str, str], model_name: str) -> None:
    if not kernels:
        reason_text = (
            "; ".join(f"{name}: {reason}" for name, reason in exclusion_reasons.items()) or "no layer has a kernel"
        )
        raise InputError(f"nothing to prune in '{model_name}': {reason_text}")


def find_prunable_kernels(model: Any, overrides: Overrides[Any], exclude_last: bool) -> PrunableKernels:
    """The kernels of `model` to prune.

    Raises:
        InputError: an override of a layer that does not exist, or nothing is left to prune.
    """
    overrides.check(list(model._flatten_layers(include_self=False)))
    all_kernels = list(iterate_kernels(model))
    reason_by_kernel = {kernel.name: _exclusion_reason(kernel, overrides) for kernel in all_kernels}
    if exclude_last and (last_layer := _find_last_layer(all_kernels, overrides)) is not None:
        reason_by_kernel.update(
            {kernel.name: LAST_LAYER_REASON for kernel in all_kernels if kernel.layer is last_layer}
        )
    chosen_kernels = tuple(kernel for kernel in all_kernels if not reason_by_kernel[kernel.name])
    exclusion_reasons = {name: reason for name, reason in reason_by_kernel.items() if reason}
    exclusion_reasons |= {
        layer.name: _unsupported_reason(layer) for layer in _flatten_layers(model) if _unsupported_reason(layer)
    }
    _check_not_empty(chosen_kernels, exclusion_reasons, model.name)
    return PrunableKernels(
        chosen_kernels, exclusion_reasons, tuple(kernel for kernel in all_kernels if kernel not in chosen_kernels)
    )


def _find_last_layer(all_kernels: list[PrunableKernel], overrides: Overrides[Any]) -> Any:
    """The last layer with a kernel that is pruned by default; None if an override names it, not just its class."""
    candidate_layers = [kernel.layer for kernel in all_kernels if not isinstance(kernel.layer, DEPTHWISE_LAYERS)]
    last_layer = candidate_layers[-1] if candidate_layers else None
    return (
        None if last_layer is None or Overrides({}, overrides.override_by_pattern).for_layer(last_layer) else last_layer
    )


def _exclusion_reason(kernel: PrunableKernel, overrides: Overrides[Any]) -> str:
    layer_overrides = overrides.for_layer(kernel.layer)
    if layer_overrides and layer_overrides[-1] is None:
        return "excluded by the pipeline"
    if kernel.class_name.startswith("Depthwise") and not layer_overrides:
        return f"{kernel.class_name} is not pruned unless named: few weights, each used at many positions"
    return ""


def _unsupported_reason(layer: Any) -> str:
    """Why a layer with large weights has no prunable kernel; empty if it has one, or no such weights."""
    large_weights = [weight for weight in layer.trainable_weights if len(weight.shape) > 1 and min(weight.shape) > 1]
    if not large_weights or any(list(_own_kernels(layer, sublayer)) for sublayer in layer._flatten_layers()):
        return ""
    return f"{type(layer).__name__} is not pruned: only convolutions, dense, attention and recurrent layers are"


def iterate_kernels(model: Any) -> Iterator[PrunableKernel]:
    """Every kernel of `model`, nested models and layers inside layers included, in the order of the layers."""
    for top_layer in _flatten_layers(model):
        sublayer_kernels = [
            (sublayer, kernel)
            for sublayer in top_layer._flatten_layers()
            for kernel in _own_kernels(top_layer, sublayer)
        ]
        inner_name_by_id = _inner_names(top_layer, [sublayer for sublayer, _ in sublayer_kernels])
        for sublayer, kernel in sublayer_kernels:
            inner_name = inner_name_by_id[id(sublayer)]
            tensor_name = kernel.weight.name.rsplit("/", 1)[-1].partition(":")[0]
            has_several_kernels = sum(owner is sublayer for owner, _ in sublayer_kernels) > 1
            name = f"{top_layer.name}{inner_name}" + (f"/{tensor_name}" if has_several_kernels else "")
            yield PrunableKernel(
                name, kernel.class_name, top_layer, kernel.weight, kernel.input_axes, kernel.output_axes
            )


def _inner_names(top_layer: Any, sublayers: list[Any]) -> dict[int, str]:
    """What follows the name of `top_layer`, by id; numbered where two have one name, as both cells of Bidirectional."""
    name_by_id: dict[int, str] = {}
    for sublayer in sublayers:
        if id(sublayer) not in name_by_id:
            names_so_far, name, number = set(name_by_id.values()), f"/{sublayer.name}", 2
            while name in names_so_far:
                name, number = f"/{sublayer.name}_{number}", number + 1
            name_by_id[id(sublayer)] = "" if sublayer is top_layer else name
    return name_by_id


def kernels_in_tflite_order(model: Any) -> list[pruned_zeros.PrunedKernel]:
    """The kernels of `model` as `edgepipe.tflite.pruned_zeros` compares them with a .tflite."""
    return [
        pruned_zeros.PrunedKernel(kernel.name, kernel.to_rows(np.asarray(kernel.weight)))
        for kernel in iterate_kernels(model)
    ]


def _flatten_layers(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _flatten_layers(layer) if isinstance(layer, tf_keras.Model) else [layer]


def _own_kernels(top_layer: Any, layer: Any) -> Iterator[PrunableKernel]:
    """The kernels of `layer` itself, without sublayers."""
    find_axes = _AXES_FUNCTION_BY_CLASS.get(type(layer))
    for weight, input_axes, output_axes in find_axes(layer) if find_axes is not None else ():
        yield PrunableKernel(layer.name, type(layer).__name__, top_layer, weight, input_axes, output_axes)


def _einsum_axes(equation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output axes of a kernel: for abc,cde->abde axis 0 is summed over, 1 and 2 are outputs."""
    kernel_subscripts, output_subscripts = equation.replace(" ", "").split(",")[1].split("->")
    summed_axes = tuple(axis for axis, subscript in enumerate(kernel_subscripts) if subscript not in output_subscripts)
    return summed_axes, tuple(axis for axis in range(len(kernel_subscripts)) if axis not in summed_axes)


# layer -> each weight with its input and output axes
AxesFunction = Callable[[Any], list[tuple[Any, tuple[int, ...], tuple[int, ...]]]]


def _convolution_axes(layer: Any) -> list[Any]:
    return [(layer.kernel, (layer.rank,), (layer.rank + 1,))]


def _transposed_convolution_axes(layer: Any) -> list[Any]:
    return [(layer.kernel, (layer.rank + 1,), (layer.rank,))]


def _depthwise_axes(layer: Any) -> list[Any]:
    rank = len(layer.depthwise_kernel.shape)
    return [(layer.depthwise_kernel, (), (rank - 2, rank - 1))]


def _separable_axes(layer: Any) -> list[Any]:
    return [(layer.pointwise_kernel, (layer.rank,), (layer.rank + 1,))]


def _dense_axes(layer: Any) -> list[Any]:
    return [(layer.kernel, (0,), (1,))]


def _einsum_kernel_axes(layer: Any) -> list[Any]:
    return [(layer.kernel, *_einsum_axes(layer.equation))]


def _recurrent_axes(layer: Any) -> list[Any]:
    return [(layer.kernel, (0,), (1,)), (layer.recurrent_kernel, (0,), (1,))]


_AXES_FUNCTION_BY_CLASS: dict[Any, AxesFunction] = {
    **dict.fromkeys((K.Conv1D, K.Conv2D, K.Conv3D), _convolution_axes),
    **dict.fromkeys((K.Conv1DTranspose, K.Conv2DTranspose, K.Conv3DTranspose), _transposed_convolution_axes),
    **dict.fromkeys(DEPTHWISE_LAYERS, _depthwise_axes),
    **dict.fromkeys((K.SeparableConv1D, K.SeparableConv2D), _separable_axes),
    **dict.fromkeys((K.LSTMCell, K.GRUCell, K.SimpleRNNCell), _recurrent_axes),
    K.Dense: _dense_axes,
    K.EinsumDense: _einsum_kernel_axes,
}
