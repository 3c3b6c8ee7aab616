"""One training run: deterministic for a seed, reported after each epoch, stopped when it diverges."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core import interrupts
from edgepipe.core.arrays import Arrays, count_samples
from edgepipe.core.errors import InputError
from edgepipe.models.port_names import output_names
from edgepipe.tasks.quality import Task, compute_quality
from edgepipe.training import loss_and_optimizer
from edgepipe.training.named_outputs import arrange_by_output
from edgepipe.training.training_setup import LabelledSamples, TrainingSetup, samples_and_targets


class EpochReporter(Protocol):
    """Called after each epoch with its number (from 1), the number of epochs, and its loss and metrics."""

    def __call__(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    learning_rate: float
    decay: Literal["constant", "cosine"] = "constant"
    patience: int | None = None  # early stopping after so many epochs without improvement; restores the best weights

    def total_steps(self, sample_count: int) -> int:
        """Total optimizer steps."""
        return self.epochs * math.ceil(sample_count / self.batch_size)


@dataclass
class TrainingHistory:
    """Validation quality after each epoch, and the epoch (from 1) whose weights the model has."""

    epoch_metrics: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0


def set_seeds(seed: int) -> None:
    """Make this process reproducible from here on: seeds, kernels, and the counters of automatic layer names."""
    keras.backend.clear_session()
    tf_keras.backend.clear_session()
    tf.config.experimental.enable_op_determinism()
    random.seed(seed)
    np.random.seed(seed)
    tf.random.set_seed(seed)
    keras.utils.set_random_seed(seed)


def fit(
    model: Any,
    setup: TrainingSetup,
    schedule: TrainingSchedule,
    report_epoch: EpochReporter,
    callbacks: Iterable[Any] = (),
) -> TrainingHistory:
    """Train `model` in place; evaluate it on the validation split after each epoch.

    Args:
        model: Keras 3 or tf_keras.
        setup: the data, augmentation and teachers.
        schedule: epochs, batch size and learning rate.
        report_epoch: called after each epoch.
        callbacks: further Keras callbacks, of the model's own Keras.

    Raises:
        InputError: the data or a teacher does not fit the model, or the loss is no longer finite.
    """
    task = setup.task
    samples, labels = samples_and_targets(task, setup.train)
    loss_targets = _arrange_targets(model, setup, labels)
    loss_and_optimizer.check_data_shapes(model, task, samples, loss_targets)
    learning_rate, history = _build_learning_rate(schedule, model, count_samples(samples)), TrainingHistory()
    soft_labels = setup.augmenter is not None and setup.augmenter.has_soft_labels
    trained_model, loss_fns, loss_weights = _model_to_train(
        model, setup, loss_and_optimizer.build_loss(task, model, soft_labels=soft_labels)
    )
    trained_model.compile(
        optimizer=loss_and_optimizer.build_optimizer(task, model, learning_rate),
        loss=loss_fns,
        loss_weights=loss_weights,
    )
    epoch_callback = _build_epoch_callback(model, setup, schedule, history, report_epoch)
    fit_options: dict[str, Any] = {"epochs": schedule.epochs, "verbose": 0, "callbacks": [*callbacks, epoch_callback]}
    if setup.is_static:
        trained_model.fit(samples, loss_targets, batch_size=schedule.batch_size, **fit_options)
    else:
        batch_iterator = setup.iterate_batches(schedule.batch_size, loss_and_optimizer.is_binary(task, model))
        batches = ((x, arrange_by_output(model, "labels", y)) for x, y in batch_iterator)
        trained_model.fit(batches, steps_per_epoch=batch_iterator.steps_per_epoch, shuffle=False, **fit_options)
    epoch_callback.finish()
    return history


def _arrange_targets(model: Any, setup: TrainingSetup, labels: Any) -> Any:
    if isinstance(labels, dict) and setup.distiller is not None:
        raise InputError(
            f"the labels are given by output ({', '.join(labels)}), and teachers take one output: remove them, or give "
            "the model one output"
        )
    return arrange_by_output(model, "labels", labels)


def _model_to_train(model: Any, setup: TrainingSetup, task_loss: Any) -> tuple[Any, Any, Any]:
    """The model to train, its losses and their weights; with teachers, the model has an output per loss term."""
    if setup.distiller is None:
        return model, task_loss, None
    student = setup.distiller.build_student(model, task_loss)
    return student.model, student.loss_fns, student.loss_weights


def _build_learning_rate(schedule: TrainingSchedule, model: Any, sample_count: int) -> Any:
    if schedule.decay == "constant":
        return schedule.learning_rate
    return loss_and_optimizer.keras_module_of(model).optimizers.schedules.CosineDecay(
        schedule.learning_rate, schedule.total_steps(sample_count)
    )


def predict(model: Any, x: Arrays, batch_size: int = 256) -> Any:
    """Outputs of a Keras model for all of `x`, as numpy: one array, or one per named output."""
    arrays = keras.tree.flatten(model.predict(x, batch_size=batch_size, verbose=0))
    return arrays[0] if len(arrays) == 1 else dict(zip(output_names(model), arrays, strict=True))


def evaluate(model: Any, task: Task, samples: LabelledSamples) -> dict[str, float]:
    """Every quality metric of `task` for a Keras model on `samples`."""
    return compute_quality(
        task, samples.x, samples.y, predict(model, samples.x), is_logits=loss_and_optimizer.gives_logits(model)
    )


def _build_epoch_callback(
    model: Any, setup: TrainingSetup, schedule: TrainingSchedule, history: TrainingHistory, report_epoch: EpochReporter
) -> Any:
    epoch_watch = _EpochWatch(model, setup.task, setup.validation, schedule, history, report_epoch)
    callback_class = loss_and_optimizer.keras_module_of(model).callbacks.Callback

    class EpochCallback(callback_class):  # type: ignore[misc, valid-type]  # each Keras has its own Callback class
        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            interrupts.check()

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            self.model.stop_training = epoch_watch.end_epoch(epoch + 1, dict(logs or {}))

        def finish(self) -> None:
            epoch_watch.finish()

    return EpochCallback()


@dataclass
class _EpochWatch:
    model: Any
    task: Task
    validation: LabelledSamples
    schedule: TrainingSchedule
    history: TrainingHistory
    report_epoch: EpochReporter
    best_score: float = -math.inf
    best_weights: list[Any] | None = None

    def end_epoch(self, epoch: int, logs: dict[str, float]) -> bool:
        """Evaluate after epoch `number`; returns whether to stop."""
        if not math.isfinite(logs["loss"]):
            raise InputError(f"training diverged: the loss is {logs['loss']} in epoch {epoch}; lower learning_rate")
        metrics = evaluate(self.model, self.task, self.validation)
        self.history.epoch_metrics.append({"loss": float(logs["loss"]), **metrics})
        self.history.kept_epoch = epoch if self.schedule.patience is None else self.history.kept_epoch
        named_metrics = {"train loss": float(logs["loss"])} | {f"validation {n}": value for n, value in metrics.items()}
        self.report_epoch(epoch, self.schedule.epochs, named_metrics)
        if self.schedule.patience is None:
            return False
        self._keep_best(epoch, metrics[self.task.primary_measure])
        return epoch - self.history.kept_epoch >= self.schedule.patience

    def _keep_best(self, epoch: int, measure_value: float) -> None:
        score = measure_value if self.task.measures[self.task.primary_measure].higher_is_better else -measure_value
        if score > self.best_score:
            self.best_score, self.history.kept_epoch, self.best_weights = score, epoch, self.model.get_weights()

    def finish(self) -> None:
        if self.best_weights is not None:
            self.model.set_weights(self.best_weights)
