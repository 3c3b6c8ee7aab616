"""The terms of the distillation loss: which tensors of student and teacher each one compares, and how."""

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
    """One term of the loss: `loss(target_fn(teacher_tensor), student_fn(student_tensor)) -> (n,)`."""

    title: str
    weight: float
    student_tensor: Any
    teacher_tensor: Any
    target_fn: Callable[[Any], Any]
    student_fn: Callable[[Any], Any]
    loss_fn: Callable[[Any, Any], Any]
    adaptor_channels: int = 0  # output channels of the trained projection of the student's tensor; 0 for none


@dataclass(frozen=True)
class ScoredModel:
    """A model and the kind of its outputs."""

    model: Any
    has_logits: bool
    is_binary: bool
    role: str

    def scores(self, outputs: Any) -> Any:
        """Class scores (logits) of its outputs."""
        return losses.class_scores(outputs, self.has_logits, self.is_binary)


def build_loss_terms(
    options: Teacher, student: ScoredModel, teacher: ScoredModel, is_classification: bool
) -> Iterator[LossTerm]:
    """Every loss term that `options` ask for between one teacher and the student.

    Args:
        options: the parsed `teacher:`.
        student: the student, as a functional model.
        teacher: one of the teachers, likewise.
        is_classification: whether outputs are class scores.

    Raises:
        InputError: outputs or layers that do not match (the message has both shapes), or a missing layer.
    """
    if options.logits is not None or options.outputs is not None:
        _check_same_outputs(student, teacher)
    if options.logits is not None:
        if not is_classification:
            raise InputError("`logits` is for classification; for this task use `outputs`, `features` or `relational`")
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
    raise InputError(
        f"the student '{student.model.name}' gives {_shape_text(student_shape)}, the {teacher.role} "
        f"{_shape_text(teacher_shape)}: learning outputs needs a single output of the same shape in both"
    )


def _shape_text(shape: Any) -> str:
    if not isinstance(shape, tuple):
        return f"{len(shape)} outputs"
    if len(shape) == 2:
        return "1 class or value" if shape[1] == 1 else f"{shape[1]} classes or values"
    return f"outputs of shape {shape[1:]}"


def _logits_term(temperature: float, alpha: float, student: ScoredModel, teacher: ScoredModel) -> LossTerm:
    is_binary = student.is_binary
    return LossTerm(
        f"logits (temperature {temperature:g}, alpha {alpha:g})", alpha, student.model.output, teacher.model.output,
        lambda outputs: losses.soften_scores(teacher.scores(outputs), temperature, is_binary),
        student.scores,
        lambda target, z: losses.kl_divergence(target, z, temperature, is_binary),
    )  # fmt: skip


def _output_term(weight: float, student: ScoredModel, teacher: ScoredModel, is_classification: bool) -> LossTerm:
    target_fn, student_fn = (teacher.scores, student.scores) if is_classification else (tf.identity, tf.identity)
    return LossTerm(
        f"outputs (weight {weight:g})", weight, student.model.output, teacher.model.output, target_fn, student_fn,
        losses.squared_difference,
    )  # fmt: skip


def _feature_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.features is None:
        return
    for pair in _feature_pairs(options.features.layers, student, teacher, feature_taps.find_embedding):
        spatial_pools = _spatial_pools(pair)
        student_channels, teacher_channels = pair.channel_counts
        if student_channels != teacher_channels and not options.features.adaptor:
            raise InputError(
                f"{pair}: {student_channels} and {teacher_channels} channels; `adaptor: true` projects one to the other"
            )
        title = f"features of {pair} (weight {options.features.weight:g}{spatial_pools.note})"
        yield LossTerm(
            title,
            options.features.weight,
            pair.student_tensor,
            pair.teacher_tensor,
            spatial_pools.teacher_pool,
            spatial_pools.student_pool,
            losses.squared_difference,
            teacher_channels if options.features.adaptor else 0,
        )


def _attention_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.attention is None:
        return
    for pair in _feature_pairs(options.attention.layers, student, teacher, feature_taps.find_last_feature_map):
        if len(pair.student_tensor.shape) < 3 or len(pair.teacher_tensor.shape) < 3:
            raise InputError(
                f"{pair}: attention needs spatial tensors (batch, ..., channels); found {pair.shapes_text}"
            )
        spatial_pools = _spatial_pools(pair)
        title = f"attention of {pair} (weight {options.attention.weight:g}{spatial_pools.note})"
        target_fn, student_fn = (
            _compose(spatial_pools.teacher_pool, losses.attention_map),
            _compose(spatial_pools.student_pool, losses.attention_map),
        )
        yield LossTerm(
            title, options.attention.weight, pair.student_tensor, pair.teacher_tensor, target_fn, student_fn,
            losses.attention_distance,
        )  # fmt: skip


