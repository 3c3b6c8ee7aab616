"""The kernels of a tf_keras model that pruning can put zeros into, and the reason why any other is left alone."""

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
EXCLUDED_LAST = "the last layer is excluded (exclude_last: true)"
DEPTHWISE = (K.DepthwiseConv1D, K.DepthwiseConv2D)


@dataclass(frozen=True)
class Kernel:
    """One weight tensor: `inputs` are the axes that are summed over with the input channels, `outputs` those of the
    output channels; what is left are positions of the kernel.
    """

    name: str  # the layer's, with the inner layer and the tensor where there are several
    cls: str
    layer: Any  # the top layer that holds it
    weight: Any  # the variable
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the variable."""
        return tuple(self.weight.shape)

    @property
    def size(self) -> int:
        """Elements."""
        return int(np.prod(self.shape))

    def rows(self, values: Array) -> Array:
        """`values`, shaped as the kernel, as (output channels, positions, input channels): TFLite's order."""
        count = [int(np.prod([self.shape[axis] for axis in axes])) for axes in (self.outputs, self.inputs)]
        return values.transpose(self._order).reshape(count[0], -1, count[1])

    def back(self, rows: Array) -> Array:
        """The inverse of `rows`."""
        shape = [self.shape[axis] for axis in self._order]
        return rows.reshape(shape).transpose(np.argsort(self._order))

    @property
    def _order(self) -> tuple[int, ...]:
        positions = tuple(a for a in range(len(self.shape)) if a not in self.inputs + self.outputs)
        return (*self.outputs, *positions, *self.inputs)


@dataclass(frozen=True)
class Found:
    """The kernels to prune, each with its overrides, and name -> reason of those that are left alone."""

    kernels: tuple[Kernel, ...]
    left_alone: dict[str, str]
    others: tuple[Kernel, ...]  # those left alone, for their share of zeros to be counted

    def without(self, refused: dict[str, str], model: str) -> "Found":
        """Less the kernels in `refused` (name -> reason), which are left alone too."""
        kept = tuple(kernel for kernel in self.kernels if kernel.name not in refused)
        alone = {**self.left_alone, **refused}
        _check_any(kept, alone, model)
        others = tuple(kernel for kernel in self.kernels if kernel.name in refused)
        return Found(kept, alone, self.others + others)


def _check_any(kernels: tuple[Kernel, ...], alone: dict[str, str], model: str) -> None:
    if not kernels:
        named = "; ".join(f"{name}: {reason}" for name, reason in alone.items()) or "no layer has a kernel"
        raise InputError(f"nothing to prune in '{model}': {named}")


def find(model: Any, overrides: Overrides[Any], exclude_last: bool) -> Found:
    """What is to be pruned in `model`.

    Raises:
        InputError: an override of a layer that is not there, or nothing is left to prune.
    """
    overrides.check(list(model._flatten_layers(include_self=False)))
    every = list(kernels(model))
    reasons = {kernel.name: _reason(kernel, overrides) for kernel in every}
    if exclude_last and (last := _last(every, overrides)) is not None:
        reasons.update({kernel.name: EXCLUDED_LAST for kernel in every if kernel.layer is last})
    chosen = tuple(kernel for kernel in every if not reasons[kernel.name])
    alone = {name: reason for name, reason in reasons.items() if reason}
    alone |= {layer.name: _unknown(layer) for layer in _flat(model) if _unknown(layer)}
    _check_any(chosen, alone, model.name)
    return Found(chosen, alone, tuple(kernel for kernel in every if kernel not in chosen))


def _last(every: list[Kernel], overrides: Overrides[Any]) -> Any:
    """The last layer with a kernel that is pruned by default; None if the user speaks of it by name, not by class."""
    candidates = [kernel.layer for kernel in every if not isinstance(kernel.layer, DEPTHWISE)]
    last = candidates[-1] if candidates else None
    return None if last is None or Overrides({}, overrides.layers).of(last) else last


def _reason(kernel: Kernel, overrides: Overrides[Any]) -> str:
    told = overrides.of(kernel.layer)
    if told and told[-1] is None:
        return "left alone as the pipeline says"
    if kernel.cls.startswith("Depthwise") and not told:
        return f"{kernel.cls} is not pruned unless named: few weights, each used at many places"
    return ""


