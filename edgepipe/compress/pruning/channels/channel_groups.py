"""Channels that can only be removed together, as groups: what each is made of, and what removing it saves."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning.channels.channel_labels import Cut, Graph
from edgepipe.compress.pruning.channels.channel_rules import graph_of
from edgepipe.compress.pruning.saliency import Reduction
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError


@dataclass(frozen=True)
class Layer:
    """A layer that makes channels: the root label of each, and why it cannot lose any, if so."""

    name: str
    cls: str
    roots: Array
    reason: str


@dataclass(frozen=True)
class Groups:
    """The groups of a model, by their root labels."""

    graph: Graph
    layers: tuple[Layer, ...]
    roots: Array  # of the groups that may be removed, ascending
    fixed: int  # elements of the weights that no channel is followed through

    @property
    def none(self) -> Array:
        """No group is gone."""
        return np.zeros(len(self.roots), bool)

    @property
    def cuts(self) -> list[Cut]:
        """The weights that shrink."""
        return list(self.graph.cuts.values())

    @cached_property
    def members(self) -> list[list[tuple[int, Array]]]:
        """For each cut, along each of its axes: the position in `roots` of each index, -1 for one that stays."""
        places = {int(root): place for place, root in enumerate(self.roots)}
        return [
            [(axis, np.array([places.get(int(root), -1) for root in self.graph.union.roots(ids)]))
             for axis, ids in cut.axes.items()]
            for cut in self.cuts
        ]  # fmt: skip

    @cached_property
    def clusters(self) -> list[Array]:
        """Positions in `roots` of the groups whose layers depend on each other; each group is in one."""
        parent = {layer.name: layer.name for layer in self.layers}

        def top(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        owner: dict[int, str] = {}
        for layer in self.layers:
            for root in layer.roots:
                parent[top(layer.name)] = top(owner.setdefault(int(root), layer.name))
        found: dict[str, list[int]] = {}
        for place, root in enumerate(self.roots):
            found.setdefault(top(owner[int(root)]), []).append(place)
        return [np.array(places) for places in found.values()]

    def others(self, names: set[str]) -> Array:
        """Which groups no layer of `names` has a part in, by position."""
        theirs = [layer.roots for layer in self.layers if layer.name in names]
        return ~np.isin(self.roots, np.concatenate(theirs)) if theirs else np.ones(len(self.roots), bool)

    def parameters(self, gone: Array) -> int:
        """Elements of all weights of the model without the groups marked in `gone` (by position)."""
        removed = self.roots[gone]
        return self.fixed + sum(int(np.prod(cut.kept(removed, self.graph.union))) for cut in self.cuts)

    def macs(self, gone: Array) -> int:
        """Multiply-accumulates of the layers whose channels are followed."""
        removed = self.roots[gone]
        sizes = {key: int(np.prod(cut.kept(removed, self.graph.union))) for key, cut in self.graph.cuts.items()}
        return sum(sizes[key] * places for key, places in self.graph.uses)

    @cached_property
    def savings(self) -> Array:
        """Multiply-accumulates that removing each group alone would save."""
        places_of = dict(self.graph.uses)
        saved = np.zeros(len(self.roots))
        for cut, axes in zip(self.cuts, self.members, strict=True):
            for axis, places in axes:
                each = places_of.get(id(cut.weight), 0) * np.prod(cut.weight.shape) / cut.weight.shape[axis]
                np.add.at(saved, places[places >= 0], each)
        return saved

    def zeros(self, gone: Array) -> list[Array]:
        """For each cut which elements belong to a removed group."""
        masks = []
        for cut, axes in zip(self.cuts, self.members, strict=True):
            mask = np.zeros(cut.weight.shape, bool)
            for axis, places in axes:
                marked = np.where(places >= 0, gone[places], False)
                mask |= np.expand_dims(marked, [other for other in range(mask.ndim) if other != axis])
            masks.append(mask)
        return masks

    def losses(self, values: list[Array], reduction: Reduction) -> Array:
        """The score of each group by what reads it: zeroing those weights is the same as removing the channels."""
        parts: list[list[Array]] = [[] for _ in self.roots]
        for cut, axes, value in zip(self.cuts, self.members, values, strict=True):
            for axis, places in axes:
                if axis == cut.reads:
                    _collect(parts, np.moveaxis(value, axis, 0), places)
        return np.array([reduction(np.concatenate(part)) if part else 0.0 for part in parts])

    def norms(self, values: list[Array]) -> Array:
        """The score of each group by size: the root mean square of its weights in each tensor, relative to the tensor's
        own, averaged over the tensors it has a part in.
        """
        sums, numbers = np.zeros(len(self.roots)), np.zeros(len(self.roots))
        for cut, axes, value in zip(self.cuts, self.members, values, strict=True):
            for axis, places in axes:
                if (cut.weight.trainable and len(value.shape) > 1) or _is_gamma(cut):
                    size = np.sqrt(np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).mean(-1))
                    size = size / max(float(np.sqrt(value.mean())), 1e-30)
                    np.add.at(sums, places[places >= 0], size[places >= 0])
                    np.add.at(numbers, places[places >= 0], 1)
        return np.asarray(sums / np.maximum(numbers, 1))


def _is_gamma(cut: Cut) -> bool:
    return "gamma" in str(cut.weight.name).rsplit("/", 1)[-1]


def _collect(parts: list[list[Array]], rows: Array, places: Array) -> None:
    for row, place in zip(rows, places, strict=True):
        if place >= 0:
            parts[place].append(row.ravel())


def groups_of(model: Any, overrides: Overrides[Any]) -> Groups:
    """The removable groups of `model`.

    Raises:
        InputError: an override of a layer that is not there, or no channel can be removed.
    """
    every = list(model._flatten_layers(include_self=False))
    overrides.check(every)
    graph = graph_of(model)
    for layer in every:
        if overrides.left_alone(layer) and layer.name in graph.outputs:
            graph.union.freeze(graph.outputs[layer.name], "left alone as the pipeline says")
    layers = _layers(graph, every)
    roots = np.unique(np.concatenate([layer.roots for layer in layers])) if layers else np.array([], int)
    free = np.array([root for root in roots if int(root) not in graph.union.frozen], int)
    if not len(free):
        named = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers) or "no layer makes channels"
        raise InputError(f"no channel of '{model.name}' can be removed: {named}")
    fixed = sum(int(np.prod(weight.shape)) for weight in model.weights if id(weight) not in graph.cuts)
    return Groups(graph, layers, free, fixed)


def _layers(graph: Graph, every: list[Any]) -> tuple[Layer, ...]:
    """Those that make channels, and those with kernels that channels are not followed through."""
    found: dict[str, Layer] = {}
    for layer in every:
        cls = type(layer).__name__
        if layer.name in graph.outputs:
            found.setdefault(layer.name, _layer(graph, layer.name, cls, graph.outputs[layer.name]))
        elif layer.name in graph.stopped and any(len(weight.shape) > 1 for weight in layer.weights):
            ids, reason = graph.stopped[layer.name]
            found.setdefault(layer.name, Layer(layer.name, cls, graph.union.roots(ids), f"one {reason}"))
    return tuple(found.values())


def _layer(graph: Graph, name: str, cls: str, ids: Array) -> Layer:
    roots = graph.union.roots(ids)
    reasons = [graph.union.frozen.get(int(root)) for root in roots]
    told = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    stays = sum(reason is not None for reason in reasons)
    return Layer(
        name, cls, roots, told and (told if stays == len(roots) else f"{stays} of {len(roots)} channels: {told}")
    )
