"""What a model is trained on and towards: data, augmentation and teachers."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.errors import InputError
from edgepipe.tasks.quality import Task, single_labels
from edgepipe.training.distillation.distiller import Distiller


class LabelledSamples(Protocol):
    """Samples and, unless the task needs none, their labels."""

    @property
    def x(self) -> Arrays: ...
    @property
    def y(self) -> Arrays | None: ...


class Augmenter(Protocol):
    """Augments batches; see `edgepipe.training.augmentation`."""

    @property
    def has_soft_labels(self) -> bool:
        """Whether labels become class probabilities, (b, classes)."""

    def __call__(self, indices: Array, x: Any, y: Any, random: np.random.Generator) -> tuple[Any, Any]:
        """The batch of the training samples `indices`, augmented."""

    def describe(self) -> str:
        """The changes, for the report."""


@dataclass
class TrainingSetup:
    """The data, augmentation and teachers of one stage; `seed` determines the order of samples."""

    task: Task
    train: LabelledSamples
    validation: LabelledSamples
    augmenter: Augmenter | None = None
    distiller: Distiller | None = None
    seed: int = 0
    _fit_count: int = field(default=0, repr=False)

    @property
    def is_static(self) -> bool:
        """Whether samples and labels reach the loss unchanged."""
        return self.augmenter is None and self.distiller is None

    @property
    def notes(self) -> list[str]:
        """Notes for the report on augmentation and distillation."""
        note_lines = [] if self.distiller is None else list(self.distiller.notes)
        if self.augmenter is None:
            return note_lines
        note_lines.append(f"training samples augmented: {self.augmenter.describe()}")
        return note_lines + (["teachers see the augmented samples"] if self.distiller is not None else [])

    def iterate_batches(self, batch_size: int, is_binary: bool) -> "BatchIterator":
        """The batches of one fit; each fit has its own order."""
        self._fit_count += 1
        indices = fitting_indices(self.task, self.train)
        if self.distiller is not None and self.augmenter is None:
            self.distiller.cache_targets(samples_and_targets(self.task, self.train)[0])
        return BatchIterator(self, indices, batch_size, is_binary, np.random.default_rng([self.seed, self._fit_count]))


@dataclass
class BatchIterator:
    """Endless batches `(samples, targets)`: all samples once per epoch, in a new order."""

    setup: TrainingSetup
    sample_indices: Array  # of the training samples to fit
    batch_size: int
    is_binary: bool
    random: np.random.Generator

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.sample_indices) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        x, loss_targets = samples_and_targets(self.setup.task, self.setup.train)
        while True:
            shuffled_positions = self.random.permutation(len(self.sample_indices))
            for start in range(0, len(shuffled_positions), self.batch_size):
                yield self._build_batch(shuffled_positions[start : start + self.batch_size], x, loss_targets)

    def _build_batch(self, positions: Array, x: Arrays, loss_targets: Any) -> tuple[Any, Any]:
        samples, labels = take_samples(x, positions), take_samples(loss_targets, positions)
        if self.setup.augmenter is not None:
            samples, labels = self._augment_batch(self.sample_indices[positions], samples, labels)
        if self.setup.distiller is None:
            return samples, labels
        return samples, (labels, *self.setup.distiller.batch_targets(positions, samples))

    def _augment_batch(self, indices: Array, samples: Arrays, labels: Any) -> tuple[Any, Any]:
        assert self.setup.augmenter is not None
        samples, labels = self.setup.augmenter(indices, samples, labels, self.random)
        if self.setup.task.kind == "reconstruction":
            return samples, samples  # the augmented input is also the target
        return samples, labels[:, 1:] if self.setup.augmenter.has_soft_labels and self.is_binary else labels


def fitting_indices(task: Task, train: LabelledSamples) -> Array:
    """Indices of the training samples to fit: all, or for reconstruction the normal ones."""
    if task.kind != "reconstruction" or train.y is None:
        return np.arange(count_samples(train.x))
    # An autoencoder learns normal samples: it must not see anomalies.
    return np.flatnonzero(np.ravel(single_labels(task, train.y)) == 0)


def samples_and_targets(task: Task, train: LabelledSamples) -> tuple[Arrays, Any]:
    """Samples of `train` and the targets of the loss: labels or, for reconstruction, the samples."""
    if task.kind != "reconstruction":
        return train.x, _label_targets(task, train.y)
    normal_samples = train.x if train.y is None else take_samples(train.x, fitting_indices(task, train))
    return normal_samples, normal_samples


def _label_targets(task: Task, y: Arrays | None) -> Any:
    if y is None:
        raise InputError(f"a {task.kind} task needs labels to train on, and the data has none")
    if task.kind == "custom":
        return y
    y = single_labels(task, y)
    return y.reshape(-1, 1) if task.kind == "regression" and y.ndim == 1 else y
