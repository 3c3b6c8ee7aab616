"""Training while something is pruned: along a schedule, or in rounds that end when quality falls too far."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.core.outcome import Table
from edgepipe.core.units import show
from edgepipe.stages.context import StageContext

if TYPE_CHECKING:
    from edgepipe.compress.overrides import Overrides
    from edgepipe.compress.pruning.masked_training import PruningRound
    from edgepipe.compress.pruning.pruner import Pruner
    from edgepipe.compress.pruning.saliency_loss import Objective
    from edgepipe.stages.prune.prune_options import PruneLayerOptions, PruneOptions


@dataclass(frozen=True)
class Trained:
    """What is told of the training, and whether pruning came to its target."""

    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    reached: bool


def overrides(options: "PruneOptions") -> "Overrides[PruneLayerOptions]":
    """The options for some layers only."""
    from edgepipe.compress.overrides import Overrides

    return Overrides(options.types, options.layers)


def own_share(options: "PruneOptions", layer: Any) -> float | None:
    """The share that the options give to `layer` alone."""
    given = [option.sparsity for option in overrides(options).for_layer(layer) if option is not None]
    return next((share for share in reversed(given) if share is not None), None)


def objective(options: "PruneOptions", context: StageContext, model: Any) -> "Objective | None":
    """The loss that saliency asks about, if it does."""
    from edgepipe.compress.pruning.saliency_loss import build_objective

    if not options.settings().needs_data:
        return None
    return build_objective(model, context.task, context.data.train, options.saliency_samples, context.seed)


def steps(options: "PruneOptions", context: StageContext) -> int:
    """Optimizer steps of one training: over the samples that are trained on, the normal ones of a reconstruction."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_setup import targets

    return options.fit_schedule(context).steps(count_samples(targets(context.task, context.data.train)[0]))


def train(options: "PruneOptions", context: StageContext, pruner: "Pruner", model: Any) -> Trained:
    """Prune `model` in place while it trains."""
    from edgepipe.compress.pruning.masked_training import prune_gradually, prune_iteratively
    from edgepipe.training.batch_norms import refresh_batch_norms
    from edgepipe.training.training_loop import evaluate, fit

    lesson, schedule = options.training_setup(context), options.fit_schedule(context)

    def once(callbacks: list[Any]) -> None:
        fit(model, lesson, schedule, context.progress.epoch, callbacks)
        refresh_batch_norms(model, lesson.train.x, context.seed)

    def quality() -> float:
        return evaluate(model, context.task, lesson.validation)[context.task.primary_measure]

    when = options.when(pruner.final_share)
    if when.name != "iterative":
        prune_gradually(pruner, when, steps(options, context), once)
        return Trained((*pruner.notes, *lesson.notes, *averaged(model)), (), reached=True)
    limit = _Limit.of(options, context, quality())
    found = prune_iteratively(pruner, when.rounds, once, quality, limit.holds, model)
    return Trained(
        (*pruner.notes, *lesson.notes, *averaged(model), _ending(found, limit)),
        (_table(found, pruner, limit),),
        found[-1].is_acceptable,
    )


def averaged(model: Any) -> list[str]:
    """What was done to the batch norms of `model` after each training."""
    from edgepipe.training.batch_norms import REFRESH_SAMPLES, trainable_norms

    number = len(trainable_norms(model))
    told = f"moving statistics of {number} batch norms averaged anew over up to {REFRESH_SAMPLES} training samples"
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
    def of(cls, options: "PruneOptions", context: StageContext, start: float) -> "_Limit":
        measure = context.task.measures[context.task.primary_measure]
        sign = 1 if measure.higher_is_better else -1
        bounds = [options.min_quality] if options.min_quality is not None else []
        if options.max_drop is not None:
            bounds.append(start - sign * options.max_drop)
        bound = (max(bounds) if sign > 0 else min(bounds)) if bounds else None
        return cls(context.task.primary_measure, measure.unit, measure.higher_is_better, start, bound)

    def holds(self, value: float) -> bool:
        """Whether `value` is good enough; half a millionth is a rounding error."""
        if self.bound is None:
            return True
        return value >= self.bound - 5e-7 if self.higher else value <= self.bound + 5e-7

    def show(self, value: float) -> str:
        """`value` in its unit."""
        return show(value, self.unit)


def _ending(found: "list[PruningRound]", limit: _Limit) -> str:
    last = found[-1]
    if last.is_acceptable:
        return f"reached the target in {last.number} rounds"
    bound = limit.show(limit.bound or 0.0)
    kept = f"round {last.number - 1}" if last.number > 1 else "the model as it came, nothing pruned"
    return (
        f"stopped in round {last.number}: validation {limit.name} {limit.show(last.quality)} after training, the limit "
        f"is {bound}; kept {kept}"
    )


def _table(found: "list[PruningRound]", pruner: "Pruner", limit: _Limit) -> Table:
    rows = [
        (
            entry.number,
            f"{entry.progress * pruner.final_share:.2%}",
            limit.show(entry.quality),
            "yes" if entry.is_acceptable else "no",
        )
        for entry in found
    ]
    return Table(
        title="Rounds of pruning",
        columns=("round", "gone", f"validation {limit.name}", "good enough"),
        rows=((0, "0.00%", limit.show(limit.start), "yes"), *rows),
    )
