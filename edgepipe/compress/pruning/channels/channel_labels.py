"""Dependencies between channels: a label on each channel of each tensor, equal for channels that depend on each other.

A layer that produces channels (a convolution, a dense layer) gives them new labels; layers that only pass them on keep
the labels; where two tensors are added, their labels are joined. Channels of one label can only be removed together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array


@dataclass(frozen=True)
class ChannelLabels:
    """The labels of a tensor of `shape`, one for each index of `axis`; axis 0 is the batch."""

    ids: Array
    shape: tuple[int | None, ...]
    axis: int

    @property
    def is_channels_last(self) -> bool:
        """Whether the channels are on the last axis."""
        return self.axis == len(self.shape) - 1


def label_last_axis(ids: Array, shape: tuple[int | None, ...]) -> ChannelLabels:
    """`ids` as labels of the last axis."""
    return ChannelLabels(ids, shape, len(shape) - 1)


@dataclass
class LabelUnion:
    """Union-find of labels, and the labels that must stay, with the reason."""

    parent_labels: list[int] = field(default_factory=list)
    freeze_reasons: dict[int, str] = field(default_factory=dict)  # root -> reason

    def new_labels(self, count: int) -> Array:
        """Create `count` labels."""
        ids = np.arange(len(self.parent_labels), len(self.parent_labels) + count)
        self.parent_labels.extend(int(label) for label in ids)
        return ids

    def find_root(self, label: int) -> int:
        """The root that represents `label` and all labels joined with it."""
        while self.parent_labels[label] != label:
            self.parent_labels[label] = self.parent_labels[self.parent_labels[label]]
            label = self.parent_labels[label]
        return label

    def find_roots(self, ids: Array) -> Array:
        """`find_root` of each."""
        return np.array([self.find_root(int(label)) for label in ids.ravel()], int).reshape(ids.shape)

    def join(self, a: Array, b: Array) -> None:
        """Join each label of `a` with the label of `b` at the same index; if either is frozen, both are."""
        for label_a, label_b in zip(a.ravel(), b.ravel(), strict=True):
            root_a, root_b = self.find_root(int(label_a)), self.find_root(int(label_b))
            if root_a == root_b:
                continue
            self.parent_labels[root_b] = root_a
            if root_b in self.freeze_reasons:
                self.freeze_reasons.setdefault(root_a, self.freeze_reasons.pop(root_b))

    def freeze(self, ids: Array, reason: str) -> None:
        """Mark labels that must stay; the first reason wins."""
        for label in np.unique(ids):
            self.freeze_reasons.setdefault(self.find_root(int(label)), reason)


@dataclass
class LabeledWeight:
    """How a weight shrinks: along each axis by the labels of its indices."""

    weight: Any
    layer_name: str
    labels_by_axis: dict[int, Array]
    has_output_labels: bool  # whether the labels include channels that this weight produces, scales or shifts
    input_axis: int | None = None  # the axis of its input channels

    def pruned_shape(self, removed_roots: Array, union: LabelUnion) -> tuple[int, ...]:
        """The shape without the channels of `removed_roots`."""
        shape = list(self.weight.shape)
        for axis, ids in self.labels_by_axis.items():
            shape[axis] = int((~np.isin(union.find_roots(ids), removed_roots)).sum())
        return tuple(shape)


@dataclass
class ChannelGraph:
    """The channels of a model, their labels and the weights that depend on them."""

    union: LabelUnion = field(default_factory=LabelUnion)
    labeled_weight_by_id: dict[int, LabeledWeight] = field(default_factory=dict)  # by id of the weight
    output_labels_by_layer: dict[str, Array] = field(
        default_factory=dict
    )  # labels of a layer's new channels, by its name
    # input labels of layers with one group per channel, by name
    grouped_input_labels: dict[str, Array] = field(default_factory=dict)
    reshape_labels: dict[str, ChannelLabels] = field(default_factory=dict)  # outputs of reshaping layers, by name
    kernel_use_counts: list[tuple[int, int]] = field(
        default_factory=list
    )  # (id of a kernel, output positions per sample)
    barrier_by_layer: dict[str, tuple[Array, str]] = field(
        default_factory=dict
    )  # layer -> labels of its output, reason

    def label_weight(
        self, layer: Any, weight: Any, labels_by_axis: dict[int, Array], input_axis: int | None = None
    ) -> None:
        """Record how `weight` depends on labels; a second call of a shared layer joins them with the first's.

        Args:
            layer: the layer that holds `weight`.
            weight: a variable.
            labels_by_axis: the label of each index, for each axis that shrinks with channels.
            input_axis: the axis of its input channels; None: it reads none.
        """
        if layer.name in self.barrier_by_layer:
            self._freeze_shared_labels(layer.name, labels_by_axis)
        labeled_weight = self.labeled_weight_by_id.get(id(weight))
        if labeled_weight is None:
            self.labeled_weight_by_id[id(weight)] = LabeledWeight(
                weight, layer.name, labels_by_axis, set(labels_by_axis) != {input_axis}, input_axis
            )
            return
        for axis, ids in labels_by_axis.items():
            self.union.join(labeled_weight.labels_by_axis[axis], ids)

    def label_outputs(self, layer: Any, count: int) -> Array:
        """The labels of the `count` channels that `layer` produces, created at its first call."""
        if layer.name not in self.output_labels_by_layer:
            self.output_labels_by_layer[layer.name] = self.union.new_labels(count)
        return self.output_labels_by_layer[layer.name]

    def add_barrier(
        self, layer: Any, input_labels: Iterator[ChannelLabels], shape: tuple[int | None, ...], reason: str
    ) -> ChannelLabels:
        """Freeze all channels that `layer` reads and outputs, in this call and in others.

        Args:
            layer: the layer that channels cannot be tracked through.
            input_labels: the labels that it reads.
            shape: of its output.
            reason: why, as a relative clause: `a Softmax, which ...`.

        Returns:
            The labels of its output, frozen.
        """
        for labels in input_labels:
            self.union.freeze(labels.ids, f"read by '{layer.name}', {reason}")
        ids = self.union.new_labels(shape[-1] or 1)
        self.union.freeze(ids, f"given by '{layer.name}', {reason}")
        self.barrier_by_layer[layer.name] = ids, reason
        for labeled_weight in self.labeled_weight_by_id.values():
            if labeled_weight.layer_name == layer.name:
                self._freeze_shared_labels(layer.name, labeled_weight.labels_by_axis)
        return label_last_axis(ids, shape)

    def _freeze_shared_labels(self, layer_name: str, labels_by_axis: dict[int, Array]) -> None:
        for ids in labels_by_axis.values():
            self.union.freeze(ids, f"another call of '{layer_name}' is one {self.barrier_by_layer[layer_name][1]}")
