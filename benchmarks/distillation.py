"""Distillation measured: `python benchmarks/distillation.py [SEEDS]` (about 20 minutes on 2 cores).

Fashion-MNIST with 100 labels a class: one small student, trained on the same 1,000 images in the same order for the
same steps, untaught and taught. Weights of the loss are chosen on the validation split with seeds of their own; the
test split is read for the table alone. Two teachers: one that has seen 20,000 labels, and one that has seen no more
than the student's 1,000.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import networks
import numpy as np
from scipy import stats

from edgepipe.data.splits import SplitData
from edgepipe.tasks.quality import Task, build_task
from edgepipe.tasks.task_spec import TaskSpec
from edgepipe.training.distillation.distiller import Distiller
from edgepipe.training.distillation.teacher_options import Teacher
from edgepipe.training.training_loop import TrainingSchedule, evaluate, fit, set_seeds
from edgepipe.training.training_setup import TrainingSetup
from edgepipe.zoo import small_cnn

EPOCHS, BATCH, A_CLASS = 30, 32, 100
CHOOSING = (901, 902)  # seeds that choose weights, and are not in the table
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "logits": [{"logits": {"temperature": t, "alpha": alpha}} for t, alpha in ((4, 0.5), (2, 0.9))],
    "features": [{"features": {"weight": weight}} for weight in (2.0, 10.0)],
    "attention": [{"attention": {"weight": weight}} for weight in (10.0, 50.0)],
    "relational": [{"relational": {"distance": scale, "angle": 2 * scale}} for scale in (2.0, 25.0)],
}


@dataclass(frozen=True)
class AsItIs:
    """An augmenter that changes nothing: untaught students get their batches in the order of the taught ones."""

    has_soft_labels: bool = False

    def __call__(self, chosen: Any, x: Any, y: Any, random: np.random.Generator) -> tuple[Any, Any]:
        return x, y

    def describe(self) -> str:
        return "not at all"


def task() -> Task:
    """Ten classes; nothing of it is loaded from a file."""
    return build_task(TaskSpec(kind="classification"), base_folder=None)  # type: ignore[arg-type]


def few(data: networks.Data) -> SplitData:
    """The first 100 images of each class."""
    x, y = data.train
    chosen = np.concatenate([np.flatnonzero(y == label)[:A_CLASS] for label in range(10)])
    return SplitData(x[chosen], y[chosen])


def teacher(data: SplitData, validation: SplitData, epochs: int) -> Any:
    """ResNet-8 of MLPerf Tiny, trained on `data`."""
    set_seeds(77)
    model = networks.resnet8((28, 28, 1))
    lesson = TrainingSetup(task(), data, validation, AsItIs(), seed=77)
    fit(model, lesson, TrainingSchedule(epochs, 64, 2e-3, "cosine"), lambda *_, **__: None)
    return model


def student(seed: int, train: SplitData, validation: SplitData, kinds: dict[str, Any] | None, taught_by: Any) -> Any:
    """Three convolutions, 24,000 parameters, trained with the teacher's help or without."""
    set_seeds(seed)
    model = small_cnn(input_shape=(28, 28, 1), classes=10, filters=(16, 32, 64))
    teaching = None
    if kinds is not None:
        teaching = Distiller(Teacher.model_validate(kinds), {"resnet8": taught_by}, task(), BATCH)
    lesson = TrainingSetup(task(), train, validation, None if teaching else AsItIs(), teaching, seed)
    fit(model, lesson, TrainingSchedule(EPOCHS, BATCH, 2e-3, "cosine"), lambda *_, **__: None)
    return model


def best(name: str, train: SplitData, validation: SplitData, taught_by: Any) -> dict[str, Any]:
    """The candidate with the best mean validation accuracy."""

    def value(kinds: dict[str, Any]) -> float:
        made = (student(seed, train, validation, kinds, taught_by) for seed in CHOOSING)
        return float(np.mean([evaluate(model, task(), validation)["accuracy"] for model in made]))

    return max(CANDIDATES[name], key=value)


def interval(gains: list[float]) -> str:
    """The mean and its 95 % confidence interval, Student's t."""
    mean, error = float(np.mean(gains)), float(stats.sem(gains))
    low, high = stats.t.interval(0.95, len(gains) - 1, mean, error)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def rows(seeds: int) -> Iterator[str]:
    """The lines of the table, as they come."""
    data = networks.fashion(28, 20_000)
    train, many = few(data), SplitData(*data.train)
    validation, test = SplitData(*data.validation), SplitData(*data.test)
    teachers = {"20,000 labels": teacher(many, validation, 4), "the same 1,000": teacher(train, validation, 30)}
    shown = {name: evaluate(model, task(), test)["accuracy"] for name, model in teachers.items()}

    def accuracies(kinds: dict[str, Any] | None, taught_by: Any) -> list[float]:
        made = (student(seed, train, validation, kinds, taught_by) for seed in range(seeds))
        return [100 * evaluate(model, task(), test)["accuracy"] for model in made]

    alone = accuracies(None, None)
    yield "| teacher | its accuracy | learned | student's accuracy | gain in points, 95 % interval |"
    yield "|---|---|---|---|---|"
    yield f"| none | | | {np.mean(alone):.2f} | |"
    for name, model in teachers.items():
        for kind in CANDIDATES:
            kinds = best(kind, train, validation, model)
            found = accuracies(kinds, model)
            gain = interval([a - b for a, b in zip(found, alone, strict=True)])
            yield f"| {name} | {shown[name]:.2%} | `{kinds}` | {np.mean(found):.2f} | {gain} |"


def main() -> None:
    """Print the table row by row."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"{seeds} paired seeds, {EPOCHS} epochs of {10 * A_CLASS} images, Keras {keras.__version__}", flush=True)
    for row in rows(seeds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
