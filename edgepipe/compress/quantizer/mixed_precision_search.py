"""Mixed precision: the fewest layers above 8 bits that keep validation quality within a given drop.

Layers are ranked by the output error of quantizing each alone, on few samples and without labels; the search then
takes the shortest prefix of that ranking that keeps the quality, and drops the layers it does not need. Every
candidate is a real model, quantized and run on the whole validation split. Related: Wang et al. 2019 (HAQ, arXiv
1811.08886), Dong et al. 2019 (HAWQ, arXiv 1905.03696), which rank layers as a first step too.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import final

from edgepipe.compress.quantizer.layerwise_quantizer import LayerPrecision, LayerwiseQuantizer
from edgepipe.core.errors import InputError, TargetNotMetError

MAX_PREFIXES = 24  # of the ranking, and as many single layers, tried where all layers together miss the goal
MAX_SMALLER_SETS = 80  # smaller sets that are tried at the end, so that a small model gets the optimum
PrecisionByLayer = dict[str, LayerPrecision]


@final
@dataclass(frozen=True)
class QualityGoal:
    """How much quality may be lost; `measure_quality` takes a .tflite's bytes and uses the whole validation split."""

    measure_quality: Callable[[bytes], float]
    higher_is_better: bool
    float_quality: float
    max_drop: float

    def quality_drop(self, quality: float) -> float:
        """How much worse than the float model."""
        return self.float_quality - quality if self.higher_is_better else quality - self.float_quality

    def is_met(self, quality: float) -> bool:
        """Whether the drop is within `max_drop`, up to a rounding error."""
        return self.quality_drop(quality) <= self.max_drop + 1e-9


@final
@dataclass(frozen=True)
class Trial:
    """One mix that was quantized and measured on validation."""

    precisions: PrecisionByLayer  # of the layers above 8 bits
    quality: float | None  # None: the runtime refuses the model
    meets_goal: bool
    refusal_reason: str = ""  # the error with which it was refused


@final
@dataclass(frozen=True)
class SearchResult:
    """The chosen model, the trials in order, and the ranking of the layers."""

    precisions: PrecisionByLayer
    content: bytes
    quality: float
    trials: tuple[Trial, ...]
    layer_ranking: tuple[tuple[str, float], ...]  # layer, error of the scores with only this layer in int8


@final
@dataclass
class _MixSearch:
    quantizer: LayerwiseQuantizer
    goal: QualityGoal
    trials: list[Trial] = field(default_factory=list)
    trial_by_precisions: dict[frozenset[tuple[str, LayerPrecision]], Trial] = field(default_factory=dict)

    def measure_mix(self, precisions: PrecisionByLayer) -> Trial:
        """Measure the model with these layers above 8 bits; results are cached."""
        key = frozenset(precisions.items())
        if key not in self.trial_by_precisions:
            self.trial_by_precisions[key] = self._run_trial(dict(precisions))
            self.trials.append(self.trial_by_precisions[key])
        return self.trial_by_precisions[key]

    def _run_trial(self, precisions: PrecisionByLayer) -> Trial:
        try:
            quality = self.goal.measure_quality(self.quantizer.quantize(precisions))
        except InputError as error:  # the runtime refuses this mix; another may run
            return Trial(precisions, None, False, str(error))
        return Trial(precisions, quality, self.goal.is_met(quality))

    def keeps_quality(self, layer_names: Collection[str], precision: LayerPrecision) -> bool:
        """Whether the goal is met with `layers` at `precision`."""
        return self.measure_mix(dict.fromkeys(layer_names, precision)).meets_goal


def search(
    quantizer: LayerwiseQuantizer,
    goal: QualityGoal,
    allowed_precisions: Sequence[LayerPrecision],
    suspect_layers: Collection[str] = (),
) -> SearchResult:
    """The fewest layers of `quantizer` above 8 bits; of two sets of one size the one with fewer MACs.

    Args:
        quantizer: the float model; its samples rank the layers.
        goal: the quality to keep on validation.
        allowed_precisions: what a layer may be promoted to, cheapest first: of int16, float16.
        suspect_layers: layers that are ranked first whatever their error, such as those without trained ranges.

    Raises:
        TargetNotMetError: no set of layers meets the goal, not even all of them; names the best mix.
        InputError: the model cannot be quantized at all.
    """
    mix_search = _MixSearch(quantizer, goal)
    layer_ranking = _rank_layers(quantizer, suspect_layers)
    layer_names = [name for name, _ in layer_ranking]
    if mix_search.measure_mix({}).meets_goal:
        return _search_result(mix_search, {}, layer_ranking)
    for precision in allowed_precisions:
        promoted_layers = (
            _find_small_set(mix_search, layer_names, precision)
            if mix_search.keeps_quality(layer_names, precision)
            else _find_any_set(mix_search, layer_names, precision)
        )
        if promoted_layers:
            return _search_result(
                mix_search,
                _cheapen_precisions(mix_search, promoted_layers, precision, allowed_precisions),
                layer_ranking,
            )
    raise TargetNotMetError(_failure_message(mix_search, allowed_precisions))


def _rank_layers(quantizer: LayerwiseQuantizer, suspect_layers: Collection[str]) -> list[tuple[str, float]]:
    layer_errors = [(layer.name, _single_layer_error(quantizer, layer.name)) for layer in quantizer.layers]
    return sorted(layer_errors, key=lambda pair: (pair[0] not in suspect_layers, -pair[1]))


def _single_layer_error(quantizer: LayerwiseQuantizer, name: str) -> float:
    """The error with one layer in int8; infinite if that does not run."""
    try:
        return quantizer.score_distance({name: "int8"}, "float32")
    except InputError:
        return math.inf