def _relational_terms(options: Teacher, student: ScoredModel, teacher: ScoredModel) -> Iterator[LossTerm]:
    if options.relational is None:
        return
    weighted_relations = (("distances", losses.pairwise_distances, options.relational.distance),
             ("angles", losses.triple_angles, options.relational.angle))  # fmt: skip
    for pair in _feature_pairs(options.relational.layers, student, teacher, feature_taps.find_embedding):
        for relation_name, relation_fn, weight in weighted_relations:
            if weight:
                title, loss = f"{relation_name} of {pair} (weight {weight:g})", _relation_loss(relation_fn)
                yield LossTerm(
                    title,
                    weight,
                    pair.student_tensor,
                    pair.teacher_tensor,
                    losses.flatten_samples,
                    losses.flatten_samples,
                    loss,
                )


def _relation_loss(relation_fn: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda target, student: losses.relation_loss(target, student, relation_fn)


def _compose(first_fn: Callable[[Any], Any], second_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda tensor: second_fn(first_fn(tensor))


@dataclass(frozen=True)
class FeaturePair:
    """A tensor of the student and the teacher's tensor that it should match."""

    student_name: str
    teacher_name: str
    student_tensor: Any
    teacher_tensor: Any

    def __str__(self) -> str:
        return f"{self.student_name} of the student and {self.teacher_name} of the teacher"

    @property
    def channel_counts(self) -> tuple[int, int]:
        """Channels of the student's and the teacher's tensor."""
        return int(self.student_tensor.shape[-1]), int(self.teacher_tensor.shape[-1])

    @property
    def shapes_text(self) -> str:
        """Both shapes, without the batch axis."""
        return f"{tuple(self.student_tensor.shape[1:])} and {tuple(self.teacher_tensor.shape[1:])}"


def _feature_pairs(
    teacher_layer_by_student: dict[str, str], student: ScoredModel, teacher: ScoredModel, find_default: Any
) -> Iterator[FeaturePair]:
    if not teacher_layer_by_student:
        (student_name, student_tensor), (teacher_name, teacher_tensor) = (
            find_default(student.model, "student"),
            find_default(teacher.model, teacher.role),
        )
        yield _check_fixed_size(FeaturePair(student_name, teacher_name, student_tensor, teacher_tensor))
    for student_layer, teacher_layer in teacher_layer_by_student.items():
        student_tensor = feature_taps.find_layer_output(student.model, student_layer, "student")
        yield _check_fixed_size(
            FeaturePair(
                f"'{student_layer}'",
                f"'{teacher_layer}'",
                student_tensor,
                feature_taps.find_layer_output(teacher.model, teacher_layer, teacher.role),
            )
        )


def _check_fixed_size(pair: FeaturePair) -> FeaturePair:
    for tensor in (pair.student_tensor, pair.teacher_tensor):
        if isinstance(tensor, (list, tuple)) or len(tensor.shape) < 2 or None in tuple(tensor.shape)[1:]:
            raise InputError(f"{pair}: a tensor of fixed size is needed; name other layers")
    return pair


@dataclass(frozen=True)
class _SpatialPools:
    """Average pooling that brings the finer of two spatial grids down to the other."""

    student_pool: Callable[[Any], Any]
    teacher_pool: Callable[[Any], Any]
    note: str = ""


def _spatial_pools(pair: FeaturePair) -> _SpatialPools:
    student_grid, teacher_grid = (tuple(tensor.shape)[1:-1] for tensor in (pair.student_tensor, pair.teacher_tensor))
    if student_grid == teacher_grid:
        return _SpatialPools(tf.identity, tf.identity)
    if len(student_grid) == len(teacher_grid) <= 3:
        if all(a % b == 0 for a, b in zip(student_grid, teacher_grid, strict=True)):
            return _SpatialPools(
                _average_pool(student_grid, teacher_grid),
                tf.identity,
                f", averaged from {student_grid} to {teacher_grid}",
            )
        if all(b % a == 0 for a, b in zip(student_grid, teacher_grid, strict=True)):
            return _SpatialPools(
                tf.identity,
                _average_pool(teacher_grid, student_grid),
                f", the teacher's averaged from {teacher_grid} to {student_grid}",
            )
    raise InputError(f"{pair}: {pair.shapes_text}: neither grid is a multiple of the other; name other layers")


def _average_pool(source_grid: tuple[int, ...], target_grid: tuple[int, ...]) -> Callable[[Any], Any]:
    window_sizes = [a // b for a, b in zip(source_grid, target_grid, strict=True)]
    return lambda tensor: tf.nn.avg_pool(tensor, window_sizes, window_sizes, "VALID")


def as_scored_model(model: Any, task: Any, role: str) -> ScoredModel:
    """`model` with the kind of its outputs for `task`."""
    if isinstance(model.output_shape, (list, dict)):
        return ScoredModel(model, has_logits=True, is_binary=False, role=role)
    return ScoredModel(model, loss_and_optimizer.gives_logits(model), loss_and_optimizer.is_binary(task, model), role)
