"""Mixed precision: the fewest layers in more than 8 bits that keep validation quality within a given drop.

Layers are ranked by what quantizing each alone does to the outputs, on few samples and without labels; then the
shortest head of that ranking is looked for that keeps the quality, and what it holds in vain is taken out again. Every
model on the way is a real one, quantized and run on the whole validation split. Related: Wang et al. 2019 (HAQ, arXiv
1811.08886), Dong et al. 2019 (HAWQ, arXiv 1905.03696), which rank layers as a first step too.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import final

from edgepipe.compress.quantizer.layerwise_quantizer import Bench, Level
from edgepipe.core.errors import InputError, NotMetError

MOST_HEADS = 24  # of the ranking, and as many single layers, that are tried where all layers together do not hold
MOST_SMALLER = 80  # smaller sets that are tried in the end, so that a small model gets the best there is
Assignment = dict[str, Level]


@final
@dataclass(frozen=True)
class Goal:
    """How much quality may be lost, and how it is measured: `quality` of a .tflite's bytes, on all of validation."""

    quality: Callable[[bytes], float]
    higher_is_better: bool
    of_float: float
    max_drop: float

    def drop(self, quality: float) -> float:
        """How much worse than the float model."""
        return self.of_float - quality if self.higher_is_better else quality - self.of_float

    def met(self, quality: float) -> bool:
        """Whether the drop is allowed; up to a rounding error."""
        return self.drop(quality) <= self.max_drop + 1e-9


@final
@dataclass(frozen=True)
class Trial:
    """One model that was made and measured on validation."""

    levels: Assignment  # of the layers above 8 bits
    quality: float | None  # None: the runtime refuses it
    met: bool
    why: str = ""  # it was refused


@final
@dataclass(frozen=True)
class Found:
    """The model that was found, its trials in order, and how the layers were ranked."""

    levels: Assignment
    content: bytes
    quality: float
    trials: tuple[Trial, ...]
    ranking: tuple[tuple[str, float], ...]  # layer, error of the scores with this one alone in int8


@final
@dataclass
class _Search:
    bench: Bench
    goal: Goal
    trials: list[Trial] = field(default_factory=list)
    known: dict[frozenset[tuple[str, Level]], Trial] = field(default_factory=dict)

    def tried(self, levels: Assignment) -> Trial:
        """The model with these layers above 8 bits, measured; each one once."""
        key = frozenset(levels.items())
        if key not in self.known:
            self.known[key] = self._trial(dict(levels))
            self.trials.append(self.known[key])
        return self.known[key]

    def _trial(self, levels: Assignment) -> Trial:
        try:
            quality = self.goal.quality(self.bench.made(levels))
        except InputError as error:  # litert-quantizer makes models that no runtime takes; another mix may run
            return Trial(levels, None, False, str(error))
        return Trial(levels, quality, self.goal.met(quality))

    def met(self, layers: Collection[str], level: Level) -> bool:
        """Whether the quality holds with `layers` at `level`."""
        return self.tried(dict.fromkeys(layers, level)).met


def search(bench: Bench, goal: Goal, levels: Sequence[Level], suspects: Collection[str] = ()) -> Found:
    """The fewest layers of `bench` above 8 bits; of two sets of one size the one with fewer MACs.

    Args:
        bench: the float model; its samples rank the layers.
        goal: what validation decides by.
        levels: what a layer may be promoted to, the cheapest first: of int16, float16.
        suspects: layers that are ranked first whatever they do, such as those that training left alone.

    Raises:
        NotMetError: no set of layers reaches the goal, not even all of them; with the best point that was found.
        InputError: the model cannot be quantized at all.
    """
    state = _Search(bench, goal)
    ranking = _ranked(bench, suspects)
    names = [name for name, _ in ranking]
    if state.tried({}).met:
        return _found(state, {}, ranking)
    for level in levels:
        chosen = _fewest(state, names, level) if state.met(names, level) else _some(state, names, level)
        if chosen:
            return _found(state, _cheaper(state, chosen, level, levels), ranking)
    raise NotMetError(_best(state, levels))


