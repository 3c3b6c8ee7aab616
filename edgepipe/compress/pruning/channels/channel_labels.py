"""Which channels of a model belong together: a label on each channel of each tensor, equal where one needs the other.

A layer that makes channels (a convolution, a dense layer) labels them anew; layers that only pass them on keep the
labels; where two tensors are added, their labels become one. What bears one label can only be removed together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array


@dataclass(frozen=True)
class Labels:
    """The labels of a tensor of `shape`: one for each index of `axis`, whatever the others are; the batch is axis 0."""

    ids: Array
    shape: tuple[int | None, ...]
    axis: int

    @property
    def last(self) -> bool:
        """Whether the channels lie on the last axis."""
        return self.axis == len(self.shape) - 1


def on_last(ids: Array, shape: tuple[int | None, ...]) -> Labels:
    """Labels of the last axis."""
    return Labels(ids, shape, len(shape) - 1)


@dataclass
class Union:
    """Labels that have become one, and those that must stay, with the reason (union-find)."""

    parents: list[int] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)  # root -> reason

    def fresh(self, number: int) -> Array:
        """New labels."""
        ids = np.arange(len(self.parents), len(self.parents) + number)
        self.parents.extend(int(one) for one in ids)
        return ids

    def root(self, one: int) -> int:
        """The label that stands for `one` and all it was joined with."""
        while self.parents[one] != one:
            self.parents[one] = self.parents[self.parents[one]]
            one = self.parents[one]
        return one

    def roots(self, ids: Array) -> Array:
        """`root` of each."""
        return np.array([self.root(int(one)) for one in ids.ravel()], int).reshape(ids.shape)

    def join(self, a: Array, b: Array) -> None:
        """Make each label of `a` one with that of `b` at its place; what one must not lose, neither must the other."""
        for one, other in zip(a.ravel(), b.ravel(), strict=True):
            first, second = self.root(int(one)), self.root(int(other))
            if first == second:
                continue
            self.parents[second] = first
            if second in self.frozen:
                self.frozen.setdefault(first, self.frozen.pop(second))

    def freeze(self, ids: Array, reason: str) -> None:
        """Say that these must stay; the first reason counts."""
        for one in np.unique(ids):
            self.frozen.setdefault(self.root(int(one)), reason)


@dataclass
class Cut:
    """How a weight shrinks: along each axis by the labels of its indices."""

    weight: Any
    layer: str
    axes: dict[int, Array]
    produces: bool  # whether the labels are of channels that this weight makes, scales or shifts
    reads: int | None = None  # the axis of the channels that it reads

    def kept(self, gone: Array, union: Union) -> tuple[int, ...]:
        """The shape that is left when the roots in `gone` are removed."""
        shape = list(self.weight.shape)
        for axis, ids in self.axes.items():
            shape[axis] = int((~np.isin(union.roots(ids), gone)).sum())
        return tuple(shape)


@dataclass
class Graph:
    """What is known of a model's channels."""

    union: Union = field(default_factory=Union)
    cuts: dict[int, Cut] = field(default_factory=dict)  # by id of the weight
    outputs: dict[str, Array] = field(default_factory=dict)  # labels that a layer makes, by its name
    grouped: dict[str, Array] = field(default_factory=dict)  # what a layer with one group for each channel reads
    reshaped: dict[str, Labels] = field(default_factory=dict)  # what a reshaping layer gives, by its name
    uses: list[tuple[int, int]] = field(default_factory=list)  # (id of a kernel, places it is used at for one sample)
    stopped: dict[str, tuple[Array, str]] = field(default_factory=dict)  # layer -> labels that it gives, and why

    def cut(self, layer: Any, weight: Any, axes: dict[int, Array], reads: int | None = None) -> None:
        """Note how `weight` follows labels; a second call of a shared layer joins them with the first's."""
        if layer.name in self.stopped:
            self._freeze_shared(layer.name, axes)
        known = self.cuts.get(id(weight))
        if known is None:
            self.cuts[id(weight)] = Cut(weight, layer.name, axes, set(axes) != {reads}, reads)
            return
        for axis, ids in axes.items():
            self.union.join(known.axes[axis], ids)

    def made(self, layer: Any, number: int) -> Array:
        """The labels of the `number` channels that `layer` makes."""
        if layer.name not in self.outputs:
            self.outputs[layer.name] = self.union.fresh(number)
        return self.outputs[layer.name]

    def barrier(self, layer: Any, values: Iterator[Labels], shape: tuple[int | None, ...], reason: str) -> Labels:
        """Nothing that `layer` reads or gives can be removed, nor what another call of it does."""
        for value in values:
            self.union.freeze(value.ids, f"read by '{layer.name}', {reason}")
        ids = self.union.fresh(shape[-1] or 1)
        self.union.freeze(ids, f"given by '{layer.name}', {reason}")
        self.stopped[layer.name] = ids, reason
        for cut in self.cuts.values():
            if cut.layer == layer.name:
                self._freeze_shared(layer.name, cut.axes)
        return on_last(ids, shape)

    def _freeze_shared(self, layer: str, axes: dict[int, Array]) -> None:
        for ids in axes.values():
            self.union.freeze(ids, f"another call of '{layer}' is one {self.stopped[layer][1]}")
