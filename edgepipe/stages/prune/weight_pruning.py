"""`prune` with zeros inside kernels: single weights, blocks, N:M."""

from typing import TYPE_CHECKING, Any

from edgepipe.core.artifact import Artifact
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.prune import pruning_loop
from edgepipe.stages.prune.pruning_loop import TrainingOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.compress.pruning.prunable_kernels import PrunableKernels
    from edgepipe.compress.pruning.weight_pool import KernelSparsity, WeightPool
    from edgepipe.stages.prune.prune_options import PruneOptions

SHARE_STEPS = 1_000_000  # resolution of the share that is searched for a target in parameters
COLLAPSED_SHARE = 0.01  # a kernel that keeps less of its weights is noted


def run(options: "PruneOptions", context: StageContext) -> tuple[Artifact, Outcome]:
    """Prune and train, then count the zeros of every kernel."""
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.compress.pruning.prunable_kernels import find_prunable_kernels

    model, notes = model_io.open_float(context)
    prunable_kernels, weight_pool = _build_pool(
        options, find_prunable_kernels(model, pruning_loop.layer_overrides(options), options.exclude_last), model.name
    )
    removed_share = _removed_share(options, model, weight_pool)
    if tfmot_pruning.supports(
        model, weight_pool, options.saliency_settings(), options.sparsity_schedule(removed_share)
    ):
        model, training_outcome = _train_with_tfmot(options, context, model, weight_pool, removed_share)
    else:
        training_outcome = _train_with_edgepipe(options, context, model, weight_pool, removed_share)
    kernel_sparsities = _measure_layers(
        model, prunable_kernels, weight_pool, removed_share if training_outcome.is_target_reached else 0.0
    )
    artifact = model_io.write_float(model, context.output_folder)
    metrics = (*model_metrics.keras_metrics(model, artifact, context), _sparsity_metric(kernel_sparsities))
    return artifact, Outcome(
        metrics=metrics,
        findings=_target_findings(options, context, metrics) if training_outcome.is_target_reached else (),
        notes=(*notes, *training_outcome.notes, *_collapse_notes(kernel_sparsities)),
        tables=(_zeros_table(kernel_sparsities, options), *training_outcome.tables),
    )


def _build_pool(
    options: "PruneOptions", prunable_kernels: "PrunableKernels", model_name: str
) -> "tuple[PrunableKernels, WeightPool]":
    """The kernels that can be pruned at the granularity of the options; the others are excluded with the reason."""
    from edgepipe.compress.pruning.granularity import parse_granularity
    from edgepipe.compress.pruning.weight_pool import WeightPool

    granularity = parse_granularity(options.granularity)
    refusal_by_kernel = {kernel.name: granularity.refusal_reason(kernel) for kernel in prunable_kernels.kernels}
    prunable_kernels = prunable_kernels.exclude_refused(
        {name: reason for name, reason in refusal_by_kernel.items() if reason}, model_name
    )
    optional_share_by_kernel = {
        kernel.name: pruning_loop.layer_share(options, kernel.layer) for kernel in prunable_kernels.kernels
    }
    share_by_kernel = {name: share for name, share in optional_share_by_kernel.items() if share is not None}
    distribution: Any = options.distribution or "uniform"  # `per_mac` is for channels only, as the options check
    return prunable_kernels, WeightPool(prunable_kernels.kernels, granularity, distribution, share_by_kernel)


def _removed_share(options: "PruneOptions", model: Any, weight_pool: "WeightPool") -> float:
    """The share of units to remove: as the options set it, or as it leaves the target's number of parameters."""
    if ":" in options.granularity:
        return 1.0
    if options.target is None:
        return options.removed_share
    max_parameters = options.target.parameters or 0.0
    weight_count = sum(int(weight.shape.num_elements()) for weight in model.weights)
    unpruned_count = weight_count - sum(kernel.size for kernel in weight_pool.kernels)
    min_remaining = weight_pool.count_remaining_weights(1.0)
    if unpruned_count + min_remaining > max_parameters:
        raise InputError(
            f"a target of {max_parameters:,.0f} parameters cannot be met: {unpruned_count:,} of the {weight_count:,} "
            f"weights of '{model.name}' are not pruned, and {min_remaining:,} of the others must stay, at least one "
            "unit per kernel"
        )
    return _least_share(lambda share: unpruned_count + weight_pool.count_remaining_weights(share) <= max_parameters)


