"""One training run: deterministic for a seed, shown as it goes, stopped when it diverges."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.arrays import Array, Arrays, count, take
from edgepipe.errors import InputError
from edgepipe.tasks.quality import Task, quality
from edgepipe.training import objective


class Data(Protocol):
    """Samples and, unless the task needs none, their labels."""

    @property
    def x(self) -> Arrays: ...
    @property
    def y(self) -> Array | None: ...


class EpochShown(Protocol):
    """Called after each epoch with its number (from 1), the number of epochs, and the losses and metrics so far."""

    def __call__(self, epoch: int, epochs: int, values: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    decay: Literal["constant", "cosine"] = "constant"
    patience: int | None = None  # epochs without a better validation quality; the best weights are kept

    def steps(self, samples: int) -> int:
        """Optimizer steps in all."""
        return self.epochs * math.ceil(samples / self.batch_size)


@dataclass
class History:
    """Validation quality after each epoch, and which epoch's weights the model has now (from 1)."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    kept: int = 0


def seeded(seed: int) -> None:
    """Make everything that follows in this process repeatable: seeds, kernels, and the counters behind auto-names."""
    keras.backend.clear_session()
    tf_keras.backend.clear_session()
    tf.config.experimental.enable_op_determinism()
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)
    keras.utils.set_random_seed(seed)


def fit(
    model: Any,
    task: Task,
    train: Data,
    validation: Data,
    schedule: Schedule,
    shown: EpochShown,
    callbacks: Iterable[Any] = (),
) -> History:
    """Train `model` in place on `train`; after each epoch take the quality on `validation`.

    Raises:
        InputError: the data does not fit the model, or the loss is no longer finite.
    """
    samples, wanted = targets(task, train)
    objective.check_fits(model, task, samples, wanted)
    rate = _rate(schedule, model, count(samples))
    model.compile(optimizer=objective.optimizer(task, model, rate), loss=objective.loss(task, model))
    history = History()
    tail = _watcher(model, task, validation, schedule, history, shown)
    model.fit(
        samples,
        wanted,
        batch_size=schedule.batch_size,
        epochs=schedule.epochs,
        verbose=0,
        callbacks=[*callbacks, tail],
    )
    tail.finish()
    return history


def targets(task: Task, train: Data) -> tuple[Arrays, Any]:
    """Samples of `train`, and what a loss compares outputs with: labels or, for reconstruction, the samples."""
    if task.kind != "reconstruction":
        return train.x, _column(task, train.y)
    # An autoencoder learns what is normal: it must not see the anomalies.
    normal = train.x if train.y is None else take(train.x, np.ravel(train.y) == 0)
    return normal, normal


def _column(task: Task, y: Array | None) -> Any:
    if y is None:
        raise InputError(f"a {task.kind} task needs labels to train on, and the data has none")
    return y.reshape(-1, 1) if task.kind == "regression" and y.ndim == 1 else y


def _rate(schedule: Schedule, model: Any, samples: int) -> Any:
    if schedule.decay == "constant":
        return schedule.learning_rate
    return objective.api(model).optimizers.schedules.CosineDecay(schedule.learning_rate, schedule.steps(samples))


def predict(model: Any, x: Arrays, batch_size: int = 256) -> Any:
    """Outputs of a Keras model for all of `x`, as numpy: one array, or one per named output."""
    outputs = model.predict(x, batch_size=batch_size, verbose=0)
    if isinstance(outputs, (list, tuple)):
        return dict(zip(model.output_names, outputs, strict=True))
    return outputs


def evaluate(model: Any, task: Task, data: Data) -> dict[str, float]:
    """Every quality metric of `task` for a Keras model on `data`."""
    return quality(task, data.x, data.y, predict(model, data.x), logits=objective.gives_logits(model))


def _watcher(model: Any, task: Task, validation: Data, schedule: Schedule, history: History, shown: EpochShown) -> Any:
    watch = _Watch(model, task, validation, schedule, history, shown)
    base = objective.api(model).callbacks.Callback

    class Watcher(base):  # type: ignore[misc, valid-type]  # the two Keras libraries have a Callback class each
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            watch.epoch(epoch + 1, dict(logs or {}))

        def finish(self) -> None:
            watch.finish()

    return Watcher()


@dataclass
class _Watch:
    model: Any
    task: Task
    validation: Data
    schedule: Schedule
    history: History
    shown: EpochShown
    best: float = -math.inf
    weights: list[Any] | None = None

    def epoch(self, number: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            raise InputError(f"training diverged: the loss is {logs['loss']} in epoch {number}; lower learning_rate")
        values = evaluate(self.model, self.task, self.validation)
        self.history.epochs.append({"loss": float(logs["loss"]), **values})
        self.history.kept = number if self.schedule.patience is None else self.history.kept
        self.shown(number, self.schedule.epochs, self.history.epochs[-1])
        if self.schedule.patience is not None:
            self._keep_best(number, values[self.task.deciding], self.schedule.patience)

    def _keep_best(self, number: int, value: float, patience: int) -> None:
        score = value if self.task.measures[self.task.deciding].higher_is_better else -value
        if score > self.best:
            self.best, self.history.kept, self.weights = score, number, self.model.get_weights()
        elif number - self.history.kept >= patience:
            self.model.stop_training = True

    def finish(self) -> None:
        if self.weights is not None:
            self.model.set_weights(self.weights)
