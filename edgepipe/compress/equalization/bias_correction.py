"""Bias correction: the shift of outputs that int8 weights cause, taken off the biases.

Nagel et al. 2019, arXiv 1906.04721, section 4.2. Rounding weights gives each output channel a mean error E[(W' - W) x],
the same for all inputs, which a bias can undo. Only the weights are quantized here, as TFLite stores them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import tensorflow as tf

from edgepipe.compress.equalization.batch_norm_folding import Folded, rebuilt, with_bias
from edgepipe.compress.equalization.channel_means import Unknown, expected, through
from edgepipe.compress.equalization.input_arrays import feeds, told
from edgepipe.compress.equalization.weighted_layers import bias, eight_bits, holds_kernel, kernel, weighted
from edgepipe.compress.qat.fake_quant import kernel_of
from edgepipe.compress.qat.lowering.lower import arguments, nodes
from edgepipe.core.arrays import Array, Arrays


@dataclass(frozen=True)
class Correction:
    """What was added to the bias of one layer: the largest and the mean magnitude over its channels.

    `relative` is the mean magnitude over the mean deviation of the layer's output; None where that is not known.
    """

    layer: str
    channels: int
    largest: float
    mean: float
    relative: float | None


@dataclass(frozen=True)
class Corrected:
    """The model with corrected biases, in float; what was corrected, and what was not and why."""

    folded: Folded
    corrections: tuple[Correction, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def model(self) -> Any:
        """The tf_keras model."""
        return self.folded.model


def correct_biases(folded: Folded, samples: Arrays | None = None) -> Corrected:
    """`folded` with every bias corrected that can be; layers without a bias get one.

    With `samples` the shift is measured, in one walk that carries a float and a quantized tensor: each layer is
    corrected before the next is looked at, so that what earlier layers leave is covered too. Without, it is
    (W' - W) E[x], with E[x] from the batch norms' statistics.

    Raises:
        InputError: samples that do not fit.
    """
    left = dict(_uncorrectable(folded))
    names = [layer.name for layer in folded.model.layers if weighted(layer) and layer.name not in left]
    shifts, unknown = _from_norms(folded, names) if samples is None else (_measured(folded, names, samples), [])
    model = _applied(folded, {name: shift for name, (shift, _) in shifts.items()})
    found = [_correction(name, shift, deviation) for name, (shift, deviation) in shifts.items()]
    named = [f"{name}: {why}" for name, why in left.items()]
    return Corrected(replace(folded, model=model), tuple(found), (*named, *unknown), (told(samples),))


def _uncorrectable(folded: Folded) -> Iterator[tuple[str, str]]:
    """Layers with a kernel that has no bias of its own to correct, and why."""
    calls = Counter(node.layer.name for node in nodes(folded.model))
    for layer in filter(holds_kernel, folded.model.layers):
        if layer.name in folded.whole:
            yield layer.name, f"kept whole: {folded.whole[layer.name]}"
        elif not weighted(layer):
            yield layer.name, f"a {type(layer).__name__}, not a convolution or dense layer as TFLite has them"
        elif calls[layer.name] > 1:
            yield layer.name, f"shared: it is called {calls[layer.name]} times, and one bias cannot correct all"


Shifts = dict[str, tuple[Array, Array | None]]  # by layer: what to add to the bias, the deviation of the output


def _applied(folded: Folded, shifts: dict[str, Array]) -> Any:
    layers = {name: with_bias(folded.model.get_layer(name)) for name in shifts}
    old = {name: folded.model.get_layer(name) for name in shifts}
    weights = {name: [kernel(old[name]), (bias(old[name]) + shift).astype(np.float32)]
               for name, shift in shifts.items()}  # fmt: skip
    return rebuilt(folded.model, layers, weights)


def _correction(name: str, shift: Array, deviation: Array | None) -> Correction:
    size = np.abs(shift)
    relative = None if deviation is None else float(size.mean() / max(float(deviation.mean()), 1e-12))
    return Correction(name, len(shift), float(size.max()), float(size.mean()), relative)


def _from_norms(folded: Folded, names: list[str]) -> tuple[Shifts, list[str]]:
    """-(W' - W) E[x] for each layer whose E[x] is known."""
    found: Shifts = {}
    left: list[str] = []
    for name, moments in expected(folded).items():
        if name not in names:
            continue
        if isinstance(moments, Unknown):
            left.append(f"{name}: {moments.why}")
            continue
        layer, known = folded.model.get_layer(name), folded.statistics.get(name)
        shift = through(layer, kernel(layer) - eight_bits(layer), moments.mean)
        found[name] = shift, None if known is None else known.deviation
    return found, left


@dataclass(frozen=True)
class _Both:
    """A tensor in float, and what it is with quantized weights before it."""

    exact: Any
    rounded: Any


def _measured(folded: Folded, names: list[str], samples: Arrays) -> Shifts:
    """-E[W' x' - W x] for each layer, with x' what the corrected layers before it give."""
    model = folded.model
    found: Shifts = {}
    fed = [tf.constant(array) for array in feeds(model, samples)]
    values = {str(id(tensor)): _Both(array, array) for tensor, array in zip(model.inputs, fed, strict=True)}
    for node, done in _last_uses(model):
        both = _both(node.layer, *arguments(node, values))
        if node.layer.name in names:
            shift = tf.reduce_mean(both.exact - both.rounded, axis=range(len(both.exact.shape) - 1))
            found[node.layer.name] = np.asarray(shift, np.float64), _deviation(both.exact)
            both = _Both(both.exact, both.rounded + shift)
        flat = [_Both(*each) for each in zip(tf.nest.flatten(both.exact), tf.nest.flatten(both.rounded), strict=True)]
        values.update((str(id(tensor)), each) for tensor, each in zip(tf.nest.flatten(node.outputs), flat, strict=True))
        for key in done:
            values.pop(key, None)
    return found


def _both(layer: Any, args: Any, kwargs: dict[str, Any]) -> _Both:
    exact, rounded = (
        tf.nest.map_structure(
            lambda value, side=side: side(value) if isinstance(value, _Both) else value, (args, kwargs)
        )
        for side in (attrgetter("exact"), attrgetter("rounded"))
    )
    result = layer(*exact[0], **exact[1])
    if not weighted(layer):
        return _Both(result, layer(*rounded[0], **rounded[1]))
    variable, held = getattr(layer, kernel_of(layer)[0]), kernel(layer)
    variable.assign(eight_bits(layer))
    try:
        return _Both(result, layer(*rounded[0], **rounded[1]))
    finally:
        variable.assign(held)


def _deviation(values: Any) -> Array:
    return np.asarray(tf.math.reduce_std(values, axis=range(len(values.shape) - 1)))


def _last_uses(model: Any) -> Iterator[tuple[Any, list[str]]]:
    """Each layer call with the keys of the tensors that nobody reads after it."""
    calls = list(nodes(model))
    last = {key: place for place, node in enumerate(calls) for key in node.flat_input_ids}
    for place, node in enumerate(calls):
        yield node, [key for key in set(node.flat_input_ids) if last[key] == place]
