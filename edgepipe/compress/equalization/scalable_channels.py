"""Which channels of a folded model can be scaled, and what makes and reads each.

A channel that is made smaller by s where it is made, and read s times larger, changes nothing, if everything between
lets a positive factor through. Labels as of channel pruning (`edgepipe.compress.pruning.channels`) say which channels
of which tensors must share a factor - those of both summands of a residual sum, for one - and which must stay, and why.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import Folded
from edgepipe.compress.equalization.weighted_layers import (
    holds_kernel,
    kernel,
    made_by,
    outputs,
    pairs,
    read_by,
    weighted,
)
from edgepipe.compress.layer_calls import walk
from edgepipe.compress.pruning.channels.channel_labels import Graph, Labels, on_last
from edgepipe.compress.pruning.channels.channel_rules import OPERATORS, RULES, STOPS, Rule, Shape, Stopped
from edgepipe.compress.qat.activation_placement import Role, place, role
from edgepipe.compress.qat.lowering.lower import nodes, readers
from edgepipe.core.arrays import Array
from edgepipe.models.bridge_layers import Operator

K = tf_keras.layers
# f(s x) = s f(x) for s > 0; augmentation and noise do nothing when a model is converted, but are not followed either
_LINEAR = (
    K.LeakyReLU, K.Dropout, K.SpatialDropout1D, K.SpatialDropout2D, K.ActivityRegularization, K.ZeroPadding1D,
    K.ZeroPadding2D, K.Cropping1D, K.Cropping2D, K.UpSampling1D, K.UpSampling2D, K.MaxPooling1D, K.MaxPooling2D,
    K.AveragePooling1D, K.AveragePooling2D, K.GlobalAveragePooling1D, K.GlobalAveragePooling2D, K.GlobalMaxPooling1D,
    K.GlobalMaxPooling2D, K.Resizing, K.Add, K.Subtract, K.Maximum, K.Minimum, K.Concatenate, K.Flatten, K.Reshape,
    K.Permute,
)  # fmt: skip
_LINEAR_OPERATORS = ("Relu", "Mean", "Max", "Amax")
_SUMS = ("Add", "Subtract", "Maximum", "Minimum")
_FACTORS = ("Multiply", "Divide", "TrueDivide")


@dataclass(frozen=True)
class Part:
    """A weighted layer: the labels that each (row, column) of its kernel reads and makes, and the largest |weight|."""

    layer: Any
    reads: Array  # labels, (rows, 1), or (rows, columns) where columns differ
    makes: Array  # labels, (1, columns), or (rows, columns) where rows differ
    sizes: Array  # (rows, columns)
    made: Array  # (outputs,), labels

    @property
    def depthwise(self) -> bool:
        """Whether each output channel reads one input channel only."""
        return isinstance(self.layer, K.DepthwiseConv2D)

    def scaled(self, scales: Array) -> Array:
        """`sizes` under a factor for each label."""
        return np.asarray(self.sizes * self.factors(scales))

    def factors(self, scales: Array) -> Array:
        """What each weight is multiplied by: s of what it reads over s of what it makes."""
        return np.asarray(scales[self.reads] / scales[self.makes])


def raise_to(values: Array, labels: Array, ranges: Array) -> None:
    """Let the value of each of `labels`, as `Part` has them, be no less than the largest of its `ranges`."""
    alike = tuple(axis for axis, size in enumerate(labels.shape) if size == 1)
    np.maximum.at(values, labels, ranges.max(axis=alike, keepdims=True))


@dataclass(frozen=True)
class Watched:
    """A tensor with a range of its own in TFLite, and the label of each index of its `axis`."""

    tensor: Any
    ids: Array
    axis: int


@dataclass(frozen=True)
class Channels:
    """The labels of a model: `number` of them; `fixed` is the reason why one must stay."""

    number: int
    fixed: dict[int, str]
    parts: tuple[Part, ...]
    watched: tuple[Watched, ...]
    stopped: dict[str, str]  # layers with a kernel that is not followed, and why

    @property
    def free(self) -> Array:
        """Whether each label may be scaled."""
        found = np.zeros(self.number, bool)
        for part in self.parts:
            found[part.made] = True
        found[list(self.fixed)] = False
        return found


def channels_of(folded: Folded) -> Channels:
    """Follow every channel through `folded`."""
    return _Follow(folded).result()


class _Follow:
    def __init__(self, folded: Folded) -> None:
        self.folded, self.graph = folded, Graph()
        self.calls = Counter(node.layer.name for node in nodes(folded.model))
        self.read: list[tuple[Any, Array, Array]] = []  # (layer, labels that it reads, labels that it makes)
        self.tensors: list[tuple[Any, Any, Labels]] = []  # (layer, its output, labels)

    def result(self) -> Channels:
        model, union = self.folded.model, self.graph.union
        for name, labels in zip(model.output_names, walk(model, self._inputs(), self._step), strict=True):
            union.freeze(labels.ids, f"'{name}' is an output of the model")
        parts = [_part(layer, union.roots(read), union.roots(made)) for layer, read, made in self.read]
        ranged = self._ranged()
        watched = [Watched(tensor, union.roots(labels.ids), labels.axis)
                   for layer, tensor, labels in self.tensors if layer.name in ranged]  # fmt: skip
        return Channels(len(union.parents), dict(union.frozen), tuple(parts), tuple(watched), self._stopped())

    def _inputs(self) -> list[Labels]:
        found = []
        for tensor, name in zip(self.folded.model.inputs, self.folded.model.input_names, strict=True):
            labels = on_last(self.graph.union.fresh(tensor.shape[-1] or 1), tuple(tensor.shape))
            self.graph.union.freeze(labels.ids, f"'{name}' is an input of the model")
            self.tensors.append((tensor._keras_history.layer, tensor, labels))
            found.append(labels)
        return found

    def _step(self, layer: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        values = [part for part in tf.nest.flatten([args, kwargs]) if isinstance(part, Labels)]
        given = tf.nest.flatten(outputs)
        found = [self._labels(layer, values, tuple(tensor.shape), len(given)) for tensor in given]
        self.tensors.extend((layer, tensor, labels) for tensor, labels in zip(given, found, strict=True))
        return found

    def _labels(self, layer: Any, values: list[Labels], shape: Shape, outputs: int) -> Labels:
        try:
            if outputs != 1:
                raise Stopped(f"which gives {outputs} tensors")
            return self._rule(layer)(self.graph, layer, values, shape)
        except Stopped as reason:
            return self.graph.barrier(layer, iter(values), shape, str(reason))

    def _rule(self, layer: Any) -> Rule:
        if layer.name in self.folded.whole:
            raise Stopped(f"kept whole: {self.folded.whole[layer.name]}")
        if weighted(layer):
            if self.calls[layer.name] > 1:
                raise Stopped(f"shared: it is called {self.calls[layer.name]} times")
            return self._makes
        if isinstance(layer, Operator):
            return _operator(layer)
        if type(layer) in (K.ReLU, K.PReLU):
            _check_slopes(layer)
            return RULES[K.ReLU]
        if type(layer) in _LINEAR:
            return RULES[type(layer)]
        raise Stopped(STOPS.get(type(layer)) or _activation(layer) or _unknown(type(layer).__name__))

    def _makes(self, graph: Graph, layer: Any, values: list[Labels], shape: Shape) -> Labels:
        if not values[0].last:
            raise Stopped(f"which reads channels from axis {values[0].axis}")
        made = graph.made(layer, outputs(layer))
        self.read.append((layer, values[0].ids, made))
        return on_last(made, shape)

    def _stopped(self) -> dict[str, str]:
        holders = {layer.name for layer in self.folded.model.layers if holds_kernel(layer)}
        return {name: reason for name, (_, reason) in self.graph.stopped.items() if name in holders}

    def _ranged(self) -> set[str]:
        """Layers whose output is a tensor of its own in TFLite, not fused with what follows."""
        model, read_by = self.folded.model, readers(self.folded.model)
        given = {tensor._keras_history.layer.name for tensor in model.outputs}
        roles: dict[str, Role] = {layer.name: role(layer, self.folded.whole.get(layer.name, ""))
                                  for layer in model.layers}  # fmt: skip
        inputs = set(model.input_names)
        return inputs | {
            layer.name
            for layer in model.layers
            if layer.name not in inputs
            and place(layer, roles[layer.name], [roles[reader.name] for reader in read_by[layer.name]],
                      self.calls[layer.name], layer.name in given).ranged
        }  # fmt: skip


def _part(layer: Any, read: Array, made: Array) -> Part:
    values = np.abs(pairs(layer, kernel(layer)).astype(np.float64))
    sizes = values.reshape(-1, *values.shape[-2:]).max(axis=0)
    return Part(layer, read_by(layer, read), made_by(layer, made), sizes, made)


def _check_slopes(layer: Any) -> None:
    limit, threshold = getattr(layer, "max_value", None), getattr(layer, "threshold", 0)
    if limit is not None:
        raise Stopped(f"which clips at {float(limit):g}")
    if threshold:
        raise Stopped(f"which clips below {float(threshold):g}")


def _activation(layer: Any) -> str:
    function = getattr(layer, "activation", None)
    return f"the activation {getattr(function, '__name__', function)}" if isinstance(layer, K.Activation) else ""


def _operator(layer: Any) -> Rule:
    name, arguments = layer.operator, json.loads(layer.arguments)["args"]
    constants = [value for value in arguments if not (isinstance(value, dict) and "tensor" in value)]
    plain = all(isinstance(value, (int, float)) for value in constants)
    passes = (
        name in _LINEAR_OPERATORS
        or (name in _SUMS and not constants)
        or (name in _FACTORS and plain and len(constants) == 1 and arguments[0] not in constants)
    )
    if not passes:
        raise Stopped(_unknown(name))
    return OPERATORS[name]


def _unknown(name: str) -> str:
    return f"a {name}, through which a factor does not pass"
