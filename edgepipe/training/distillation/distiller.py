"""Prepares a student for distillation: the model to train, and the targets of each batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from edgepipe.core.arrays import Array, Arrays
from edgepipe.tasks.quality import Task
from edgepipe.training import loss_and_optimizer
from edgepipe.training.distillation import feature_taps
from edgepipe.training.distillation.loss_terms import LossTerm, build_loss_terms, score_model
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.distillation.teacher_outputs import TeacherOutputs

ADAPTOR_SEED = 1412_6550


@dataclass(frozen=True)
class StudentModel:
    """The student to train: `model` computes its outputs and one tensor per term of the distillation loss."""

    model: Any
    losses: list[Callable[[Any, Any], Any]]  # the task's, then one per term: (target, tensor) -> (n,)
    weights: list[float]


@dataclass
class Distiller:
    """Teachers (name -> Keras model) and what the student learns from them; cached targets last from fit to fit."""

    options: Teacher
    models: dict[str, Any]
    task: Task
    batch_size: int
    notes: list[str] = field(default_factory=list)
    _teachers: TeacherOutputs | None = None
    _is_cached: bool = False

    def build_student(self, student: Any, task_loss: Any) -> StudentModel:
        """Prepare `student`.

        Several teachers share the weight of a term equally. For `logits` that is, up to a constant, the loss towards
        the mean of their probabilities.

        Raises:
            InputError: student and teacher do not match; the message names the pair.
        """
        student = feature_taps.as_graph(student)
        terms_by_teacher = {name: self._loss_terms(student, name) for name in self.models}
        terms = [term for teacher_terms in terms_by_teacher.values() for term in teacher_terms]
        if self._teachers is None:
            teacher_graphs = {name: feature_taps.as_graph(model) for name, model in self.models.items()}
            self._teachers = TeacherOutputs(_build_probe(teacher_graphs, terms_by_teacher), self.batch_size)
            self.notes += [
                f"taught by '{name}': {term.title}"
                for name, teacher_terms in terms_by_teacher.items()
                for term in teacher_terms
            ]
        alpha = self.options.logits.alpha if self.options.logits is not None else 0.0
        return StudentModel(
            _student_graph(student, terms),
            [task_loss, *(term.loss for term in terms)],
            [1.0 - alpha, *(term.weight / len(self.models) for term in terms)],
        )

    def _loss_terms(self, student: Any, name: str) -> list[LossTerm]:
        scored_teacher = score_model(feature_taps.as_graph(self.models[name]), self.task, f"teacher '{name}'")
        scored_student = score_model(student, self.task, "student")
        return list(build_loss_terms(self.options, scored_student, scored_teacher, self.task.kind == "classification"))

    def cache_targets(self, x: Arrays) -> None:
        """Compute the teachers' targets for all samples `x` once; only valid without augmentation."""
        if self._is_cached:
            return
        cached_bytes = self._prepared_teachers.cache_targets(x)
        self._is_cached = True
        if cached_bytes is None:
            self.notes.append("teacher outputs take over 1 GiB and are recomputed in every epoch")
        else:
            self.notes.append(f"teacher outputs computed once ({cached_bytes / 2**20:.1f} MiB)")

    def targets(self, indices: Array, x: Arrays) -> list[Array]:
        """The teachers' targets of a batch: cached ones of the samples `indices`, else computed from `x`."""
        return self._prepared_teachers.targets(indices, x)

    @property
    def _prepared_teachers(self) -> TeacherOutputs:
        if self._teachers is None:
            raise RuntimeError("call build_student first")
        return self._teachers


def _student_graph(student: Any, terms: list[LossTerm]) -> Any:
    layers = loss_and_optimizer.keras_of(student).layers
    outputs = []
    for number, term in enumerate(terms):
        tensor = layers.Lambda(term.student_fn, name=f"taught{number}")(term.student_tensor)
        outputs.append(
            tensor if not term.adaptor_channels else _adaptor(student, term.adaptor_channels, number)(tensor)
        )
    inputs = student.inputs if len(student.inputs) > 1 else student.inputs[0]
    return loss_and_optimizer.keras_of(student).Model(inputs, [student.outputs[0], *outputs], name=student.name)


def _adaptor(student: Any, channels: int, number: int) -> Any:
    library = loss_and_optimizer.keras_of(student)
    initializer = library.initializers.GlorotUniform(seed=ADAPTOR_SEED + number)
    return library.layers.Dense(channels, kernel_initializer=initializer, name=f"adaptor{number}")


def _build_probe(models: dict[str, Any], terms_by_teacher: dict[str, list[LossTerm]]) -> Callable[[Arrays], list[Any]]:
    """A function from samples to the targets of every loss term, teacher by teacher."""
    probes = {
        name: loss_and_optimizer.keras_of(model).Model(
            model.inputs, [term.teacher_tensor for term in terms_by_teacher[name]]
        )
        for name, model in models.items()
    }

    def probe(x: Arrays) -> list[Any]:
        tensors_by_teacher = {
            name: tf.nest.flatten(model(_ordered_inputs(model, x), training=False)) for name, model in probes.items()
        }
        return [
            term.target_fn(tensor)
            for name in probes
            for term, tensor in zip(terms_by_teacher[name], tensors_by_teacher[name], strict=True)
        ]

    return probe


def _ordered_inputs(model: Any, x: Arrays) -> Any:
    """Named samples in the order of the model's inputs."""
    if not isinstance(x, dict):
        return x
    names = getattr(model, "input_names", None) or [tensor.name for tensor in model.inputs]
    return [x[name] for name in names]
