"""The parts of a student's loss: for each what it takes of student and teacher, and how these are compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from edgepipe.core.errors import InputError
from edgepipe.training import loss_and_optimizer
from edgepipe.training.distillation import feature_taps, losses
from edgepipe.training.distillation.teacher_options import Teacher


@dataclass(frozen=True)
class LossTerm:
    """One part of the loss. `wanted` turns the teacher's tensor into the target; `given` the student's into what is
    compared with it, by `loss(target, given) -> (n,)`."""

    title: str
    weight: float
    student_tensor: Any
    teacher_tensor: Any
    target_fn: Callable[[Any], Any]
    student_fn: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    adaptor_channels: int = 0  # channels that a trained projection gives the student's tensor first; 0 for none


@dataclass(frozen=True)
class ScoredModel:
    """A model and what its outputs are."""

    model: Any
    has_logits: bool
    is_binary: bool
    role: str

    def scores(self, outputs: Any) -> Any:
        """Class scores of its outputs."""
        return losses.scores(outputs, self.has_logits, self.is_binary)


def build_loss_terms(
    options: Teacher, student: ScoredModel, teacher: ScoredModel, is_classification: bool
) -> Iterator[LossTerm]:
    """Every part that `options` ask for between one teacher and the student.

    Raises:
        InputError: outputs or layers that do not go together, both named with their shapes; a layer that is not there.
    """
    if options.logits is not None or options.outputs is not None:
        _check_same_outputs(student, teacher)
    if options.logits is not None:
        if not is_classification:
            raise InputError("`logits` teaches classes apart; for this task use `outputs`, `features` or `relational`")
        yield _logits_term(options.logits.temperature, options.logits.alpha, student, teacher)
    if options.outputs is not None:
        yield _output_term(options.outputs.weight, student, teacher, is_classification)
    yield from _feature_terms(options, student, teacher)
    yield from _attention_terms(options, student, teacher)
    yield from _relational_terms(options, student, teacher)


def _check_same_outputs(student: ScoredModel, teacher: ScoredModel) -> None:
    student_shape, teacher_shape = student.model.output_shape, teacher.model.output_shape
    if isinstance(student_shape, tuple) and isinstance(teacher_shape, tuple) and student_shape == teacher_shape:
        return
    summary = f"the student '{student.model.name}' gives {_shape_text(student_shape)}, the {teacher.role} {_shape_text(teacher_shape)}"
    raise InputError(f"{summary}: outputs can only be learned where both are one of the same shape")


def _shape_text(shape: Any) -> str:
    if not isinstance(shape, tuple):
        return f"{len(shape)} outputs"
    return f"{shape[1]} classes or values" if len(shape) == 2 else f"outputs of shape {shape[1:]}"


def _logits_term(temperature: float, alpha: float, student: ScoredModel, teacher: ScoredModel) -> LossTerm:
    is_binary = student.is_binary
    return LossTerm(
        f"logits (temperature {temperature:g}, alpha {alpha:g})", alpha, student.model.output, teacher.model.output,
        lambda outputs: losses.soften(teacher.scores(outputs), temperature, is_binary),
        student.scores,
        lambda target, z: losses.divergence(target, z, temperature, is_binary),
    )  # fmt: skip


def _output_term(weight: float, student: ScoredModel, teacher: ScoredModel, is_classification: bool) -> LossTerm:
    target_fn, student_fn = (teacher.scores, student.scores) if is_classification else (tf.identity, tf.identity)
    return LossTerm(f"outputs (weight {weight:g})", weight, student.model.output, teacher.model.output, target_fn, student_fn,
                losses.squared_difference)  # fmt: skip


def _feature_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.features is None:
        return
    for pair in _tensor_pairs(options.features.layers, student, teacher, feature_taps.find_embedding):
        pool = _spatial_pools(pair)
        student_channels, teacher_channels = pair.channels
        if student_channels != teacher_channels and not options.features.adaptor:
            raise InputError(
                f"{pair}: {student_channels} and {teacher_channels} channels; `adaptor: true` projects one to the other"
            )
        title = f"features of {pair} (weight {options.features.weight:g}{pool.note})"
        yield LossTerm(title, options.features.weight, pair.student, pair.teacher, pool.teacher, pool.student,
                   losses.squared_difference, teacher_channels if options.features.adaptor else 0)  # fmt: skip


def _attention_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.attention is None:
        return
    for pair in _tensor_pairs(options.attention.layers, student, teacher, feature_taps.find_last_map):
        if len(pair.student.shape) < 3 or len(pair.teacher.shape) < 3:
            raise InputError(f"{pair}: attention needs places (batch, ..., channels); found {pair.shapes}")
        pool = _spatial_pools(pair)
        title = f"attention of {pair} (weight {options.attention.weight:g}{pool.note})"
        target_fn, student_fn = _compose(pool.teacher, losses.activity_map), _compose(pool.student, losses.activity_map)
        yield LossTerm(
            title,
            options.attention.weight,
            pair.student,
            pair.teacher,
            target_fn,
            student_fn,
            losses.attention_distance,
        )


def _relational_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.relational is None:
        return
    kinds = (("distances", losses.pairwise_distances, options.relational.distance),
             ("angles", losses.triple_angles, options.relational.angle))  # fmt: skip
    for pair in _tensor_pairs(options.relational.layers, student, teacher, feature_taps.find_embedding):
        for name, relation_fn, weight in kinds:
            if weight:
                title, loss = f"{name} of {pair} (weight {weight:g})", _relation_loss(relation_fn)
                yield LossTerm(title, weight, pair.student, pair.teacher, losses.flatten, losses.flatten, loss)


def _relation_loss(relation_fn: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda target, student: losses.relation_loss(target, student, relation_fn)


def _compose(first_fn: Callable[[Any], Any], second_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda tensor: second_fn(first_fn(tensor))


@dataclass(frozen=True)
class TensorPair:
    """A tensor of the student and the teacher's that it should be like."""

    student_name: str
    teacher_name: str
    student: Any
    teacher: Any

    def __str__(self) -> str:
        return f"{self.student_name} of the student and {self.teacher_name} of the teacher"

    @property
    def channels(self) -> tuple[int, int]:
        """Of the student's tensor and the teacher's."""
        return int(self.student.shape[-1]), int(self.teacher.shape[-1])

    @property
    def shapes(self) -> str:
        """Both, without the batch."""
        return f"{tuple(self.student.shape[1:])} and {tuple(self.teacher.shape[1:])}"


