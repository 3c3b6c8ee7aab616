"""A tf_keras model rewritten so that each layer is one TFLite operator, which is what fake-quant can be placed on.

Separable convolutions are split, normalizations and attention written out, activations taken out of the layers that
hold them, one-dimensional and higher-dimensional layers expressed as two-dimensional ones, nested models opened up.
The rewritten model computes what the original does; `edgepipe.compress.qat.activation_placement` then says where fake-quant goes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import Operator
from edgepipe.models.keras_operators import encode

Handler = Callable[["Lowering", "Call"], Any]
TOLERANCE = 1e-4  # relative to the largest value of an output, as for the bridge


@dataclass(frozen=True)
class Call:
    """One call of one layer of the original: the layer, the lowered tensors and options it is called with."""

    layer: Any
    inputs: Any  # a tensor, or a list of them
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sole: bool  # whether this is the layer's only call

    @property
    def x(self) -> Any:
        """The only, or the first, tensor."""
        return self.inputs[0] if isinstance(self.inputs, (list, tuple)) else self.inputs


class Arguments(list[Any]):
    """The positional arguments of a call, where a plain list would be one argument that is a list of tensors."""


@dataclass(frozen=True)
class Origin:
    """Which layer of the original a lowered layer stands for, and why fake-quant cannot reach into it, if so."""

    layer: Any
    whole: str = ""  # the reason; empty for a layer that was written out or is one operator anyway


@dataclass(frozen=True)
class Lowered:
    """The rewritten model and where each of its layers comes from, by name.

    `ends` has every layer of the original, in the order of computation, with the lowered layer that gives its output:
    one of another origin if nothing was left to do, as for a ReLU that was merged into one before it.
    """

    model: Any
    origins: dict[str, Origin]
    ends: list[tuple[Any, str]]


@dataclass
class Lowering:
    """What handlers work with: they call layers through `apply` and `op`, which keep names, weights and origins."""

    taken: set[str] = field(default_factory=set)
    origins: dict[str, Origin] = field(default_factory=dict)
    ends: dict[int, tuple[Any, str]] = field(default_factory=dict)  # by id of a layer of the original
    made: dict[tuple[int, str], Any] = field(default_factory=dict)
    tails: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # id of a reshaped tensor -> (it, before reshape)
    read_once: set[int] = field(default_factory=set)  # ids of lowered tensors that a single layer of the original reads
    relus: dict[tuple[int, float | None], Any] = field(default_factory=dict)  # by tensor and upper limit
    current: Any = None

    def apply(self, layer: Any, x: Any, weights: list[Array] | None = None, whole: str = "", **call: Any) -> Any:
        """Call `layer` on `x`, give it `weights`; a second call of the same original layer reuses the first's layer."""
        key = (id(self.current), layer.name)
        known = self.made.get(key)
        if known is None:
            known = self.made[key] = self._named(layer)
            self.origins[known.name] = Origin(self.current, whole)
        result = known(*x, **call) if isinstance(x, Arguments) else known(x, **call)
        if weights and layer is known:
            known.set_weights(
                [np.asarray(value).reshape(w.shape) for value, w in zip(weights, known.weights, strict=True)]
            )
        return result

    def relu(self, x: Any, most: float | None, name: str) -> Any:
        """A ReLU up to `most`; one for all that read the same tensor, because the converter merges them too."""
        key = (id(x), most)
        if key not in self.relus:
            self.relus[key] = self.apply(tf_keras.layers.ReLU(most, name=name), x)
        return self.relus[key]

    def end(self, result: Any) -> None:
        """Note which lowered layer gives the output of the current layer of the original."""
        first = tf.nest.flatten(result)[0]
        # a reshape behind it may be passed over by all who read it
        _, made = self.tails.get(id(first), (first, first))
        self.ends.setdefault(id(self.current), (self.current, made._keras_history.layer.name))

    def _named(self, layer: Any) -> Any:
        wanted, number = layer.name, 2
        while layer.name in self.taken:
            layer._name = f"{wanted}_{number}"
            number += 1
        self.taken.add(layer.name)
        return layer

    def op(self, operator: str, x: Any, suffix: str, /, *constants: Any, **options: Any) -> Any:
        """Apply the `keras.ops` operator to one tensor, or to two and more given as a list, and constants."""
        tensors = x if isinstance(x, list) else [x]
        args = [*({"tensor": index} for index in range(len(tensors))), *(encode(value, []) for value in constants)]
        call = {"args": args, "kwargs": {key: encode(value, []) for key, value in options.items()}}
        return self.apply(Operator(operator, json.dumps(call), name=f"{self.current.name}_{suffix}"), x)

    def reshape(self, x: Any, shape: tuple[int, ...], suffix: str) -> Any:
        """`x` in another shape (without the batch); nothing if it has that already."""
        if tuple(x.shape[1:]) == shape:
            return x
        # one layer of the original may reshape several tensors, each its own way: the shape is part of the name
        name = f"{self.current.name}_{suffix}_{'x'.join(map(str, shape))}"
        return self.apply(tf_keras.layers.Reshape(shape, name=name), x)

    def flat(self, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        """`x` as (batch, height, width, channels), and what gives a result of that form the leading shape of `x`.

        A tensor that came out of such a result is taken as it was before, so that what follows a convolution follows
        it without a reshape between.
        """
        known = self.tails.get(id(x))
        inner = known[1] if known is not None else self._squared(x)
        self._inherit(x, inner)
        lead = tuple(x.shape[1:-1])

        def back(result: Any) -> Any:
            if len(lead) == 2:
                return result
            # a one-dimensional convolution changes the second axis of (1, length, channels)
            outer = self.reshape(result, (*(result.shape[2:3] if len(lead) == 1 else lead), result.shape[-1]), "shape")
            self.tails[id(outer)] = (outer, result)
            return outer

        return inner, back

    def level(self, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        """`flat`, but (batch, channels) stays as it is: for what TFLite fuses into a dense layer too."""
        return self.flat(x) if len(x.shape) > 2 else (x, lambda result: result)

    def _squared(self, x: Any) -> Any:
        shape = tuple(x.shape[1:])
        if len(shape) == 3:
            return x
        return self.reshape(x, (1, int(np.prod(shape[:-1])), shape[-1]), "square")

    def _inherit(self, x: Any, inner: Any) -> None:
        if id(x) in self.read_once:
            self.read_once.add(id(inner))

    def affine(self, x: Any, scale: Array, offset: Array, suffix: str, trainable: bool = True) -> Any:
        """`x * scale + offset` by channel, as a 1 x 1 depthwise convolution: one int8 operator with exact weights."""
        inner, back = self.flat(x)
        channels = inner.shape[-1]
        layer = tf_keras.layers.DepthwiseConv2D(
            1, name=f"{self.current.name}_{suffix}".rstrip("_"), trainable=trainable
        )
        values = [np.broadcast_to(np.asarray(value, np.float32).ravel(), (channels,)) for value in (scale, offset)]
        return back(self.apply(layer, inner, [values[0].reshape(1, 1, channels, 1), values[1]]))


def lower(model: Any, left_alone: Callable[[Any], bool]) -> Lowered:
    """`model` rewritten; layers that `left_alone` says so of are kept as they are."""
    from edgepipe.compress.qat.lowering.layer_rules import handler

    low = Lowering(taken={tensor._keras_history.layer.name for tensor in model.inputs})
    read_by = readers(model)
    inputs = [_input(tensor, read_by) for tensor in model.inputs]

    def step(call: Call) -> Any:
        low.current = call.layer
        result = handler(call.layer, left_alone(call.layer))(low, call)
        low.end(result)
        return result

    outputs = _walk(model, inputs, step, low)
    rewritten = tf_keras.Model(structured(model, inputs), outputs if len(outputs) > 1 else outputs[0], name=model.name)
    rewritten.output_names = list(model.output_names)
    return Lowered(rewritten, low.origins, list(low.ends.values()))


def structured(model: Any, inputs: list[Any]) -> Any:
    nested = getattr(model, "_nested_inputs", None)
    return inputs[0] if len(inputs) == 1 and not isinstance(nested, dict) else tf.nest.pack_sequence_as(nested, inputs)


def _input(tensor: Any, read_by: dict[str, list[Any]]) -> Any:
    name = tensor._keras_history.layer.name
    # Keras takes indices as floats too; eight bits of a float are no index
    index = bool(read_by[name]) and all(isinstance(layer, tf_keras.layers.Embedding) for layer in read_by[name])
    dtype = "int32" if index else tensor.dtype
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=dtype, name=name)


def _walk(model: Any, inputs: list[Any], step: Callable[[Call], Any], low: Lowering) -> list[Any]:
    """Call `step` for every layer call of `model` in order, nested models opened up; gives the outputs."""
    values = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    counts, calls = _read_counts(model), Counter(id(node.layer) for node in nodes(model))
    for node in nodes(model):
        args, kwargs = arguments(node, values)
        layer = node.layer
        if isinstance(layer, tf_keras.Model):
            result: Any = _walk(layer, tf.nest.flatten(args), step, low)
        else:
            result = step(Call(layer, args[0] if args else None, args[1:], _given(kwargs), calls[id(layer)] == 1))
        for tensor, value in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(result), strict=True):
            values[str(id(tensor))] = value
            (low.read_once.add if counts[str(id(tensor))] == 1 else low.read_once.discard)(id(value))
    return [values[str(id(tensor))] for tensor in model.outputs]


