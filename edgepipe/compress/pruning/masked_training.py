"""Pruning during training: along a schedule, or in rounds that stop when quality drops too far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgepipe.compress.pruning.masking import MaskCallback, PruningMasks
from edgepipe.compress.pruning.pruner import Pruner
from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule
from edgepipe.core.arrays import Array

TrainFunction = Callable[[list[Any]], None]  # train once, with these callbacks


@dataclass(frozen=True)
class PruningRound:
    """One round of iterative pruning: its progress to the target, its quality, and whether that was acceptable."""

    number: int
    progress: float
    quality: float
    is_acceptable: bool


def prune_gradually(pruner: Pruner, schedule: SparsitySchedule, steps: int, fit: TrainFunction) -> None:
    """Train once; masks grow along `schedule` and hold to the end.

    Args:
        pruner: what to remove.
        schedule: progress by step.
        steps: optimizer steps that `fit` takes.
        fit: trains once with the callbacks it is given.
    """
    pruning_masks = PruningMasks(pruner.weights, pruner.zero_masks)

    def make_update(progress: float) -> Callable[[], list[Array]]:
        return lambda: pruner.advance(progress)

    mask_update_by_step = {step: make_update(progress) for step, progress in schedule.progress_by_step(steps).items()}
    fit([MaskCallback(pruning_masks, mask_update_by_step)])


def prune_iteratively(
    pruner: Pruner,
    round_count: int,
    fit: TrainFunction,
    measure_quality: Callable[[], float],
    is_acceptable: Callable[[float], bool],
    model: Any,
) -> list[PruningRound]:
    """Algorithm 1 of the survey (Menghani 2021): score, remove a share of the rest, fine-tune, evaluate; repeat.

    Ends at the target, or with the first round of unacceptable quality: the model is then restored to the end of the
    previous round (or its initial state).

    Args:
        pruner: what to remove.
        round_count: rounds to the target.
        fit: fine-tunes once with the callbacks it is given.
        measure_quality: the quality of the model as it is.
        is_acceptable: whether a quality is good enough to go on.
        model: the tf_keras model whose weights are restored.
    """
    pruning_masks, finished_rounds = PruningMasks(pruner.weights, pruner.zero_masks), []
    for number in range(1, round_count + 1):
        previous_state = pruner.snapshot(), model.get_weights()
        progress = round_progress(pruner.final_share, number / round_count)
        pruning_masks.set_zeros(pruner.advance(progress))
        fit([MaskCallback(pruning_masks, {})])
        round_quality = measure_quality()
        finished_rounds.append(PruningRound(number, progress, round_quality, is_acceptable(round_quality)))
        if not is_acceptable(round_quality):
            pruner.restore(previous_state[0])
            model.set_weights(previous_state[1])
            break
    return finished_rounds


def round_progress(final_share: float, rounds_share: float) -> float:
    """Progress to the target after `rounds_share` of all rounds, 0 to 1.

    Each round removes the same share of what is left; if nothing is to be left, the same share of the whole.
    """
    return (
        rounds_share
        if rounds_share == 1 or final_share in (0, 1)
        else (1 - (1 - final_share) ** rounds_share) / final_share
    )
