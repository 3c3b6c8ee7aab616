"""Training while pruning: along a schedule, or in rounds that end when quality drops too far."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.core.outcome import Table
from edgepipe.core.units import plural, show
from edgepipe.stages.context import StageContext

if TYPE_CHECKING:
    from edgepipe.compress.overrides import Overrides
    from edgepipe.compress.pruning.masked_training import PruningRound
    from edgepipe.compress.pruning.pruner import Pruner
    from edgepipe.compress.pruning.saliency_loss import Objective
    from edgepipe.stages.prune.prune_options import PruneLayerOptions, PruneOptions


@dataclass(frozen=True)
class TrainingOutcome:
    """Notes and tables of the training, and whether pruning reached its target."""

    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    is_target_reached: bool


def layer_overrides(options: "PruneOptions") -> "Overrides[PruneLayerOptions]":
    """The options of single layers and layer classes."""
    from edgepipe.compress.overrides import Overrides

    return Overrides(options.types, options.layers)


def layer_share(options: "PruneOptions", layer: Any) -> float | None:
    """The fraction to remove that the options set for `layer`; None if they set none."""
    sparsities = [option.sparsity for option in layer_overrides(options).for_layer(layer) if option is not None]
    return next((share for share in reversed(sparsities) if share is not None), None)


def saliency_objective(options: "PruneOptions", context: StageContext, model: Any) -> "Objective | None":
    """The loss that saliency is computed from; None if the kind of saliency needs no data."""
    from edgepipe.compress.pruning.saliency_loss import build_objective

    if not options.saliency_settings().needs_data:
        return None
    return build_objective(model, context.task, context.data.train, options.saliency_samples, context.seed)


def count_steps(options: "PruneOptions", context: StageContext) -> int:
    """Optimizer steps of one training; of a reconstruction only the normal samples are trained on."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_setup import samples_and_targets

    return options.fit_schedule(context).total_steps(
        count_samples(samples_and_targets(context.task, context.data.train)[0])
    )


def train(options: "PruneOptions", context: StageContext, pruner: "Pruner", model: Any) -> TrainingOutcome:
    """Prune `model` in place while it trains.

    Args:
        options: of the stage.
        context: of the stage.
        pruner: chooses what to remove.
        model: the float tf_keras model.
    """
    from edgepipe.compress.pruning.masked_training import prune_gradually, prune_iteratively
    from edgepipe.training.batch_norms import refresh_batch_norms
    from edgepipe.training.training_loop import evaluate, fit

    setup, fit_schedule = options.training_setup(context), options.fit_schedule(context)

    def train_once(callbacks: list[Any]) -> None:
        fit(model, setup, fit_schedule, context.progress.epoch, callbacks)
        refresh_batch_norms(model, setup.train.x, context.seed)

    def measure_quality() -> float:
        return evaluate(model, context.task, setup.validation)[context.task.primary_measure]

    sparsity_schedule = options.sparsity_schedule(pruner.final_share)
    if sparsity_schedule.name != "iterative":
        prune_gradually(pruner, sparsity_schedule, count_steps(options, context), train_once)
        return TrainingOutcome((*pruner.notes, *setup.notes, *batch_norm_notes(model)), (), is_target_reached=True)
    quality_limit = QualityLimit.from_options(options, context, measure_quality())
    pruning_rounds = prune_iteratively(
        pruner, sparsity_schedule.round_count, train_once, measure_quality, quality_limit.is_met_by, model
    )
    return TrainingOutcome(
        (*pruner.notes, *setup.notes, *batch_norm_notes(model), _ending_note(pruning_rounds, quality_limit)),
        (_rounds_table(pruning_rounds, pruner, quality_limit),),
        pruning_rounds[-1].is_acceptable,
    )


def batch_norm_notes(model: Any) -> list[str]:
    """A note that the moving statistics of `model` were re-estimated after each training, if it has batch norms."""
    from edgepipe.training.batch_norms import REFRESH_SAMPLES, trainable_batch_norms

    norm_layers = trainable_batch_norms(model)
    note = f"moving statistics of {plural(len(norm_layers), 'batch norm')} re-estimated after training"
    return [f"{note}, on up to {REFRESH_SAMPLES} training samples"] if norm_layers else []


@dataclass(frozen=True)
class QualityLimit:
    """The validation quality that pruning must keep; without a `bound` any is good enough."""

    measure_name: str
    unit: Any
    higher_is_better: bool
    initial_quality: float
    bound: float | None

    @classmethod
    def from_options(cls, options: "PruneOptions", context: StageContext, initial_quality: float) -> "QualityLimit":
        measure = context.task.measures[context.task.primary_measure]
        sign = 1 if measure.higher_is_better else -1
        quality_bounds = [options.min_quality] if options.min_quality is not None else []
        if options.max_drop is not None:
            quality_bounds.append(initial_quality - sign * options.max_drop)
        bound = (max(quality_bounds) if sign > 0 else min(quality_bounds)) if quality_bounds else None
        return cls(context.task.primary_measure, measure.unit, measure.higher_is_better, initial_quality, bound)

    def is_met_by(self, quality: float) -> bool:
        """Whether `quality` is good enough; half a millionth is a rounding error."""
        if self.bound is None:
            return True
        return quality >= self.bound - 5e-7 if self.higher_is_better else quality <= self.bound + 5e-7

    def show(self, quality: float) -> str:
        """`quality` as text, with its unit."""
        return show(quality, self.unit)


def _ending_note(pruning_rounds: "list[PruningRound]", quality_limit: QualityLimit) -> str:
    last_round = pruning_rounds[-1]
    if last_round.is_acceptable:
        return f"reached the target in {plural(last_round.number, 'round')}"
    quality_text, bound_text = quality_limit.show(last_round.quality), quality_limit.show(quality_limit.bound or 0.0)
    kept_text = f"round {last_round.number - 1}" if last_round.number > 1 else "the original model, nothing pruned"
    return (
        f"stopped in round {last_round.number}: validation {quality_limit.measure_name} {quality_text} "
        f"after training, limit {bound_text}; kept {kept_text}"
    )


def _rounds_table(pruning_rounds: "list[PruningRound]", pruner: "Pruner", quality_limit: QualityLimit) -> Table:
    rows = [
        (
            pruning_round.number,
            f"{pruning_round.progress * pruner.final_share:.2%}",
            quality_limit.show(pruning_round.quality),
            "yes" if pruning_round.is_acceptable else "no",
        )
        for pruning_round in pruning_rounds
    ]
    return Table(
        title="Rounds of pruning",
        columns=("round", "removed", f"validation {quality_limit.measure_name}", "accepted"),
        rows=((0, "0.00%", quality_limit.show(quality_limit.initial_quality), "yes"), *rows),
    )