def nodes(model: Any) -> Iterator[Any]:
    """The layer calls of a functional tf_keras model, in the order of computation."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def arguments(node: Any, values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer call was given, with `values` in place of its symbolic tensors."""
    stacks = {key: [values[key]] * node.flat_input_ids.count(key) for key in node.flat_input_ids}  # Keras pops them
    found: tuple[tuple[Any, ...], dict[str, Any]] = node.map_arguments(stacks)
    return found


def readers(model: Any) -> dict[str, list[Any]]:
    """The layers that read the output of each layer, by its name; one that reads it twice stands there twice."""
    found: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(model):
        for tensor in tf.nest.flatten(node.keras_inputs):
            found[tensor._keras_history.layer.name].append(node.layer)
    return found


def _read_counts(model: Any) -> Counter[str]:
    """How often each tensor is read, by id; being an output counts."""
    read = [key for node in nodes(model) for key in node.flat_input_ids]
    return Counter([*read, *(str(id(tensor)) for tensor in model.outputs)])


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def check_equal(model: Any, lowered: Any, samples: Any) -> float:
    """The largest difference between the outputs of both on `samples`, relative to the largest output.

    Raises:
        InputError: it is above 1e-4.
    """
    worst = 0.0
    for a, b in zip(
        *(map(np.asarray, tf.nest.flatten(m(samples, training=False))) for m in (model, lowered)), strict=True
    ):
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    if not worst <= TOLERANCE:
        raise InputError(
            f"the form of '{model.name}' that is quantized differs from it by {worst:.1e} of its largest output "
            f"(allowed {TOLERANCE:.0e}); please report it"
        )
    return worst
