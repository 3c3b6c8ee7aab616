"""Training while something is pruned: along a schedule, or in rounds that end when quality falls too far."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.core.outcome import Table
from edgepipe.core.units import show
from edgepipe.stages.base import Work

if TYPE_CHECKING:
    from edgepipe.compress.overrides import Overrides
    from edgepipe.compress.pruning.masked_training import Round
    from edgepipe.compress.pruning.pruner import Pruner
    from edgepipe.compress.pruning.saliency_loss import Objective
    from edgepipe.stages.prune import LayerOptions, Prune


@dataclass(frozen=True)
class Trained:
    """What is told of the training, and whether pruning came to its target."""

    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    reached: bool


def overrides(prune: "Prune") -> "Overrides[LayerOptions]":
    """The options for some layers only."""
    from edgepipe.compress.overrides import Overrides

    return Overrides(prune.types, prune.layers)


def own_share(prune: "Prune", layer: Any) -> float | None:
    """The share that the options give to `layer` alone."""
    given = [option.sparsity for option in overrides(prune).of(layer) if option is not None]
    return next((share for share in reversed(given) if share is not None), None)


def objective(prune: "Prune", work: Work, model: Any) -> "Objective | None":
    """The loss that saliency asks about, if it does."""
    from edgepipe.compress.pruning.saliency_loss import objective_of

    if not prune.settings().needs_data:
        return None
    return objective_of(model, work.goal, work.data.train, prune.saliency_samples, work.seed)


def steps(prune: "Prune", work: Work) -> int:
    """Optimizer steps of one training: over the samples that are trained on, the normal ones of a reconstruction."""
    from edgepipe.core.arrays import count
    from edgepipe.training.training_setup import targets

    return prune.fit_schedule(work).steps(count(targets(work.goal, work.data.train)[0]))


def train(prune: "Prune", work: Work, pruner: "Pruner", model: Any) -> Trained:
    """Prune `model` in place while it trains."""
    from edgepipe.compress.pruning.masked_training import gradual, iterative
    from edgepipe.training.batch_norms import refresh
    from edgepipe.training.training_loop import evaluate, fit

    lesson, schedule = prune.lesson(work), prune.fit_schedule(work)

    def once(callbacks: list[Any]) -> None:
        fit(model, lesson, schedule, work.progress.epoch, callbacks)
        refresh(model, lesson.train.x, work.seed)

    def quality() -> float:
        return evaluate(model, work.goal, lesson.validation)[work.goal.deciding]

    when = prune.when(pruner.final)
    if when.name != "iterative":
        gradual(pruner, when, steps(prune, work), once)
        return Trained((*pruner.notes, *lesson.notes, *averaged(model)), (), reached=True)
    limit = _Limit.of(prune, work, quality())
    found = iterative(pruner, when.rounds, once, quality, limit.holds, model)
    return Trained(
        (*pruner.notes, *lesson.notes, *averaged(model), _ending(found, limit)),
        (_table(found, pruner, limit),),
        found[-1].good,
    )


def averaged(model: Any) -> list[str]:
    """What was done to the batch norms of `model` after each training."""
    from edgepipe.training.batch_norms import SAMPLES, trained_norms

    number = len(trained_norms(model))
    told = f"moving statistics of {number} batch norms averaged anew over up to {SAMPLES} training samples"
    return [f"{told}, with the weights as they are after training"] if number else []


@dataclass(frozen=True)
class _Limit:
    """The quality that must be held."""

    name: str
    unit: Any
    higher: bool
    start: float
    bound: float | None

    @classmethod
    def of(cls, prune: "Prune", work: Work, start: float) -> "_Limit":
        measure = work.goal.measures[work.goal.deciding]
        sign = 1 if measure.higher_is_better else -1
        bounds = [prune.min_quality] if prune.min_quality is not None else []
        if prune.max_drop is not None:
            bounds.append(start - sign * prune.max_drop)
        bound = (max(bounds) if sign > 0 else min(bounds)) if bounds else None
        return cls(work.goal.deciding, measure.unit, measure.higher_is_better, start, bound)

    def holds(self, value: float) -> bool:
        """Whether `value` is good enough; half a millionth is a rounding error."""
        if self.bound is None:
            return True
        return value >= self.bound - 5e-7 if self.higher else value <= self.bound + 5e-7

    def show(self, value: float) -> str:
        """`value` in its unit."""
        return show(value, self.unit)


def _ending(found: "list[Round]", limit: _Limit) -> str:
    last = found[-1]
    if last.good:
        return f"reached the target in {last.number} rounds"
    bound = limit.show(limit.bound or 0.0)
    kept = f"round {last.number - 1}" if last.number > 1 else "the model as it came, nothing pruned"
    return (
        f"stopped in round {last.number}: validation {limit.name} {limit.show(last.quality)} after training, the limit "
        f"is {bound}; kept {kept}"
    )


def _table(found: "list[Round]", pruner: "Pruner", limit: _Limit) -> Table:
    rows = [
        (entry.number, f"{entry.progress * pruner.final:.2%}", limit.show(entry.quality), "yes" if entry.good else "no")
        for entry in found
    ]
    return Table(
        title="Rounds of pruning",
        columns=("round", "gone", f"validation {limit.name}", "good enough"),
        rows=((0, "0.00%", limit.show(limit.start), "yes"), *rows),
    )
