"""A student prepared to be taught: what it is trained as, and the targets of each batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf

from edgepipe.core.arrays import Array, Arrays
from edgepipe.tasks.quality import Task
from edgepipe.training import loss_and_optimizer
from edgepipe.training.distillation import feature_taps
from edgepipe.training.distillation.loss_terms import Part, parts, scored
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.distillation.teacher_outputs import Teachers

ADAPTOR_SEED = 1412_6550


@dataclass(frozen=True)
class Pupil:
    """The student as it is trained: `model` gives its outputs and one tensor for each part of the teachers' loss."""

    model: Any
    losses: list[Callable[[Any, Any], Any]]  # the task's, then one for each part: (target, tensor) -> (n,)
    weights: list[float]


@dataclass
class Teaching:
    """Teachers (name -> Keras model) and what is learned of them. What they say is kept from one fit to the next."""

    options: Teacher
    models: dict[str, Any]
    task: Task
    batch_size: int
    notes: list[str] = field(default_factory=list)
    _teachers: Teachers | None = None
    _kept: bool = False

    def pupil(self, student: Any, task_loss: Any) -> Pupil:
        """Prepare `student`.

        With several teachers each has its share of a part's weight. For `logits` that is the loss towards the mean of
        their probabilities, but for a constant.

        Raises:
            InputError: something of it does not go together with a teacher; the pair is named.
        """
        student = feature_taps.opened(student)
        found = {name: self._parts(student, name) for name in self.models}
        every = [part for listed in found.values() for part in listed]
        if self._teachers is None:
            opened = {name: feature_taps.opened(model) for name, model in self.models.items()}
            self._teachers = Teachers(_probe(opened, found), self.batch_size)
            self.notes += [f"taught by '{name}': {part.title}" for name, listed in found.items() for part in listed]
        alpha = self.options.logits.alpha if self.options.logits is not None else 0.0
        return Pupil(
            _pupil_model(student, every),
            [task_loss, *(part.loss for part in every)],
            [1.0 - alpha, *(part.weight / len(self.models) for part in every)],
        )

    def _parts(self, student: Any, name: str) -> list[Part]:
        teacher = scored(feature_taps.opened(self.models[name]), self.task, f"teacher '{name}'")
        mine = scored(student, self.task, "student")
        return list(parts(self.options, mine, teacher, self.task.kind == "classification"))

    def keep(self, x: Arrays) -> None:
        """Take what the teachers say of all samples `x`, once; to be called where nothing random changes these."""
        if self._kept:
            return
        held = self._known.keep(x)
        self._kept = True
        if held is None:
            self.notes.append("what the teachers say takes over 1 GiB and is computed anew in every epoch")
        else:
            self.notes.append(f"what the teachers say was computed once ({held / 2**20:.1f} MiB)")

    def targets(self, chosen: Array, x: Arrays) -> list[Array]:
        """What the teachers say of a batch: of the samples `chosen` as kept, or of `x`."""
        return self._known.targets(chosen, x)

    @property
    def _known(self) -> Teachers:
        if self._teachers is None:
            raise RuntimeError("a student must be prepared first")
        return self._teachers


def _pupil_model(student: Any, every: list[Part]) -> Any:
    layers = loss_and_optimizer.api(student).layers
    outputs = []
    for number, part in enumerate(every):
        given = layers.Lambda(part.given, name=f"taught{number}")(part.student)
        outputs.append(given if not part.adaptor else _adaptor(student, part.adaptor, number)(given))
    inputs = student.inputs if len(student.inputs) > 1 else student.inputs[0]
    return loss_and_optimizer.api(student).Model(inputs, [student.outputs[0], *outputs], name=student.name)


def _adaptor(student: Any, channels: int, number: int) -> Any:
    library = loss_and_optimizer.api(student)
    start = library.initializers.GlorotUniform(seed=ADAPTOR_SEED + number)
    return library.layers.Dense(channels, kernel_initializer=start, name=f"adaptor{number}")


def _probe(models: dict[str, Any], found: dict[str, list[Part]]) -> Callable[[Arrays], list[Any]]:
    """What gives the targets of every part, all teachers in a row, from samples."""
    probes = {
        name: loss_and_optimizer.api(model).Model(model.inputs, [part.teacher for part in found[name]])
        for name, model in models.items()
    }

    def probe(x: Arrays) -> list[Any]:
        values = {name: tf.nest.flatten(model(_inputs(model, x), training=False)) for name, model in probes.items()}
        return [part.wanted(value) for name in probes for part, value in zip(found[name], values[name], strict=True)]

    return probe


def _inputs(model: Any, x: Arrays) -> Any:
    """Named samples in the order of the model's inputs."""
    if not isinstance(x, dict):
        return x
    names = getattr(model, "input_names", None) or [tensor.name for tensor in model.inputs]
    return [x[name] for name in names]