def _find_small_set(mix_search: _MixSearch, layer_names: list[str], precision: LayerPrecision) -> list[str]:
    """A small set of layers that meets the goal, from the head of the ranking."""
    promoted_layers = layer_names[
        : _shortest_prefix(len(layer_names), lambda length: mix_search.keeps_quality(layer_names[:length], precision))
    ]
    return _shrink_set(mix_search, layer_names, precision, _drop_needless(mix_search, promoted_layers, precision))


def _drop_needless(mix_search: _MixSearch, promoted_layers: list[str], precision: LayerPrecision) -> list[str]:
    """A sufficient set without the layers it does not need, the least sensitive tried first."""
    for name in reversed(promoted_layers):
        remaining_layers = [layer for layer in promoted_layers if layer != name]
        if remaining_layers and mix_search.keeps_quality(remaining_layers, precision):
            promoted_layers = remaining_layers
    return promoted_layers


def _find_any_set(mix_search: _MixSearch, layer_names: list[str], precision: LayerPrecision) -> list[str]:
    """A set that meets the goal although all layers together do not: quality need not rise with every layer.

    Tries prefixes of the ranking, single layers, and small sets while they are few; empty if none meets the goal.
    """
    ranking_prefixes = [layer_names[:length] for length in range(1, len(layer_names))][:MAX_PREFIXES]
    for layer_set in (*ranking_prefixes, *([name] for name in layer_names[:MAX_PREFIXES]), *_small_sets(layer_names)):
        if mix_search.keeps_quality(layer_set, precision):
            return _drop_needless(mix_search, list(layer_set), precision)
    return []


def _small_sets(layer_names: list[str]) -> Iterator[Sequence[str]]:
    """Sets of layers, the smallest first, while all sets of one size are few enough to try."""
    trial_budget = MAX_SMALLER_SETS
    for size in range(2, len(layer_names)):
        trial_budget -= math.comb(len(layer_names), size)
        if trial_budget < 0:
            return
        yield from combinations(layer_names, size)


def _shortest_prefix(max_length: int, is_sufficient: Callable[[int], bool]) -> int:
    """The least length that `holds`, from 1 to `max_length`, which does; assumes that `holds` is monotonic."""
    low, high = 1, max_length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_sufficient(middle) else (middle + 1, high)
    return high


def _shrink_set(
    mix_search: _MixSearch, layer_names: list[str], precision: LayerPrecision, promoted_layers: list[str]
) -> list[str]:
    """The smallest sufficient set, searched while all sets of the next size are few enough to try."""
    trial_budget = MAX_SMALLER_SETS
    for size in range(len(promoted_layers) - 1, 0, -1):
        trial_budget -= math.comb(len(layer_names), size)
        if trial_budget < 0:
            return promoted_layers
        layer_sets = sorted(combinations(layer_names, size), key=lambda group: _total_macs(mix_search, group))
        smaller_set = next((group for group in layer_sets if mix_search.keeps_quality(group, precision)), None)
        if smaller_set is None:
            return promoted_layers
        promoted_layers = list(smaller_set)
    return promoted_layers


def _total_macs(mix_search: _MixSearch, layer_set: Collection[str]) -> int:
    return sum(layer.macs for layer in mix_search.quantizer.layers if layer.name in layer_set)


def _cheapen_precisions(
    mix_search: _MixSearch,
    promoted_layers: list[str],
    precision: LayerPrecision,
    allowed_precisions: Sequence[LayerPrecision],
) -> PrecisionByLayer:
    """`promoted_layers` at `precision`, each at a cheaper precision if that is enough."""
    precisions: PrecisionByLayer = dict.fromkeys(promoted_layers, precision)
    for name in promoted_layers:
        for cheaper_precision in allowed_precisions[: allowed_precisions.index(precision)]:
            if mix_search.measure_mix({**precisions, name: cheaper_precision}).meets_goal:
                precisions = {**precisions, name: cheaper_precision}
                break
    return precisions


def _search_result(
    mix_search: _MixSearch, precisions: PrecisionByLayer, layer_ranking: list[tuple[str, float]]
) -> SearchResult:
    quality = mix_search.measure_mix(precisions).quality
    assert quality is not None, "a mix that meets the goal has been run"
    return SearchResult(
        precisions, mix_search.quantizer.quantize(precisions), quality, tuple(mix_search.trials), tuple(layer_ranking)
    )


def _failure_message(mix_search: _MixSearch, allowed_precisions: Sequence[LayerPrecision]) -> str:
    goal = mix_search.goal
    measured_trials = [
        (goal.quality_drop(trial.quality), trial.quality, trial)
        for trial in mix_search.trials
        if trial.quality is not None
    ]
    if not measured_trials:
        return f"no mix of types runs: {mix_search.trials[-1].refusal_reason}"
    drop, quality, best_trial = min(measured_trials, key=lambda candidate: candidate[0])
    precisions_text = ", ".join(sorted(set(best_trial.precisions.values()))) or "int8"
    count_text = (
        f"{len(best_trial.precisions)} of {len(mix_search.quantizer.layers)} layers in {precisions_text}"
        if best_trial.precisions
        else "all in int8"
    )
    allowed_text = " and ".join(("int8", *allowed_precisions))
    return (
        f"no mix of {allowed_text} keeps the drop within {goal.max_drop:g}: the best of {len(mix_search.trials)}, "
        f"{count_text}, has {quality:g} against {goal.float_quality:g} of the float model, a drop of {drop:g}"
    )