def _tensor_pairs(
    layers: dict[str, str], student: ScoredModel, teacher: ScoredModel, find_usual: Any
) -> Iterator[TensorPair]:
    if not layers:
        (student_name, student_tensor), (teacher_name, teacher_tensor) = (
            find_usual(student.model, "student"),
            find_usual(teacher.model, teacher.role),
        )
        yield _check_fixed_size(TensorPair(student_name, teacher_name, student_tensor, teacher_tensor))
    for student_layer, teacher_layer in layers.items():
        student_tensor = feature_taps.find_tensor(student.model, student_layer, "student")
        yield _check_fixed_size(
            TensorPair(
                f"'{student_layer}'",
                f"'{teacher_layer}'",
                student_tensor,
                feature_taps.find_tensor(teacher.model, teacher_layer, teacher.role),
            )
        )


def _check_fixed_size(pair: TensorPair) -> TensorPair:
    for tensor in (pair.student, pair.teacher):
        if isinstance(tensor, (list, tuple)) or len(tensor.shape) < 2 or None in tuple(tensor.shape)[1:]:
            raise InputError(f"{pair}: a tensor of fixed size is needed; name other layers")
    return pair


@dataclass(frozen=True)
class _SpatialPools:
    """How the places of the finer of two tensors are averaged down to those of the other."""

    student: Callable[[Any], Any]
    teacher: Callable[[Any], Any]
    note: str = ""


def _spatial_pools(pair: TensorPair) -> _SpatialPools:
    student_grid, teacher_grid = (tuple(tensor.shape)[1:-1] for tensor in (pair.student, pair.teacher))
    if student_grid == teacher_grid:
        return _SpatialPools(tf.identity, tf.identity)
    if len(student_grid) == len(teacher_grid) <= 3:
        if all(a % b == 0 for a, b in zip(student_grid, teacher_grid, strict=True)):
            return _SpatialPools(
                _average_pool(student_grid, teacher_grid),
                tf.identity,
                f", averaged from {student_grid} to {teacher_grid} places",
            )
        if all(b % a == 0 for a, b in zip(student_grid, teacher_grid, strict=True)):
            return _SpatialPools(
                tf.identity,
                _average_pool(teacher_grid, student_grid),
                f", the teacher's averaged from {teacher_grid} to {student_grid}",
            )
    raise InputError(f"{pair}: {pair.shapes}: the places of neither divide into those of the other; name other layers")


def _average_pool(grid: tuple[int, ...], target_grid: tuple[int, ...]) -> Callable[[Any], Any]:
    sizes = [a // b for a, b in zip(grid, target_grid, strict=True)]
    return lambda tensor: tf.nn.avg_pool(tensor, sizes, sizes, "VALID")


def score_model(model: Any, task: Any, role: str) -> ScoredModel:
    """`model` with what its outputs are for `task`."""
    if isinstance(model.output_shape, (list, dict)):
        return ScoredModel(model, has_logits=True, is_binary=False, role=role)
    return ScoredModel(model, loss_and_optimizer.gives_logits(model), loss_and_optimizer.is_binary(task, model), role)
