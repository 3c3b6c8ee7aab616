"""Pruning while training goes on: along a schedule, or in rounds that stop when quality falls too far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepipe.compress.pruning.masking import Holding, Masks
from edgepipe.compress.pruning.pruner import Pruner
from edgepipe.compress.pruning.sparsity_schedule import Schedule
from edgepipe.core.arrays import Array

Fit = Callable[[list[Any]], None]  # train once, with these callbacks


@dataclass(frozen=True)
class Round:
    """One round of iterative pruning: how far it came, the quality after it, and whether that was good enough."""

    number: int
    progress: float
    quality: float
    good: bool


def gradual(pruner: Pruner, schedule: Schedule, steps: int, fit: Fit) -> None:
    """Train once for `steps` steps; masks grow along `schedule` and hold to the end."""
    masks = Masks(pruner.weights, pruner.zeros)

    def update(progress: float) -> Callable[[], list[Array]]:
        return lambda: pruner.advance(progress)

    updates = {step: update(progress) for step, progress in schedule.updates(steps).items()}
    fit([Holding(masks, updates)])


def iterative(
    pruner: Pruner, rounds: int, fit: Fit, quality: Callable[[], float], good: Callable[[float], bool], model: Any
) -> list[Round]:
    """The survey's Algorithm 1: score, remove a share of what is left, fine-tune, evaluate; again and again.

    It ends at the target, or in the first round whose quality is not `good`: then the model is put back to the end of
    the round before (or as it came).
    """
    masks, found = Masks(pruner.weights, pruner.zeros), []
    for number in range(1, rounds + 1):
        last = pruner.snapshot(), model.get_weights()
        progress = _progress(pruner.final, number / rounds)
        masks.set(pruner.advance(progress))
        fit([Holding(masks, {})])
        value = quality()
        found.append(Round(number, progress, value, good(value)))
        if not good(value):
            pruner.restore(last[0])
            model.set_weights(last[1])
            break
    return found


def _progress(final: float, done: float) -> float:
    """Each round removes the same share of what is left; where nothing is to be left, the same share of all."""
    return done if done == 1 or final in (0, 1) else (1 - (1 - final) ** done) / final
