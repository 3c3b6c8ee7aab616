"""Quality against chance: the probability of each kind of metric, and what a run makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.core.metric import Evidence, Judgement, Metric
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.pipeline.quality_gate import find_quality_problems
from edgepipe.pipeline.schema import SOURCE_STAGE, Step
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo
from edgepipe.stages.convert import Convert
from edgepipe.stages.model_source import Source
from edgepipe.stages.train import Train
from edgepipe.stages.validate import Validate
from edgepipe.tasks.chance import compare_with_chance
from edgepipe.tasks.chance_level import ALPHA
from edgepipe.tasks.quality import build_task
from edgepipe.tasks.task_spec import TaskSpec

RANDOM = np.random.RandomState(3)
BALANCED = np.arange(200) % 4
RARE = (np.arange(200) % 20 == 0).astype(int)  # 95 % are of class 0
NUMBERS = RANDOM.randn(100, 1)
PICTURES = RANDOM.rand(60, 4, 4)
MULTILABEL = RANDOM.randint(0, 2, (100, 3))


def one_hot(labels: Any, right: float = 1.0) -> Any:
    """Scores that are right for a share of the samples, and name the next class for the others."""
    classes = int(labels.max()) + 1
    given = np.where(np.arange(len(labels)) < right * len(labels), labels, (labels + 1) % classes)
    return np.eye(classes)[given]


CASES: dict[str, tuple[dict[str, Any], Any, Any, Any, bool]] = {
    # task, x, y, outputs -> above chance
    "accuracy, right": ({"kind": "classification"}, None, BALANCED, one_hot(BALANCED), True),
    "accuracy, a third right": ({"kind": "classification"}, None, BALANCED, one_hot(BALANCED, 0.34), True),
    "accuracy, a quarter": ({"kind": "classification"}, None, BALANCED, one_hot(BALANCED, 0.26), False),
    "accuracy, one class": ({"kind": "classification"}, None, BALANCED, np.eye(4)[[1] * 200], False),
    "accuracy, the frequent class": ({"kind": "classification"}, None, RARE, np.eye(2)[[0] * 200], False),
    "accuracy, 94 % where 95 % are of a class": ({"kind": "classification"}, None, RARE, one_hot(RARE, 0.94), False),
    "balanced accuracy, the frequent class": (
        {"kind": "classification", "metrics": ["balanced_accuracy"]}, None, RARE, np.eye(2)[[0] * 200], False),
    "balanced accuracy, 94 %": (
        {"kind": "classification", "metrics": ["balanced_accuracy"]}, None, RARE, one_hot(RARE, 0.94), True),
    "f1, right": ({"kind": "classification", "metrics": ["f1_macro"]}, None, BALANCED, one_hot(BALANCED), True),
    "f1, noise": ({"kind": "classification", "metrics": ["f1_macro"]}, None, BALANCED, RANDOM.rand(200, 4), False),
    "many labels, right": ({"kind": "classification", "labels": "many"}, None, MULTILABEL, MULTILABEL * 0.9, True),
    "many labels, all": (
        {"kind": "classification", "labels": "many"}, None, MULTILABEL, np.ones((100, 3)), False),
    "mae, near": ({"kind": "regression"}, None, NUMBERS, NUMBERS + 0.3 * RANDOM.randn(100, 1), True),
    "mae, the mean": ({"kind": "regression"}, None, NUMBERS, np.full((100, 1), NUMBERS.mean()), False),
    "r2, worse than the mean": ({"kind": "regression", "metrics": ["r2"]}, None, NUMBERS, NUMBERS + 3, False),
    "rmse, near": ({"kind": "regression", "metrics": ["rmse"]}, None, NUMBERS, NUMBERS * 0.8, True),
    "mse, near": ({"kind": "reconstruction", "metrics": ["mse"]}, PICTURES, None, PICTURES * 0.9, True),
    "mse, grey": ({"kind": "reconstruction", "metrics": ["mse"]}, PICTURES, None, np.full_like(PICTURES, 0.5), False),
    "roc auc, errors tell": (
        {"kind": "reconstruction"}, PICTURES, np.arange(60) % 2,
        PICTURES + (np.arange(60) % 2)[:, None, None] * 0.5, True),
    "roc auc, errors tell nothing": (
        {"kind": "reconstruction"}, PICTURES, np.arange(60) % 2, RANDOM.rand(60, 4, 4), False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_above_chance(name: str) -> None:
    options, x, y, outputs, is_above = CASES[name]
    task = build_task(TaskSpec(**{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}), Path())
    chance = compare_with_chance(task, x, y, outputs, is_logits=False)
    assert chance is not None
    assert (chance.probability <= ALPHA) == is_above, chance
    assert chance.perfect_probability <= ALPHA


def test_four_samples_tell_nothing_and_the_number_that_does() -> None:
    task = build_task(TaskSpec(kind="classification"), Path())
    for count, is_enough in ((4, False), (6, False), (8, True)):  # 2 ** -7 < 1 %
        labels = np.arange(count) % 2
        chance = compare_with_chance(task, None, labels, one_hot(labels), is_logits=False)  # type: ignore[arg-type]
        assert chance is not None
        assert (chance.perfect_probability <= ALPHA) == is_enough


def test_a_chance_model_is_caught_99_times_in_100() -> None:
    task, random = build_task(TaskSpec(kind="classification"), Path()), np.random.RandomState(0)
    labels = np.arange(500) % 10
    passed = 0
    for _ in range(1000):
        chance = compare_with_chance(task, None, labels, random.rand(500, 10), is_logits=False)  # type: ignore[arg-type]
        passed += chance is not None and chance.probability <= ALPHA
    assert passed <= 20


STAGES: dict[str, Stage] = {
    "file": Source(path="m.keras"),
    "function": Source(function="m:build"),
    "train": Train(),
    "convert": Convert(),
    "validate": Validate(),
}


def result(stage: str, value: float | None, samples: int) -> tuple[Step, Outcome]:
    """A stage with an accuracy as `measure_outputs` describes it; chance is 10 %, and reaches 12 % at times."""
    details: dict[str, Any] = {
        "split": "test" if stage == "validate" else "validation",
        "samples": samples,
        "chance": 0.1,
        "chance_probability": 0.5 if value is None or value <= 0.12 else 1e-9,
        "chance_probability_if_perfect": 1e-9 if samples > 10 else 0.1,
        "chance_reference": "the most frequent class, 10 %",
    }
    metric = Metric(
        name="accuracy", value=value, unit=Dimension.FRACTION, how="", details=details,
        evidence=Evidence.UNAVAILABLE if value is None else Evidence.MEASURED,
    )  # fmt: skip
    return Step(stage, STAGES[stage], PipelineInfo(Path(), None, ()), SOURCE_STAGE), Outcome(metrics=(metric,))


RUNS: dict[str, tuple[dict[str, float | None], int, list[str]]] = {
    # accuracy by stage, samples -> the rules that are broken, and where
    "all is well": ({"file": 0.97, "convert": 0.96, "validate": 0.95}, 400, []),
    "a file at chance from the beginning": (
        {"file": 0.1, "convert": 0.1, "validate": 0.1}, 400, ["above-chance file", "above-chance validate"]),
    "a file at chance that compression trains": (
        {"file": 0.1, "convert": 0.96}, 400, ["above-chance file"]),
    "an untrained function, then trained": ({"function": 0.1, "train": 0.97, "convert": 0.96}, 400, []),
    "a file at chance, then trained": ({"file": 0.1, "train": 0.97, "convert": 0.96}, 400, []),
    "lost in conversion": ({"file": 0.97, "convert": 0.1}, 400, ["above-chance convert", "quality-kept convert"]),
    "eleven points lost": ({"file": 0.97, "convert": 0.86}, 400, ["quality-kept convert"]),
    "nine points lost": ({"file": 0.97, "convert": 0.88}, 400, []),
    "eleven points of thirty samples": ({"file": 0.9, "convert": 0.79}, 30, []),
    "compared on the same split": ({"train": 0.97, "convert": 0.96, "validate": 0.8}, 400, []),
    "too few samples": ({"file": 0.1}, 4, ["above-chance file"]),
    "nothing measured": ({"file": None, "convert": None}, 400, []),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_makes_of_it(name: str) -> None:
    accuracies, samples, expected = RUNS[name]
    findings = find_quality_problems([result(stage, value, samples) for stage, value in accuracies.items()])
    assert [f"{finding.rule} {finding.place.removesuffix(', accuracy')}" for finding in findings] == expected
    for finding in findings:
        assert finding.judgement is (Judgement.UNKNOWN if samples == 4 else Judgement.NOT_MET)
        assert ("more samples" if samples == 4 else "`allow_chance: true`") in finding.suggestion
