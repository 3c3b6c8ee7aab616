"""Data that reach a model scaled twice, not at all or otherwise: every kind of data, by its quality alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepipe.core.metric import Metric
from edgepipe.data.split_names import Split
from edgepipe.data.splits import DatasetSplits, SplitData
from edgepipe.stages.model_metrics import measure_outputs
from edgepipe.stages.preprocessing_check import check_preprocessing
from edgepipe.tasks.quality import Task, build_task
from edgepipe.tasks.task_spec import TaskSpec
from edgepipe.tflite.input_expectation import (
    PREPROCESSING_RULE,
    InputExpectation,
    affine_expectation,
    span_expectation,
)
from edgepipe.tflite.metadata import Pixels, Preprocessing, Sound, Standardization, Windows

LEVELS = np.array([0.125, 0.375, 0.625, 0.875])  # a class is a brightness, so scaling decides
LABELS = np.arange(240) % 4
NOISE = np.random.RandomState(0).uniform(-0.1, 0.1, (240, 6, 6, 3))
UNIT = np.clip(LEVELS[LABELS][:, None, None, None] + NOISE, 0, 1)
UNIT[..., 0] *= 0.9  # channels differ, so that their order counts
PIXELS = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "none": (0.0, 255.0)}
GIVEN: dict[str, Callable[[Any], Any]] = {  # what samples from 0 to 1 are after a preprocessing
    "unit": lambda x: x,
    "signed": lambda x: x * 2 - 1,
    "none": lambda x: x * 255,
    "torch": lambda x: (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "caffe": lambda x: x[..., ::-1] * 255 - [103.939, 116.779, 123.68],
    "standardized": lambda x: (x - x.mean(axis=(0, 1, 2))) / x.std(axis=(0, 1, 2)),
    "sensor": lambda x: x * 40 + 900,
    "16 bits": lambda x: (x * 2 - 1) * 32768,
}


@dataclass
class Case:
    """What the model was trained on, what the data give, what is known of their preprocessing, and the remedy."""

    trained: str
    given: str
    preprocessing: Preprocessing
    remedy: str | None  # None: nothing to find


def _pixels(mode: str) -> Preprocessing:
    return Preprocessing(pixels=Pixels(stored=(0, 255), given=PIXELS[mode]))


SENSOR = Preprocessing(windows=Windows(channels=("a", "b", "c"), rows=36, step=36))
_sensor = GIVEN["sensor"](UNIT)
STANDARDIZED = SENSOR.model_copy(
    update={
        "standardize": Standardization(
            axis="channels", mean=tuple(_sensor.mean(axis=(0, 1, 2))), deviation=tuple(_sensor.std(axis=(0, 1, 2)))
        )
    }
)
WAVES = Preprocessing(sound=Sound(features="none", rate=16000, samples=36))
SPECTRA = Preprocessing(sound=Sound(features="log_mel", rate=16000, samples=36))
NONE = Preprocessing()
CASES = {
    "images as trained": Case("unit", "unit", _pixels("unit"), None),
    "images scaled twice": Case("none", "unit", _pixels("unit"), "`rescale: none`"),
    "images not scaled": Case("unit", "none", _pixels("none"), "`rescale: unit`"),
    "images in the wrong range": Case("signed", "unit", _pixels("unit"), "`rescale: signed`"),
    "images of -1 to 1 in the wrong range": Case("unit", "signed", _pixels("signed"), "`rescale: unit`"),
    "torch's preprocessing left out": Case("torch", "unit", _pixels("unit"), "PyTorch's ImageNet"),
    "caffe's preprocessing left out": Case("caffe", "signed", _pixels("signed"), "Caffe's ImageNet"),
    "numbers of 0 to 1 for bytes": Case("none", "unit", NONE, "values from 0 to 255"),
    "bytes for numbers of -1 to 1": Case("signed", "none", NONE, "values from -1 to 1"),
    "sensor data not standardized": Case("standardized", "sensor", SENSOR, "`standardize: true`"),
    "sensor data standardized twice": Case("sensor", "standardized", STANDARDIZED, "`standardize: false`"),
    "sensor data as trained": Case("sensor", "sensor", SENSOR, None),
    "spectra not standardized": Case("standardized", "sensor", SPECTRA, "`standardize: true`"),
    "waves for a model of 16 bits": Case("16 bits", "signed", WAVES, "16-bit"),
    "waves as trained": Case("signed", "signed", WAVES, None),
    "a model that does not care": Case("any", "none", _pixels("none"), None),
    "a model that knows nothing": Case("nothing", "none", _pixels("none"), None),
}
TASK = build_task(TaskSpec(kind="classification"), Path())


def _model(trained: str) -> Callable[[Any], Any]:
    """Scores by the distance from the mean colour that each class had in training."""
    if trained == "nothing":
        return lambda x: np.random.RandomState(int(abs(x.sum())) % 1000).rand(len(x), 4)
    if trained == "any":
        return lambda x: np.eye(4)[LABELS_BY_ORDER(x)]
    seen = GIVEN[trained](UNIT).mean(axis=(1, 2))
    centers = np.stack([seen[label == LABELS].mean(axis=0) for label in range(4)])
    return lambda x: -np.square(x.mean(axis=(1, 2))[:, None] - centers).sum(axis=2)


def LABELS_BY_ORDER(x: Any) -> Any:  # noqa: N802 - a stand-in for a model that only ranks its samples
    return np.argsort(np.argsort(x.mean(axis=(1, 2, 3)))) * 4 // len(x)


def _measure(task: Task, model: Callable[[Any], Any]) -> Callable[[SplitData], list[Metric]]:
    return lambda samples: measure_outputs(
        model(samples.x), task, samples, "validation", is_logits=True, runtime_text="numpy"
    )


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_is_found(name: str) -> None:
    case = CASES[name]
    x = GIVEN[case.given](UNIT).astype("float32")
    data = {Split.TRAIN: SplitData(x, LABELS), Split.VALIDATION: SplitData(x, LABELS)}
    splits = DatasetSplits(data, dict.fromkeys(Split, 240), 4, preprocessing=case.preprocessing)
    findings, _ = check_preprocessing((), splits, _measure(TASK, _model(case.trained)))
    assert [finding.rule for finding in findings] == ([] if case.remedy is None else [PREPROCESSING_RULE])
    if case.remedy is not None:
        assert case.remedy in findings[0].suggestion
        assert "on the same 200 of the validation split" in findings[0].observed


STATISTICS = InputExpectation("x", "has seen data", np.full(3, 920.0), np.full(3, 11.0), is_statistics=True)
KNOWN = {
    # expectation, preprocessing of the data -> whether a model that knows nothing gets a finding
    "begins with a rescaling": (affine_expectation("x", "begins so", np.array([1 / 255]), np.zeros(1)), "unit", True),
    "begins with a rescaling of bytes": (
        affine_expectation("x", "begins so", np.array([1 / 255]), np.zeros(1)), "none", False),
    "trained on 0 to 1": (span_expectation("x", "was trained so", (0.0, 1.0)), "none", True),
    "trained on -1 to 1": (span_expectation("x", "was trained so", (-1.0, 1.0)), "signed", False),
    "statistics of sensors": (STATISTICS, "standardized", True),
    "statistics of the same sensors": (STATISTICS, "sensor", False),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_what_the_file_tells_decides_where_quality_does_not(name: str) -> None:
    expectation, given, is_wrong = KNOWN[name]
    assert expectation is not None
    x = GIVEN[given](UNIT).astype("float32")
    data = {Split.TRAIN: SplitData(x, LABELS), Split.VALIDATION: SplitData(x, LABELS)}
    splits = DatasetSplits(data, dict.fromkeys(Split, 240), 4)
    for measure in (None, _measure(TASK, _model("nothing"))):
        findings, _ = check_preprocessing([expectation], splits, measure)
        assert bool(findings) == is_wrong
    findings, notes = check_preprocessing([expectation], splits, _measure(TASK, _model("any")))  # it does well as it is
    assert not findings
    assert bool(notes) == is_wrong
