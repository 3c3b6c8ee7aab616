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

from edgepipe.core.arrays import Arrays, count
from edgepipe.core.errors import InputError
from edgepipe.tasks.quality import Task, quality
from edgepipe.training import loss_and_optimizer
from edgepipe.training.training_setup import Data, Lesson, targets


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
    lesson: Lesson,
    schedule: Schedule,
    shown: EpochShown,
    callbacks: Iterable[Any] = (),
) -> History:
    """Train `model` in place on the lesson's training samples; after each epoch take the quality on validation.

    Raises:
        InputError: the data or a teacher does not fit the model, or the loss is no longer finite.
    """
    task = lesson.task
    samples, wanted = targets(task, lesson.train)
    loss_and_optimizer.check_fits(model, task, samples, wanted)
    rate, history = _rate(schedule, model, count(samples)), History()
    soft = lesson.augmenter is not None and lesson.augmenter.soft
    taught, losses, weights = _taught(model, lesson, loss_and_optimizer.loss(task, model, soft=soft))
    taught.compile(optimizer=loss_and_optimizer.optimizer(task, model, rate), loss=losses, loss_weights=weights)
    tail = _watcher(model, lesson, schedule, history, shown)
    common: dict[str, Any] = {"epochs": schedule.epochs, "verbose": 0, "callbacks": [*callbacks, tail]}
    if lesson.plain:
        taught.fit(samples, wanted, batch_size=schedule.batch_size, **common)
    else:
        feed = lesson.feed(schedule.batch_size, loss_and_optimizer.is_binary(task, model))
        taught.fit(iter(feed), steps_per_epoch=feed.steps, shuffle=False, **common)
    tail.finish()
    return history


def _taught(model: Any, lesson: Lesson, loss: Any) -> tuple[Any, Any, Any]:
    """What is trained, its losses and their weights: the model itself, or with what its teachers ask for."""
    if lesson.teaching is None:
        return model, loss, None
    pupil = lesson.teaching.pupil(model, loss)
    return pupil.model, pupil.losses, pupil.weights


def _rate(schedule: Schedule, model: Any, samples: int) -> Any:
    if schedule.decay == "constant":
        return schedule.learning_rate
    return loss_and_optimizer.api(model).optimizers.schedules.CosineDecay(
        schedule.learning_rate, schedule.steps(samples)
    )


def predict(model: Any, x: Arrays, batch_size: int = 256) -> Any:
    """Outputs of a Keras model for all of `x`, as numpy: one array, or one per named output."""
    outputs = model.predict(x, batch_size=batch_size, verbose=0)
    if isinstance(outputs, (list, tuple)):
        return dict(zip(model.output_names, outputs, strict=True))
    return outputs


def evaluate(model: Any, task: Task, data: Data) -> dict[str, float]:
    """Every quality metric of `task` for a Keras model on `data`."""
    return quality(task, data.x, data.y, predict(model, data.x), logits=loss_and_optimizer.gives_logits(model))


def _watcher(model: Any, lesson: Lesson, schedule: Schedule, history: History, shown: EpochShown) -> Any:
    watch = _Watch(model, lesson.task, lesson.validation, schedule, history, shown)
    base = loss_and_optimizer.api(model).callbacks.Callback

    class Watcher(base):  # type: ignore[misc, valid-type]  # the two Keras libraries have a Callback class each
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            self.model.stop_training = watch.epoch(epoch + 1, dict(logs or {}))

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

    def epoch(self, number: int, logs: dict[str, float]) -> bool:
        """Take the quality after epoch `number`; whether that was the last one."""
        if not math.isfinite(logs["loss"]):
            raise InputError(f"training diverged: the loss is {logs['loss']} in epoch {number}; lower learning_rate")
        values = evaluate(self.model, self.task, self.validation)
        self.history.epochs.append({"loss": float(logs["loss"]), **values})
        self.history.kept = number if self.schedule.patience is None else self.history.kept
        self.shown(number, self.schedule.epochs, self.history.epochs[-1])
        if self.schedule.patience is None:
            return False
        self._keep_best(number, values[self.task.deciding])
        return number - self.history.kept >= self.schedule.patience

    def _keep_best(self, number: int, value: float) -> None:
        score = value if self.task.measures[self.task.deciding].higher_is_better else -value
        if score > self.best:
            self.best, self.history.kept, self.weights = score, number, self.model.get_weights()

    def finish(self) -> None:
        if self.weights is not None:
            self.model.set_weights(self.weights)