def _unknown(layer: Any) -> str:
    """Why a layer with large weights has no kernel here."""
    large = [weight for weight in layer.trainable_weights if len(weight.shape) > 1 and min(weight.shape) > 1]
    if not large or any(list(_of(layer, part)) for part in layer._flatten_layers()):
        return ""
    return f"{type(layer).__name__} is not pruned: only convolutions, dense, attention and recurrent layers are"


def kernels(model: Any) -> Iterator[Kernel]:
    """Every kernel of `model`, nested models and layers inside layers included, in the order of the layers."""
    for top in _flat(model):
        parts = [(part, found) for part in top._flatten_layers() for found in _of(top, part)]
        for part, kernel in parts:
            inner = "" if part is top else f"/{part.name}"
            tensor = kernel.weight.name.rsplit("/", 1)[-1].partition(":")[0]
            several = sum(other is part for other, _ in parts) > 1
            name = f"{top.name}{inner}" + (f"/{tensor}" if several else "")
            yield Kernel(name, kernel.cls, top, kernel.weight, kernel.inputs, kernel.outputs)


def stored_order(model: Any) -> list[pruned_zeros.Kernel]:
    """The kernels of `model` as `edgepipe.tflite.pruned_zeros` compares them with a .tflite."""
    return [pruned_zeros.Kernel(kernel.name, kernel.rows(np.asarray(kernel.weight))) for kernel in kernels(model)]


def _flat(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        yield from _flat(layer) if isinstance(layer, tf_keras.Model) else [layer]


def _of(top: Any, layer: Any) -> Iterator[Kernel]:
    """The kernels that `layer` itself holds."""
    find_axes = _AXES.get(type(layer))
    for weight, inputs, outputs in find_axes(layer) if find_axes is not None else ():
        yield Kernel(layer.name, type(layer).__name__, top, weight, inputs, outputs)


def _einsum_axes(equation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For example abc,cde->abde: axis 0 of the kernel is summed over, 1 and 2 are outputs."""
    kernel, output = equation.replace(" ", "").split(",")[1].split("->")
    summed = tuple(axis for axis, label in enumerate(kernel) if label not in output)
    return summed, tuple(axis for axis in range(len(kernel)) if axis not in summed)


Axes = Callable[[Any], list[tuple[Any, tuple[int, ...], tuple[int, ...]]]]  # each weight with its input and output axes


def _convolution(layer: Any) -> list[Any]:
    return [(layer.kernel, (layer.rank,), (layer.rank + 1,))]


def _transposed(layer: Any) -> list[Any]:
    return [(layer.kernel, (layer.rank + 1,), (layer.rank,))]


def _depthwise(layer: Any) -> list[Any]:
    rank = len(layer.depthwise_kernel.shape)
    return [(layer.depthwise_kernel, (), (rank - 2, rank - 1))]


def _separable(layer: Any) -> list[Any]:
    return [(layer.pointwise_kernel, (layer.rank,), (layer.rank + 1,))]


def _dense(layer: Any) -> list[Any]:
    return [(layer.kernel, (0,), (1,))]


def _einsum(layer: Any) -> list[Any]:
    return [(layer.kernel, *_einsum_axes(layer.equation))]


def _recurrent(layer: Any) -> list[Any]:
    return [(layer.kernel, (0,), (1,)), (layer.recurrent_kernel, (0,), (1,))]


_AXES: dict[Any, Axes] = {
    **dict.fromkeys((K.Conv1D, K.Conv2D, K.Conv3D), _convolution),
    **dict.fromkeys((K.Conv1DTranspose, K.Conv2DTranspose, K.Conv3DTranspose), _transposed),
    **dict.fromkeys(DEPTHWISE, _depthwise),
    **dict.fromkeys((K.SeparableConv1D, K.SeparableConv2D), _separable),
    **dict.fromkeys((K.LSTMCell, K.GRUCell, K.SimpleRNNCell), _recurrent),
    K.Dense: _dense,
    K.EinsumDense: _einsum,
}
