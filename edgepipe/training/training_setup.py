"""What a model is trained on and towards: the data, what is done to it, and who teaches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.errors import InputError
from edgepipe.tasks.quality import Task
from edgepipe.training.distillation.distiller import Teaching


class Data(Protocol):
    """Samples and, unless the task needs none, their labels."""

    @property
    def x(self) -> Arrays: ...
    @property
    def y(self) -> Array | None: ...


class Augmenter(Protocol):
    """Changes a batch at random; see `edgepipe.training.augmentation`."""

    @property
    def soft(self) -> bool:
        """Whether labels become shares of classes, (b, classes)."""

    def __call__(self, chosen: Array, x: Any, y: Any, random: np.random.Generator) -> tuple[Any, Any]:
        """The batch of the training samples `chosen`, changed."""

    def describe(self) -> str:
        """What is done, for the report."""


@dataclass
class Lesson:
    """The data of one stage, what is done to it at random, and who teaches; `seed` decides the order of samples."""

    task: Task
    train: Data
    validation: Data
    augmenter: Augmenter | None = None
    teaching: Teaching | None = None
    seed: int = 0
    _fits: int = field(default=0, repr=False)

    @property
    def plain(self) -> bool:
        """Whether samples and labels go into the loss as they are."""
        return self.augmenter is None and self.teaching is None

    @property
    def notes(self) -> list[str]:
        """What is worth telling of how it was taught."""
        told = [] if self.teaching is None else list(self.teaching.notes)
        if self.augmenter is None:
            return told
        told.append(f"training samples augmented: {self.augmenter.describe()}")
        return told + (["teachers see the augmented samples"] if self.teaching is not None else [])

    def feed(self, batch_size: int, binary: bool) -> "Feed":
        """The batches of one fit; another fit has another order."""
        self._fits += 1
        chosen = fitted(self.task, self.train)
        if self.teaching is not None and self.augmenter is None:
            self.teaching.keep(targets(self.task, self.train)[0])
        return Feed(self, chosen, batch_size, binary, np.random.default_rng([self.seed, self._fits]))


@dataclass
class Feed:
    """Endless batches `(samples, targets)`: each epoch all samples in another order."""

    lesson: Lesson
    chosen: Array  # the samples of the training split that are fitted
    batch_size: int
    binary: bool
    random: np.random.Generator

    @property
    def steps(self) -> int:
        """Batches of one epoch."""
        return math.ceil(len(self.chosen) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        x, wanted = targets(self.lesson.task, self.lesson.train)
        while True:
            order = self.random.permutation(len(self.chosen))
            for start in range(0, len(order), self.batch_size):
                yield self._batch(order[start : start + self.batch_size], x, wanted)

    def _batch(self, part: Array, x: Arrays, wanted: Any) -> tuple[Any, Any]:
        samples, labels = take(x, part), take(wanted, part)
        if self.lesson.augmenter is not None:
            samples, labels = self._augmented(self.chosen[part], samples, labels)
        if self.lesson.teaching is None:
            return samples, labels
        return samples, (labels, *self.lesson.teaching.targets(part, samples))

    def _augmented(self, chosen: Array, samples: Arrays, labels: Any) -> tuple[Any, Any]:
        assert self.lesson.augmenter is not None
        samples, labels = self.lesson.augmenter(chosen, samples, labels, self.random)
        if self.lesson.task.kind == "reconstruction":
            return samples, samples  # what is to be rebuilt is what was given
        return samples, labels[:, 1:] if self.lesson.augmenter.soft and self.binary else labels


def fitted(task: Task, train: Data) -> Array:
    """Which training samples are fitted: all, or the normal ones if the task is to rebuild these."""
    if task.kind != "reconstruction" or train.y is None:
        return np.arange(count(train.x))
    # An autoencoder learns what is normal: it must not see the anomalies.
    return np.flatnonzero(np.ravel(train.y) == 0)


def targets(task: Task, train: Data) -> tuple[Arrays, Any]:
    """Samples of `train`, and what a loss compares outputs with: labels or, for reconstruction, the samples."""
    if task.kind != "reconstruction":
        return train.x, _column(task, train.y)
    normal = train.x if train.y is None else take(train.x, fitted(task, train))
    return normal, normal


def _column(task: Task, y: Array | None) -> Any:
    if y is None:
        raise InputError(f"a {task.kind} task needs labels to train on, and the data has none")
    return y.reshape(-1, 1) if task.kind == "regression" and y.ndim == 1 else y
