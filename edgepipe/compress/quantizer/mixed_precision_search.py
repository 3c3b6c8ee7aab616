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

    def drop(self, quality: float) -> float:
        """How much worse than the float model."""
        return self.float_quality - quality if self.higher_is_better else quality - self.float_quality

    def is_met(self, quality: float) -> bool:
        """Whether the drop is within `max_drop`, up to a rounding error."""
        return self.drop(quality) <= self.max_drop + 1e-9


@final
@dataclass(frozen=True)
class Trial:
    """One mix that was quantized and measured on validation."""

    precisions: PrecisionByLayer  # of the layers above 8 bits
    quality: float | None  # None: the runtime refuses the model
    meets_goal: bool
    refusal: str = ""  # the error with which it was refused


@final
@dataclass(frozen=True)
class SearchResult:
    """The chosen model, the trials in order, and the ranking of the layers."""

    precisions: PrecisionByLayer
    content: bytes
    quality: float
    trials: tuple[Trial, ...]
    ranking: tuple[tuple[str, float], ...]  # layer, error of the scores with only this layer in int8


@final
@dataclass
class _Search:
    quantizer: LayerwiseQuantizer
    goal: QualityGoal
    trials: list[Trial] = field(default_factory=list)
    trial_by_key: dict[frozenset[tuple[str, LayerPrecision]], Trial] = field(default_factory=dict)

    def measure(self, precisions: PrecisionByLayer) -> Trial:
        """Measure the model with these layers above 8 bits; results are cached."""
        key = frozenset(precisions.items())
        if key not in self.trial_by_key:
            self.trial_by_key[key] = self._run_trial(dict(precisions))
            self.trials.append(self.trial_by_key[key])
        return self.trial_by_key[key]

    def _run_trial(self, precisions: PrecisionByLayer) -> Trial:
        try:
            quality = self.goal.measure_quality(self.quantizer.quantize(precisions))
        except InputError as error:  # litert-quantizer can write models that no runtime accepts; another mix may run
            return Trial(precisions, None, False, str(error))
        return Trial(precisions, quality, self.goal.is_met(quality))

    def keeps_quality(self, layers: Collection[str], precision: LayerPrecision) -> bool:
        """Whether the goal is met with `layers` at `precision`."""
        return self.measure(dict.fromkeys(layers, precision)).meets_goal


def search(
    quantizer: LayerwiseQuantizer,
    goal: QualityGoal,
    allowed_precisions: Sequence[LayerPrecision],
    suspects: Collection[str] = (),
) -> SearchResult:
    """The fewest layers of `quantizer` above 8 bits; of two sets of one size the one with fewer MACs.

    Args:
        quantizer: the float model; its samples rank the layers.
        goal: the quality to keep on validation.
        allowed_precisions: what a layer may be promoted to, cheapest first: of int16, float16.
        suspects: layers that are ranked first whatever their error, such as those without trained ranges.

    Raises:
        TargetNotMetError: no set of layers meets the goal, not even all of them; names the best mix.
        InputError: the model cannot be quantized at all.
    """
    state = _Search(quantizer, goal)
    ranking = _rank_layers(quantizer, suspects)
    names = [name for name, _ in ranking]
    if state.measure({}).meets_goal:
        return _search_result(state, {}, ranking)
    for precision in allowed_precisions:
        promoted_layers = (
            _find_small_set(state, names, precision)
            if state.keeps_quality(names, precision)
            else _find_any_set(state, names, precision)
        )
        if promoted_layers:
            return _search_result(
                state, _cheapen_precisions(state, promoted_layers, precision, allowed_precisions), ranking
            )
    raise TargetNotMetError(_failure_message(state, allowed_precisions))


def _rank_layers(quantizer: LayerwiseQuantizer, suspects: Collection[str]) -> list[tuple[str, float]]:
    layer_errors = [(layer.name, _single_layer_error(quantizer, layer.name)) for layer in quantizer.layers]
    return sorted(layer_errors, key=lambda pair: (pair[0] not in suspects, -pair[1]))


def _single_layer_error(quantizer: LayerwiseQuantizer, name: str) -> float:
    """The error with one layer in int8; infinite if that does not run."""
    try:
        return quantizer.score_distance({name: "int8"}, "float32")
    except InputError:
        return math.inf


def _find_small_set(state: _Search, names: list[str], precision: LayerPrecision) -> list[str]:
    """A small set of layers that meets the goal, from the head of the ranking."""
    promoted_layers = names[
        : _shortest_prefix(len(names), lambda length: state.keeps_quality(names[:length], precision))
    ]
    return _shrink_set(state, names, precision, _drop_needless(state, promoted_layers, precision))