def _least_share(is_enough: "Callable[[float], bool]") -> float:
    """The smallest share, to a millionth, that is enough; any larger share is enough too."""
    low, high = 0, SHARE_STEPS
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle / SHARE_STEPS) else (middle + 1, high)
    return high / SHARE_STEPS


def _train_with_tfmot(
    options: "PruneOptions", context: StageContext, model: Any, weight_pool: "WeightPool", removed_share: float
) -> tuple[Any, TrainingOutcome]:
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.training.batch_norms import refresh_batch_norms
    from edgepipe.training.training_loop import fit

    setup, fit_schedule = options.training_setup(context), options.fit_schedule(context)
    wrapped_model = tfmot_pruning.wrap(
        model,
        weight_pool,
        removed_share,
        options.sparsity_schedule(removed_share),
        pruning_loop.count_steps(options, context),
    )
    fit(wrapped_model, setup, fit_schedule, context.progress.epoch, tfmot_pruning.callbacks())
    stripped_model = tfmot_pruning.strip(wrapped_model)
    refresh_batch_norms(stripped_model, setup.train.x, context.seed)
    notes = ("masks by tfmot's prune_low_magnitude", *setup.notes, *pruning_loop.batch_norm_notes(stripped_model))
    return stripped_model, TrainingOutcome(notes, (), is_target_reached=True)


def _train_with_edgepipe(
    options: "PruneOptions", context: StageContext, model: Any, weight_pool: "WeightPool", removed_share: float
) -> TrainingOutcome:
    from edgepipe.compress.pruning.pruner import KernelPruner

    pruner = KernelPruner.from_settings(
        weight_pool,
        removed_share,
        options.saliency_settings(),
        pruning_loop.saliency_objective(options, context, model),
        context.seed,
    )
    return pruning_loop.train(options, context, pruner, model)


def _measure_layers(
    model: Any, prunable_kernels: "PrunableKernels", weight_pool: "WeightPool", removed_share: float
) -> "list[KernelSparsity]":
    from edgepipe.compress.pruning.weight_pool import check_sparsity, measure_sparsity

    kernel_sparsities = measure_sparsity(model, prunable_kernels)
    check_sparsity(kernel_sparsities, weight_pool, removed_share)
    return kernel_sparsities


def _target_findings(
    options: "PruneOptions", context: StageContext, metrics: tuple[Metric, ...]
) -> tuple[Finding, ...]:
    """A finding if the trained model has more parameters than the target."""
    nonzero_count = next((metric.value for metric in metrics if metric.name == "nonzero_parameters"), None)
    if options.target is None or nonzero_count is None or nonzero_count <= (options.target.parameters or 0.0):
        return ()
    observation = (
        f"the target of parameters <= {options.target.parameters:,.0f}: {nonzero_count:,.0f} weights are not zero"
    )
    return (
        Finding(
            rule="prune-target", place=context.stage_name, observed=observation, suggestion="prune with a lower target"
        ),
    )


def _collapse_notes(kernel_sparsities: "list[KernelSparsity]") -> list[str]:
    """A note on each kernel that keeps almost no weights, as may happen with one ranking over all kernels."""
    return [
        f"kernel '{layer.name}' keeps only {layer.elements - layer.zeros} of {layer.elements} weights"
        for layer in kernel_sparsities
        if not layer.exclusion_reason and layer.elements - layer.zeros < COLLAPSED_SHARE * layer.elements
    ]


def _sparsity_metric(kernel_sparsities: "list[KernelSparsity]") -> Metric:
    pruned_kernels = [layer for layer in kernel_sparsities if not layer.exclusion_reason]
    zero_share = sum(layer.zeros for layer in pruned_kernels) / sum(layer.elements for layer in pruned_kernels)
    excluded_names = ", ".join(layer.name for layer in kernel_sparsities if layer.exclusion_reason) or "none"
    provenance = f"exact zeros in {len(pruned_kernels)} pruned kernels; excluded: {excluded_names}"
    return exact_metric("sparsity", zero_share, Dimension.FRACTION, provenance)


def _zeros_table(kernel_sparsities: "list[KernelSparsity]", options: "PruneOptions") -> Table:
    rows = tuple(
        (
            layer.name,
            layer.kind,
            layer.elements,
            layer.zeros,
            f"{layer.zeros / layer.elements:.2%}",
            layer.exclusion_reason,
        )
        for layer in kernel_sparsities
    )
    columns = ("layer", "kind", "weights", "zeros", "share", "reason")
    return Table(title=f"Zeros by layer, granularity {options.granularity}", columns=columns, rows=rows)
