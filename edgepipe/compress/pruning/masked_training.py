"""Pruning while training goes on: along a schedule, or in rounds that stop when quality falls too far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepipe.compress.pruning.masking import MaskCallback, PruningMasks
from edgepipe.compress.pruning.pruner import Pruner
from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule
from edgepipe.core.arrays import Array

Fit = Callable[[list[Any]], None]  # train once, with these callbacks


@dataclass(frozen=True)
class PruningRound:
    """One round of iterative pruning: how far it came, the quality after it, and whether that was good enough."""

    number: int
    progress: float
    quality: float
    is_acceptable: bool


def prune_gradually(pruner: Pruner, schedule: SparsitySchedule, steps: int, fit: Fit) -> None:
    """Train once for `steps` steps; masks grow along `schedule` and hold to the end."""
    masks = PruningMasks(pruner.weights, pruner.zero_masks)

    def make_update(progress: float) -> Callable[[], list[Array]]:
        return lambda: pruner.advance(progress)

    updates = {step: make_update(progress) for step, progress in schedule.updates(steps).items()}
    fit([MaskCallback(masks, updates)])


def prune_iteratively(
    pruner: Pruner,
    rounds: int,
    fit: Fit,
    measure_quality: Callable[[], float],
    is_acceptable: Callable[[float], bool],
    model: Any,
) -> list[PruningRound]:
    """The survey's Algorithm 1: score, remove a share of what is left, fine-tune, evaluate; again and again.

    It ends at the target, or in the first round whose quality is not `good`: then the model is put back to the end of
    the round before (or as it came).
    """
    masks, finished_rounds = PruningMasks(pruner.weights, pruner.zero_masks), []
    for number in range(1, rounds + 1):
        previous_state = pruner.snapshot(), model.get_weights()
        progress = _progress(pruner.final_share, number / rounds)
        masks.set_zeros(pruner.advance(progress))
        fit([MaskCallback(masks, {})])
        round_quality = measure_quality()
        finished_rounds.append(PruningRound(number, progress, round_quality, is_acceptable(round_quality)))
        if not is_acceptable(round_quality):
            pruner.restore(previous_state[0])
            model.set_weights(previous_state[1])
            break
    return finished_rounds


def _progress(final_share: float, rounds_share: float) -> float:
    """Each round removes the same share of what is left; where nothing is to be left, the same share of all."""
    return (
        rounds_share
        if rounds_share == 1 or final_share in (0, 1)
        else (1 - (1 - final_share) ** rounds_share) / final_share
    )