def _drop_needless(state: _Search, promoted_layers: list[str], precision: LayerPrecision) -> list[str]:
    """A sufficient set without the layers it does not need, the least sensitive tried first."""
    for name in reversed(promoted_layers):
        remaining = [layer for layer in promoted_layers if layer != name]
        if remaining and state.keeps_quality(remaining, precision):
            promoted_layers = remaining
    return promoted_layers


def _find_any_set(state: _Search, names: list[str], precision: LayerPrecision) -> list[str]:
    """A set that meets the goal although all layers together do not: quality need not rise with every layer.

    Tries prefixes of the ranking, single layers, and small sets while they are few; empty if none meets the goal.
    """
    prefixes = [names[:length] for length in range(1, len(names))][:MAX_PREFIXES]
    for group in (*prefixes, *([name] for name in names[:MAX_PREFIXES]), *_small_sets(names)):
        if state.keeps_quality(group, precision):
            return _drop_needless(state, list(group), precision)
    return []


def _small_sets(names: list[str]) -> Iterator[Sequence[str]]:
    """Sets of layers, the smallest first, while all sets of one size are few enough to try."""
    budget = MAX_SMALLER_SETS
    for size in range(2, len(names)):
        budget -= math.comb(len(names), size)
        if budget < 0:
            return
        yield from combinations(names, size)


def _shortest_prefix(max_length: int, holds: Callable[[int], bool]) -> int:
    """The least length that `holds`, from 1 to `max_length`, which does; assumes that `holds` is monotonic."""
    low, high = 1, max_length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _shrink_set(state: _Search, names: list[str], precision: LayerPrecision, promoted_layers: list[str]) -> list[str]:
    """The smallest sufficient set, searched while all sets of the next size are few enough to try."""
    budget = MAX_SMALLER_SETS
    for size in range(len(promoted_layers) - 1, 0, -1):
        budget -= math.comb(len(names), size)
        if budget < 0:
            return promoted_layers
        groups = sorted(combinations(names, size), key=lambda group: _total_macs(state, group))
        smaller_group = next((group for group in groups if state.keeps_quality(group, precision)), None)
        if smaller_group is None:
            return promoted_layers
        promoted_layers = list(smaller_group)
    return promoted_layers


def _total_macs(state: _Search, group: Collection[str]) -> int:
    return sum(layer.macs for layer in state.quantizer.layers if layer.name in group)


def _cheapen_precisions(
    state: _Search, promoted_layers: list[str], precision: LayerPrecision, allowed_precisions: Sequence[LayerPrecision]
) -> PrecisionByLayer:
    """`promoted_layers` at `precision`, each at a cheaper precision if that is enough."""
    precisions: PrecisionByLayer = dict.fromkeys(promoted_layers, precision)
    for name in promoted_layers:
        for cheaper_precision in allowed_precisions[: allowed_precisions.index(precision)]:
            if state.measure({**precisions, name: cheaper_precision}).meets_goal:
                precisions = {**precisions, name: cheaper_precision}
                break
    return precisions


def _search_result(state: _Search, precisions: PrecisionByLayer, ranking: list[tuple[str, float]]) -> SearchResult:
    quality = state.measure(precisions).quality
    assert quality is not None, "a mix that meets the goal has been run"
    return SearchResult(precisions, state.quantizer.quantize(precisions), quality, tuple(state.trials), tuple(ranking))


def _failure_message(state: _Search, allowed_precisions: Sequence[LayerPrecision]) -> str:
    goal = state.goal
    measured_trials = [
        (goal.drop(trial.quality), trial.quality, trial) for trial in state.trials if trial.quality is not None
    ]
    if not measured_trials:
        return f"no mix of types runs: {state.trials[-1].refusal}"
    drop, quality, best_trial = min(measured_trials, key=lambda candidate: candidate[0])
    precisions_text = ", ".join(sorted(set(best_trial.precisions.values()))) or "int8"
    count_text = (
        f"{len(best_trial.precisions)} of {len(state.quantizer.layers)} layers in {precisions_text}"
        if best_trial.precisions
        else "all in int8"
    )
    allowed_text = " and ".join(("int8", *allowed_precisions))
    return (
        f"no mix of {allowed_text} keeps the drop within {goal.max_drop:g}: the best of {len(state.trials)}, "
        f"{count_text}, has {quality:g} against {goal.float_quality:g} of the float model, a drop of {drop:g}"
    )