def _ranked(bench: Bench, suspects: Collection[str]) -> list[tuple[str, float]]:
    alone = [(layer.name, _alone(bench, layer.name)) for layer in bench.layers]
    return sorted(alone, key=lambda entry: (entry[0] not in suspects, -entry[1]))


def _alone(bench: Bench, name: str) -> float:
    """The error with one layer in int8; infinite if that does not run."""
    try:
        return bench.distance({name: "int8"}, "float32")
    except InputError:
        return math.inf


def _fewest(state: _Search, names: list[str], level: Level) -> list[str]:
    """A small set of layers that suffices, from the head of the ranking."""
    chosen = names[: _shortest(len(names), lambda length: state.met(names[:length], level))]
    return _smaller(state, names, level, _thinned(state, chosen, level))


def _thinned(state: _Search, chosen: list[str], level: Level) -> list[str]:
    """What is left of a set that suffices without what it holds in vain, the least sensitive tried first."""
    for name in reversed(chosen):
        without = [other for other in chosen if other != name]
        if without and state.met(without, level):
            chosen = without
    return chosen


def _some(state: _Search, names: list[str], level: Level) -> list[str]:
    """A set that suffices although all layers together do not: quality need not rise with every layer.

    Heads of the ranking are tried, single layers, and small sets as long as they are few; empty if none of them holds.
    """
    heads = [names[:length] for length in range(1, len(names))][:MOST_HEADS]
    for group in (*heads, *([name] for name in names[:MOST_HEADS]), *_small(names)):
        if state.met(group, level):
            return _thinned(state, list(group), level)
    return []


def _small(names: list[str]) -> Iterator[Sequence[str]]:
    """Sets of layers, the smallest first, as long as all of one size are few enough to be tried."""
    left = MOST_SMALLER
    for size in range(2, len(names)):
        left -= math.comb(len(names), size)
        if left < 0:
            return
        yield from combinations(names, size)


def _shortest(longest: int, holds: Callable[[int], bool]) -> int:
    """The least length that `holds`, of 1 to `longest`, which does; if what holds once holds ever after."""
    low, high = 1, longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _smaller(state: _Search, names: list[str], level: Level, chosen: list[str]) -> list[str]:
    """The smallest set that suffices, as long as all sets of the next size are few enough to be tried."""
    left = MOST_SMALLER
    for size in range(len(chosen) - 1, 0, -1):
        left -= math.comb(len(names), size)
        if left < 0:
            return chosen
        groups = sorted(combinations(names, size), key=lambda group: _cost(state, group))
        better = next((group for group in groups if state.met(group, level)), None)
        if better is None:
            return chosen
        chosen = list(better)
    return chosen


def _cost(state: _Search, group: Collection[str]) -> int:
    return sum(layer.macs for layer in state.bench.layers if layer.name in group)


def _cheaper(state: _Search, chosen: list[str], level: Level, levels: Sequence[Level]) -> Assignment:
    """`chosen` at `level`, each at a cheaper level if that is enough."""
    found: Assignment = dict.fromkeys(chosen, level)
    for name in chosen:
        for cheaper in levels[: levels.index(level)]:
            if state.tried({**found, name: cheaper}).met:
                found = {**found, name: cheaper}
                break
    return found


def _found(state: _Search, levels: Assignment, ranking: list[tuple[str, float]]) -> Found:
    quality = state.tried(levels).quality
    assert quality is not None, "what was found has been run"
    return Found(levels, state.bench.made(levels), quality, tuple(state.trials), tuple(ranking))


def _best(state: _Search, levels: Sequence[Level]) -> str:
    goal = state.goal
    run = [(goal.drop(trial.quality), trial.quality, trial) for trial in state.trials if trial.quality is not None]
    if not run:
        return f"no mix of types runs: {state.trials[-1].why}"
    drop, quality, best = min(run, key=lambda entry: entry[0])
    which = ", ".join(sorted(set(best.levels.values()))) or "int8"
    number = f"{len(best.levels)} of {len(state.bench.layers)} layers in {which}" if best.levels else "all in int8"
    allowed = " and ".join(("int8", *levels))
    return (
        f"no mix of {allowed} keeps the drop within {goal.max_drop:g}: the best of {len(state.trials)}, {number}, "
        f"has {quality:g} against {goal.of_float:g} of the float model, a drop of {drop:g}"
    )
