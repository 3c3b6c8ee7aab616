"""Whether the data reach the model as it was trained: nothing scaled twice, and nothing left out.

Two things tell: what the model's own first layers expect, and whether another preprocessing of the same validation
samples gives a clearly better quality.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgepipe.core.arrays import Array, take_samples
from edgepipe.core.errors import EdgepipeError
from edgepipe.core.metric import Finding, Metric
from edgepipe.data.splits import DatasetSplits, SplitData
from edgepipe.data.standardization import Scaling
from edgepipe.tasks.chance_level import is_above_chance, skill_of
from edgepipe.tflite.input_expectation import PREPROCESSING_RULE, InputExpectation
from edgepipe.tflite.metadata import Preprocessing

MIN_GAIN = 0.10  # of a share, or of the error of predicting the mean
_MIN_Z = 3.5  # standard errors: several alternatives are tried
_MAX_SAMPLES = 200  # for each alternative
_TORCH_MEAN, _TORCH_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)  # of blue, green and red
QualityMeasurement = Callable[[SplitData], list[Metric]]


@dataclass(frozen=True)
class Alternative:
    """Another preprocessing of the samples that the model gets, and how to have it."""

    apply: Callable[[Array], Array]
    remedy: str


@dataclass(frozen=True)
class _Trial:
    alternative: Alternative
    metric: Metric


def check_preprocessing(
    expectations: Sequence[InputExpectation], splits: DatasetSplits, measure: QualityMeasurement | None
) -> tuple[list[Finding], list[str]]:
    """The finding that the data do not reach the model as it expects them, or notes on what speaks for that.

    Args:
        expectations: what is known of the model's inputs.
        splits: the data; models with several inputs are not judged.
        measure: gives the quality metrics of the model for samples; None if they cannot be measured.
    """
    if isinstance(splits.train.x, dict):
        return [], ["preprocessing is not checked: the samples are several named inputs"]
    mismatch_text = _describe_mismatch(expectations, splits.train.x)
    baseline = _measure(measure, _draw(splits.validation, lambda x: x))
    better_trial = None if baseline is None else _find_better(splits, baseline, measure)
    if better_trial is not None and baseline is not None:
        return [_better_finding(baseline, better_trial, mismatch_text)], []
    if not mismatch_text:
        return [], []
    if baseline is not None and is_above_chance(baseline):
        note = f"{mismatch_text}; yet no other preprocessing that was tried is clearly better than {baseline.text()}"
        return [], [note]
    return [_mismatch_finding(mismatch_text)], []


def _describe_mismatch(expectations: Sequence[InputExpectation], x: Array) -> str:
    if len(expectations) != 1:
        return ""
    channels = x.reshape(-1, x.shape[-1]).astype(np.float64)
    low, high = np.percentile(channels, 0.1), np.percentile(channels, 99.9)
    mean, deviation = channels.mean(axis=0), channels.std(axis=0)
    expectation = expectations[0]
    if _fits(expectation, channels, mean, deviation):
        return ""
    return (
        f"the model {expectation.describe()}; the training samples go from {low:.4g} to {high:.4g}, with mean "
        f"{channels.mean():.4g} and deviation {channels.std():.4g}"
    )


def _fits(expectation: InputExpectation, channels: Array, mean: Array, deviation: Array) -> bool:
    if expectation.is_statistics:
        return expectation.fits_statistics(mean, deviation)
    return expectation.fits(channels.min(axis=0), channels.max(axis=0))


def _draw(split_data: SplitData, apply: Callable[[Array], Array]) -> SplitData:
    """At most `_MAX_SAMPLES` of the samples, the same ones each time, with `apply` applied."""
    order = np.random.RandomState(0).permutation(len(split_data))[:_MAX_SAMPLES]
    x, y = take_samples(split_data.x, order), None if split_data.y is None else take_samples(split_data.y, order)
    return SplitData(apply(np.asarray(x)).astype(np.float32), y)


def _measure(measure: QualityMeasurement | None, samples: SplitData) -> Metric | None:
    """The primary metric, if its chance is known and it can be measured on these samples."""
    if measure is None:
        return None
    try:
        metrics = measure(samples)
    except (EdgepipeError, ValueError):
        return None
    return next((metric for metric in metrics if "chance_probability" in metric.details), None)


def _find_better(splits: DatasetSplits, baseline: Metric, measure: QualityMeasurement | None) -> _Trial | None:
    trials = [
        _Trial(alternative, metric)
        for alternative in list_alternatives(splits)
        if (metric := _measure(measure, _draw(splits.validation, alternative.apply))) is not None
    ]
    better_trials = [trial for trial in trials if _is_clearly_better(trial.metric, baseline)]
    return max(better_trials, key=lambda trial: skill_of(trial.metric)[0], default=None)


def _is_clearly_better(metric: Metric, baseline: Metric) -> bool:
    (skill, error), (baseline_skill, baseline_error) = skill_of(metric), skill_of(baseline)
    gain = skill - baseline_skill
    is_significant = gain > _MIN_Z * math.hypot(error, baseline_error)
    return gain > MIN_GAIN and is_significant and is_above_chance(metric)


def list_alternatives(splits: DatasetSplits) -> list[Alternative]:
    """What else the samples could go through, given what they have gone through."""
    x, preprocessing = np.asarray(splits.train.x), splits.preprocessing or Preprocessing()
    if preprocessing.pixels is not None:
        return list(_pixel_alternatives(preprocessing.pixels.stored[1], preprocessing.pixels.given, x.shape[-1]))
    if preprocessing.standardize is not None:
        axis = -1 if preprocessing.standardize.axis == "channels" else -2
        scaling = Scaling(preprocessing.standardize.mean, preprocessing.standardize.deviation, axis=axis)
        return [Alternative(scaling.undo_array, "write `standardize: false` under `data:`")]
    alternatives = [*_range_alternatives(float(x.min()), float(x.max()))]
    if preprocessing.windows is not None or preprocessing.sound is not None:
        is_banded = preprocessing.sound is not None and preprocessing.sound.features != "none"
        scaling = Scaling.fit(x, axis=-2 if is_banded else -1)
        alternatives.append(Alternative(scaling.scale_array, "write `standardize: true` under `data:`"))
    return alternatives


def _pixel_alternatives(largest: float, given: tuple[float, float], channel_count: int) -> Iterator[Alternative]:
    """The other settings of `rescale`, and the two preprocessings of ImageNet models that it does not have."""
    range_by_mode = {"none": (0.0, largest), "unit": (0.0, 1.0), "signed": (-1.0, 1.0)}
    for mode, (low, high) in range_by_mode.items():
        if (low, high) != given:
            yield Alternative(_linear_map(given, (low, high)), f"write `rescale: {mode}` under `data:`")
    if largest == 255 and channel_count == 3:
        to_bytes = _linear_map(given, (0.0, 255.0))
        yield Alternative(
            lambda x: (to_bytes(x) / 255 - _TORCH_MEAN) / _TORCH_DEVIATION,
            "the model expects PyTorch's ImageNet preprocessing, (x / 255 - mean) / deviation: begin the model with "
            "Rescaling and Normalization layers that do this, and write `rescale: none`",
        )
        yield Alternative(
            lambda x: to_bytes(x)[..., ::-1] - _CAFFE_MEAN,
            "the model expects Caffe's ImageNet preprocessing, blue first and the mean subtracted: begin the model "
            "with layers that do this, and write `rescale: none`",
        )


def _range_alternatives(low: float, high: float) -> Iterator[Alternative]:
    """Other usual ranges of samples that a file or a function gives as numbers in one of them."""
    named_ranges = {"0 to 255": (0.0, 255.0), "0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0)}
    present = next((r for r in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)) if r[0] <= low and high <= r[1]), None)
    for name, target in named_ranges.items():
        if present is not None and target != present:
            yield Alternative(_linear_map(present, target), f"give the samples as values from {name}")
    if present == (-1.0, 1.0) and low < 0:
        yield Alternative(lambda x: x * 32768, "give the samples as 16-bit integers do, from -32768 to 32767")


def _linear_map(source: tuple[float, float], target: tuple[float, float]) -> Callable[[Array], Array]:
    factor = (target[1] - target[0]) / (source[1] - source[0])
    return lambda x: (x - source[0]) * factor + target[0]


def _better_finding(baseline: Metric, trial: _Trial, mismatch_text: str) -> Finding:
    observed = (
        f"{trial.metric.name} is {baseline.text()} with the samples as they are and {trial.metric.text()} with another "
        f"preprocessing, on the same {baseline.details['samples']} of the validation split"
    )
    return Finding(
        rule=PREPROCESSING_RULE,
        place="model",
        observed=f"{observed}; {mismatch_text}" if mismatch_text else observed,
        suggestion=trial.alternative.remedy,
    )


def _mismatch_finding(mismatch_text: str) -> Finding:
    return Finding(
        rule=PREPROCESSING_RULE,
        place="model",
        observed=mismatch_text,
        suggestion="preprocess in the data (`rescale`, `standardize`) or in the model, not in both and not in neither",
    )
