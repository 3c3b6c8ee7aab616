"""Whether a quality could be chance: how likely a model that ignores its input is as good on the same samples.

Accuracy is compared with the most frequent class (binomial distribution), the error of a reconstruction with that of
the mean sample (paired t-test), every other built-in metric with the same outputs for shuffled labels (permutation
test); errors of regression must also be below those of predicting the mean.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.units import plural
from edgepipe.tasks.quality import Measure, Task, decode_outputs, is_builtin_measure

_SHUFFLE_COUNT, _MAX_SHUFFLED = 199, 5000  # shuffles, and samples that are shuffled: each costs one evaluation
_CLASSES_COUNTED = {"accuracy": 1, "top5_accuracy": 5}  # a sample counts if its class is among so many best scores


@dataclass(frozen=True)
class ChanceComparison:
    """What chance gives, and the probability that it gives as much as was measured."""

    level: float  # in the unit of the measure
    probability: float
    perfect_probability: float  # that chance is as good as a perfect model: with few samples it may be
    reference: str  # what chance is, in words


def compare_with_chance(
    task: Task, x: Arrays, y: Arrays | None, outputs: Arrays, *, is_logits: bool
) -> ChanceComparison | None:
    """Compare the primary measure of `task` with chance; None for a measure of the user's own, of which it is unknown.

    Args:
        task: as in `compute_quality`, which has accepted the arguments.
        x: inputs; the first axis counts samples.
        y: labels.
        outputs: raw outputs of the model.
        is_logits: whether class outputs are not yet probabilities.
    """
    name = task.primary_measure
    if not is_builtin_measure(task, name):
        return None
    truth, decoded_outputs = decode_outputs(task, x, y, outputs, is_logits)
    if name in _CLASSES_COUNTED:
        return _compare_with_frequent_classes(truth, decoded_outputs, _CLASSES_COUNTED[name])
    if name in ("mae", "rmse", "r2"):
        return _compare_with_mean(task.measures[name], truth, decoded_outputs, name)
    if name == "mse":
        samples, labels = truth
        return _compare_with_mean_sample(samples, labels, decoded_outputs)
    return _compare_with_shuffled(task.measures[name], truth, decoded_outputs)


def _compare_with_frequent_classes(y: Array, scores: Array, class_count: int) -> ChanceComparison:
    from scipy.special import bdtrc

    labels = np.ravel(y)
    best_classes = np.argsort(-scores, axis=1, kind="stable")[:, :class_count]
    hit_count = int((best_classes == labels[:, None]).any(axis=1).sum())
    counts = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    frequent_count, sample_count = int(counts[:class_count].sum()), len(labels)
    share = max(frequent_count / sample_count, min(class_count / scores.shape[1], 1.0))
    reference = "the most frequent class" if class_count == 1 else f"the {class_count} most frequent classes"
    if share > frequent_count / sample_count:
        reference = f"guessing among {plural(scores.shape[1], 'class', 'classes')}"
    return ChanceComparison(
        share,
        float(bdtrc(hit_count - 1, sample_count, share)) if hit_count else 1.0,
        float(share**sample_count),
        f"{reference}, {share:.2%}",
    )


def _compare_with_mean(measure: Measure, y: Array, outputs: Array, measure_name: str) -> ChanceComparison:
    """Errors of regression: worse than predicting the mean is chance, and better may be, as shuffled labels show."""
    labels = np.asarray(y, np.float64)
    level = measure.function(labels, np.broadcast_to(labels.mean(axis=0), labels.shape))
    shuffled = _compare_with_shuffled(measure, labels, outputs)
    value = measure.function(labels, outputs)
    is_better = value > level if measure.higher_is_better else value < level
    return ChanceComparison(
        level,
        shuffled.probability if is_better else 1.0,
        shuffled.perfect_probability,
        f"{measure_name} of predicting the mean of the labels, {level:.4g}",
    )


def _compare_with_mean_sample(x: Array, y: Array | None, outputs: Array) -> ChanceComparison:
    is_normal = np.ones(len(x), bool) if y is None else np.ravel(y) == 0
    samples = x.reshape(len(x), -1)[is_normal].astype(np.float64)
    model_errors = np.square(outputs.reshape(len(x), -1)[is_normal] - samples).mean(axis=1)
    mean_errors = np.square(samples.mean(axis=0) - samples).mean(axis=1)
    return _paired_test(mean_errors, model_errors, float(mean_errors.mean()), "giving the mean of the samples")


def _paired_test(mean_errors: Array, model_errors: Array, level: float, reference: str) -> ChanceComparison:
    return ChanceComparison(
        level,
        _probability_of_no_gain(mean_errors - model_errors),
        _probability_of_no_gain(mean_errors),
        f"{reference}, {level:.4g}",
    )


def _probability_of_no_gain(gains: Array) -> float:
    """The one-sided p-value of the t-test that `gains` have a mean of zero."""
    from scipy.special import stdtr

    if len(gains) < 2:
        return 1.0
    spread, mean_gain = float(gains.std(ddof=1)), float(gains.mean())
    if spread == 0:
        return 0.0 if mean_gain > 0 else 1.0
    return float(stdtr(len(gains) - 1, -mean_gain / spread * math.sqrt(len(gains))))


def _compare_with_shuffled(measure: Measure, truth: Any, outputs: Array) -> ChanceComparison:
    """The permutation test; of a reconstruction, `truth` is samples and labels, and the labels are shuffled."""
    has_samples, random = isinstance(truth, tuple), np.random.RandomState(0)
    chosen = random.permutation(len(outputs))[:_MAX_SHUFFLED]
    truth = tuple(part[chosen] for part in truth) if has_samples else np.asarray(truth)[chosen]
    outputs, labels = outputs[chosen], np.asarray(truth[1] if has_samples else truth)
    value = measure.function(truth, outputs)
    shuffled_values = []
    for _ in range(_SHUFFLE_COUNT):
        shuffled_labels = labels[random.permutation(len(labels))]
        shuffled_values.append(
            measure.function((truth[0], shuffled_labels) if has_samples else shuffled_labels, outputs)
        )
    sign = 1 if measure.higher_is_better else -1
    as_good_count = sum(sign * (shuffled - value) >= -1e-12 for shuffled in shuffled_values)
    level = float(np.mean(shuffled_values))
    return ChanceComparison(
        level,
        (1 + as_good_count) / (1 + _SHUFFLE_COUNT),
        _share_of_arrangements(labels),
        f"the same outputs for shuffled labels, {level:.4g}",
    )


def _share_of_arrangements(labels: Array) -> float:
    """One over the number of different orders of `labels`: how likely a shuffle leaves all where they are."""
    counts = np.unique(labels.reshape(len(labels), -1), axis=0, return_counts=True)[1]
    return math.exp(sum(math.lgamma(count + 1) for count in counts) - math.lgamma(len(labels) + 1))
