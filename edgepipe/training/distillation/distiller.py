"""Prepares a student for distillation: the model to train, and the targets of each batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from edgepipe.core.arrays import Array, Arrays
from edgepipe.models.port_names import input_names
from edgepipe.tasks.quality import Task
from edgepipe.training import loss_and_optimizer
from edgepipe.training.distillation import feature_taps
from edgepipe.training.distillation.loss_terms import LossTerm, as_scored_model, build_loss_terms
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.distillation.teacher_outputs import TeacherOutputs

ADAPTOR_SEED = 1412_6550


@dataclass(frozen=True)
class StudentModel:
    """The student to train: `model` computes its outputs and one tensor per term of the distillation loss."""

    model: Any
    loss_fns: list[Callable[[Any, Any], Any]]  # the task's, then one per term: (target, tensor) -> (n,)
    loss_weights: list[float]


@dataclass
class Distiller:
    """Teachers (name -> Keras model) and what the student learns from them; cached targets last from fit to fit."""

    options: Teacher
    teacher_models: dict[str, Any]
    task: Task
    batch_size: int
    notes: list[str] = field(default_factory=list)
    _teacher_outputs: TeacherOutputs | None = None
    _is_cached: bool = False

    def build_student(self, student: Any, task_loss: Any) -> StudentModel:
        """Prepare `student`.

        Several teachers share the weight of a term equally. For `logits` that is, up to a constant, the loss towards
        the mean of their probabilities.

        Raises:
            InputError: student and teacher do not match; the message names the pair.
        """
        student = feature_taps.as_functional_model(student)
        terms_by_teacher = {name: self._loss_terms(student, name) for name in self.teacher_models}
        loss_terms = [term for teacher_terms in terms_by_teacher.values() for term in teacher_terms]
        if self._teacher_outputs is None:
            teacher_graphs = {
                name: feature_taps.as_functional_model(model) for name, model in self.teacher_models.items()
            }
            self._teacher_outputs = TeacherOutputs(_build_probe(teacher_graphs, terms_by_teacher), self.batch_size)
            self.notes += [
                f"taught by '{teacher_name}': {term.title}"
                for teacher_name, teacher_terms in terms_by_teacher.items()
                for term in teacher_terms
            ]
        alpha = self.options.logits.alpha if self.options.logits is not None else 0.0
        return StudentModel(
            _build_student_graph(student, loss_terms),
            [task_loss, *(term.loss_fn for term in loss_terms)],
            [1.0 - alpha, *(term.weight / len(self.teacher_models) for term in loss_terms)],
        )

    def _loss_terms(self, student: Any, teacher_name: str) -> list[LossTerm]:
        scored_teacher = as_scored_model(
            feature_taps.as_functional_model(self.teacher_models[teacher_name]), self.task, f"teacher '{teacher_name}'"
        )
        scored_student = as_scored_model(student, self.task, "student")
        return list(build_loss_terms(self.options, scored_student, scored_teacher, self.task.kind == "classification"))

    def cache_targets(self, x: Arrays) -> None:
        """Compute the teachers' targets for all samples `x` once; only valid without augmentation."""
        if self._is_cached:
            return
        cached_bytes = self._prepared_teacher_outputs.cache_targets(x)
        self._is_cached = True
        if cached_bytes is None:
            self.notes.append("teacher outputs take over 1 GiB and are recomputed in every epoch")
        else:
            self.notes.append(f"teacher outputs computed once ({cached_bytes / 2**20:.1f} MiB)")

    def batch_targets(self, indices: Array, x: Arrays) -> list[Array]:
        """The teachers' targets of a batch: cached ones of the samples `indices`, else computed from `x`."""
        return self._prepared_teacher_outputs.batch_targets(indices, x)

    @property
    def _prepared_teacher_outputs(self) -> TeacherOutputs:
        if self._teacher_outputs is None:
            raise RuntimeError("call build_student first")
        return self._teacher_outputs


def _build_student_graph(student: Any, loss_terms: list[LossTerm]) -> Any:
    layers_module = loss_and_optimizer.keras_module_of(student).layers
    term_outputs = []
    for number, term in enumerate(loss_terms):
        tensor = layers_module.Lambda(term.student_fn, name=f"taught{number}")(term.student_tensor)
        term_outputs.append(
            tensor if not term.adaptor_channels else _build_adaptor(student, term.adaptor_channels, number)(tensor)
        )
    inputs = student.inputs if len(student.inputs) > 1 else student.inputs[0]
    return loss_and_optimizer.keras_module_of(student).Model(
        inputs, [student.outputs[0], *term_outputs], name=student.name
    )


def _build_adaptor(student: Any, channels: int, number: int) -> Any:
    keras_module = loss_and_optimizer.keras_module_of(student)
    initializer = keras_module.initializers.GlorotUniform(seed=ADAPTOR_SEED + number)
    return keras_module.layers.Dense(channels, kernel_initializer=initializer, name=f"adaptor{number}")


def _build_probe(
    teacher_graphs: dict[str, Any], terms_by_teacher: dict[str, list[LossTerm]]
) -> Callable[[Arrays], list[Any]]:
    """A function from samples to the targets of every loss term, teacher by teacher."""
    probe_model_by_teacher = {
        name: loss_and_optimizer.keras_module_of(model).Model(
            model.inputs, [term.teacher_tensor for term in terms_by_teacher[name]]
        )
        for name, model in teacher_graphs.items()
    }

    def probe(x: Arrays) -> list[Any]:
        tensors_by_teacher = {
            name: tf.nest.flatten(model(_ordered_inputs(model, x), training=False))
            for name, model in probe_model_by_teacher.items()
        }
        return [
            term.target_fn(tensor)
            for name in probe_model_by_teacher
            for term, tensor in zip(terms_by_teacher[name], tensors_by_teacher[name], strict=True)
        ]

    return probe


def _ordered_inputs(model: Any, x: Arrays) -> Any:
    """Named samples in the order of the model's inputs."""
    if not isinstance(x, dict):
        return x
    return [x[name] for name in input_names(model)]
