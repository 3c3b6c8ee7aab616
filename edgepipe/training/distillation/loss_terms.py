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
class Part:
    """One part of the loss. `wanted` turns the teacher's tensor into the target; `given` the student's into what is
    compared with it, by `loss(target, given) -> (n,)`."""

    title: str
    weight: float
    student: Any
    teacher: Any
    wanted: Callable[[Any], Any]
    given: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    adaptor: int = 0  # channels that a trained projection gives the student's tensor first; 0 for none


@dataclass(frozen=True)
class Scored:
    """A model and what its outputs are."""

    model: Any
    logits: bool
    binary: bool
    whose: str

    def scores(self, outputs: Any) -> Any:
        """Class scores of its outputs."""
        return losses.scores(outputs, self.logits, self.binary)


def parts(options: Teacher, student: Scored, teacher: Scored, classes: bool) -> Iterator[Part]:
    """Every part that `options` ask for between one teacher and the student.

    Raises:
        InputError: outputs or layers that do not go together, both named with their shapes; a layer that is not there.
    """
    if options.logits is not None or options.outputs is not None:
        _same_outputs(student, teacher)
    if options.logits is not None:
        if not classes:
            raise InputError("`logits` teaches classes apart; for this task use `outputs`, `features` or `relational`")
        yield _logits(options.logits.temperature, options.logits.alpha, student, teacher)
    if options.outputs is not None:
        yield _outputs(options.outputs.weight, student, teacher, classes)
    yield from _features(options, student, teacher)
    yield from _attention(options, student, teacher)
    yield from _relational(options, student, teacher)


def _same_outputs(student: Scored, teacher: Scored) -> None:
    given, wanted = student.model.output_shape, teacher.model.output_shape
    if isinstance(given, tuple) and isinstance(wanted, tuple) and given == wanted:
        return
    told = f"the student '{student.model.name}' gives {_shown(given)}, the {teacher.whose} {_shown(wanted)}"
    raise InputError(f"{told}: outputs can only be learned where both are one of the same shape")


def _shown(shape: Any) -> str:
    if not isinstance(shape, tuple):
        return f"{len(shape)} outputs"
    return f"{shape[1]} classes or values" if len(shape) == 2 else f"outputs of shape {shape[1:]}"


def _logits(temperature: float, alpha: float, student: Scored, teacher: Scored) -> Part:
    binary = student.binary
    return Part(
        f"logits (temperature {temperature:g}, alpha {alpha:g})", alpha, student.model.output, teacher.model.output,
        lambda outputs: losses.softened(teacher.scores(outputs), temperature, binary),
        student.scores,
        lambda wanted, z: losses.divergence(wanted, z, temperature, binary),
    )  # fmt: skip


def _outputs(weight: float, student: Scored, teacher: Scored, classes: bool) -> Part:
    wanted, given = (teacher.scores, student.scores) if classes else (tf.identity, tf.identity)
    return Part(f"outputs (weight {weight:g})", weight, student.model.output, teacher.model.output, wanted, given,
                losses.squared)  # fmt: skip


def _features(options: Teacher, student: Scored, teacher: Scored) -> Iterator[Part]:
    if options.features is None:
        return
    for pair in _pairs(options.features.layers, student, teacher, feature_taps.embedding):
        pool = _pools(pair)
        given, wanted = pair.channels
        if given != wanted and not options.features.adaptor:
            raise InputError(f"{pair}: {given} and {wanted} channels; `adaptor: true` projects one to the other")
        title = f"features of {pair} (weight {options.features.weight:g}{pool.told})"
        yield Part(title, options.features.weight, pair.student, pair.teacher, pool.teacher, pool.student,
                   losses.squared, wanted if options.features.adaptor else 0)  # fmt: skip


def _attention(options: Teacher, student: Scored, teacher: Scored) -> Iterator[Part]:
    if options.attention is None:
        return
    for pair in _pairs(options.attention.layers, student, teacher, feature_taps.last_map):
        if len(pair.student.shape) < 3 or len(pair.teacher.shape) < 3:
            raise InputError(f"{pair}: attention needs places (batch, ..., channels); found {pair.shapes}")
        pool = _pools(pair)
        title = f"attention of {pair} (weight {options.attention.weight:g}{pool.told})"
        wanted, given = _then(pool.teacher, losses.activity), _then(pool.student, losses.activity)
        yield Part(title, options.attention.weight, pair.student, pair.teacher, wanted, given, losses.attention)


def _relational(options: Teacher, student: Scored, teacher: Scored) -> Iterator[Part]:
    if options.relational is None:
        return
    whats = (("distances", losses.distances, options.relational.distance),
             ("angles", losses.angles, options.relational.angle))  # fmt: skip
    for pair in _pairs(options.relational.layers, student, teacher, feature_taps.embedding):
        for name, what, weight in whats:
            if weight:
                title, loss = f"{name} of {pair} (weight {weight:g})", _related(what)
                yield Part(title, weight, pair.student, pair.teacher, losses.flat, losses.flat, loss)


def _related(what: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda wanted, given: losses.relation(wanted, given, what)


def _then(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: second(first(value))


@dataclass(frozen=True)
class Pair:
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


def _pairs(layers: dict[str, str], student: Scored, teacher: Scored, usual: Any) -> Iterator[Pair]:
    if not layers:
        (mine, own), (theirs, other) = usual(student.model, "student"), usual(teacher.model, teacher.whose)
        yield _known(Pair(mine, theirs, own, other))
    for name, other_name in layers.items():
        own = feature_taps.tensor(student.model, name, "student")
        yield _known(
            Pair(f"'{name}'", f"'{other_name}'", own, feature_taps.tensor(teacher.model, other_name, teacher.whose))
        )


def _known(pair: Pair) -> Pair:
    for tensor in (pair.student, pair.teacher):
        if isinstance(tensor, (list, tuple)) or len(tensor.shape) < 2 or None in tuple(tensor.shape)[1:]:
            raise InputError(f"{pair}: a tensor of fixed size is needed; name other layers")
    return pair


@dataclass(frozen=True)
class _Pools:
    """How the places of the finer of two tensors are averaged down to those of the other."""

    student: Callable[[Any], Any]
    teacher: Callable[[Any], Any]
    told: str = ""


def _pools(pair: Pair) -> _Pools:
    given, wanted = (tuple(tensor.shape)[1:-1] for tensor in (pair.student, pair.teacher))
    if given == wanted:
        return _Pools(tf.identity, tf.identity)
    if len(given) == len(wanted) <= 3:
        if all(a % b == 0 for a, b in zip(given, wanted, strict=True)):
            return _Pools(_averaged(given, wanted), tf.identity, f", averaged from {given} to {wanted} places")
        if all(b % a == 0 for a, b in zip(given, wanted, strict=True)):
            return _Pools(tf.identity, _averaged(wanted, given), f", the teacher's averaged from {wanted} to {given}")
    raise InputError(f"{pair}: {pair.shapes}: the places of neither divide into those of the other; name other layers")


def _averaged(places_: tuple[int, ...], to: tuple[int, ...]) -> Callable[[Any], Any]:
    sizes = [a // b for a, b in zip(places_, to, strict=True)]
    return lambda value: tf.nn.avg_pool(value, sizes, sizes, "VALID")


def scored(model: Any, task: Any, whose: str) -> Scored:
    """`model` with what its outputs are for `task`."""
    if isinstance(model.output_shape, (list, dict)):
        return Scored(model, logits=True, binary=False, whose=whose)
    return Scored(model, loss_and_optimizer.gives_logits(model), loss_and_optimizer.is_binary(task, model), whose)
