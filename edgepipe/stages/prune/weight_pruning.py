"""What `prune` does when zeros go into kernels: single weights, blocks, n of m."""

from typing import TYPE_CHECKING, Any

from edgepipe.core.artifact import Artifact
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.prune import pruning_loop
from edgepipe.stages.prune.pruning_loop import Trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.compress.pruning.prunable_kernels import PrunableKernels
    from edgepipe.compress.pruning.weight_pool import KernelSparsity, WeightPool
    from edgepipe.stages.prune.prune_options import PruneOptions

SHARES = 1_000_000  # steps between 0 and 1 in which a share for a number of parameters is looked for
COLLAPSED = 0.01  # share of a kernel below which what it keeps is told


def run(options: "PruneOptions", context: StageContext) -> tuple[Artifact, Outcome]:
    """Prune and train; the zeros of every kernel are counted afterwards."""
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.compress.pruning.prunable_kernels import find_prunable_kernels

    model, notes = model_io.open_float(context)
    found, pool = _pool(
        options, find_prunable_kernels(model, pruning_loop.overrides(options), options.exclude_last), model.name
    )
    share = _share(options, model, pool)
    if tfmot_pruning.supports(model, pool, options.settings(), options.when(share)):
        model, trained = _by_tfmot(options, context, model, pool, share)
    else:
        trained = _by_edgepipe(options, context, model, pool, share)
    layers = _measured(model, found, pool, share if trained.reached else 0.0)
    artifact = model_io.write_float(model, context.output_folder)
    metrics = (*model_metrics.keras_metrics(model, artifact, context), _sparsity(layers))
    return artifact, Outcome(
        metrics=metrics,
        findings=_missed(options, context, metrics) if trained.reached else (),
        notes=(*notes, *trained.notes, *_collapsed(layers)),
        tables=(_table(layers, options), *trained.tables),
    )


def _pool(options: "PruneOptions", found: "PrunableKernels", model: str) -> "tuple[PrunableKernels, WeightPool]":
    """The kernels that can be pruned in the shape that is asked for; the others are left alone with the reason."""
    from edgepipe.compress.pruning.granularity import parse_granularity
    from edgepipe.compress.pruning.weight_pool import WeightPool

    granularity = parse_granularity(options.granularity)
    refused = {kernel.name: granularity.refusal_reason(kernel) for kernel in found.kernels}
    found = found.without({name: reason for name, reason in refused.items() if reason}, model)
    own = {kernel.name: pruning_loop.own_share(options, kernel.layer) for kernel in found.kernels}
    shares = {name: share for name, share in own.items() if share is not None}
    return found, WeightPool(found.kernels, granularity, options.distribution or "uniform", shares)  # type: ignore[arg-type]


def _share(options: "PruneOptions", model: Any, pool: "WeightPool") -> float:
    """The share of units that goes: as given, or what leaves the target's number of parameters."""
    if ":" in options.granularity:
        return 1.0
    if options.target is None:
        return options.share
    wanted = options.target.parameters or 0.0
    total = sum(int(weight.shape.num_elements()) for weight in model.weights)
    others = total - sum(kernel.size for kernel in pool.kernels)
    if others + pool.count_remaining(1.0) > wanted:
        raise InputError(
            f"a target of {wanted:,.0f} parameters cannot be met: {others:,} of the {total:,} weights of "
            f"'{model.name}' are not pruned, and {pool.count_remaining(1.0):,} of the others stay, at least one unit of a kernel"
        )
    return _least_share(lambda share: others + pool.count_remaining(share) <= wanted)


def _least_share(enough: "Callable[[float], bool]") -> float:
    """The least share, to a millionth, that is `enough`; more is always enough, too."""
    low, high = 0, SHARES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle / SHARES) else (middle + 1, high)
    return high / SHARES


def _by_tfmot(
    options: "PruneOptions", context: StageContext, model: Any, pool: "WeightPool", share: float
) -> tuple[Any, Trained]:
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.training.batch_norms import refresh_batch_norms
    from edgepipe.training.training_loop import fit

    lesson, schedule = options.training_setup(context), options.fit_schedule(context)
    wrapped = tfmot_pruning.wrap(model, pool, share, options.when(share), pruning_loop.steps(options, context))
    fit(wrapped, lesson, schedule, context.progress.epoch, tfmot_pruning.callbacks())
    stripped = tfmot_pruning.strip(wrapped)
    refresh_batch_norms(stripped, lesson.train.x, context.seed)
    told = ("masks by tfmot's prune_low_magnitude", *lesson.notes, *pruning_loop.averaged(stripped))
    return stripped, Trained(told, (), reached=True)


def _by_edgepipe(
    options: "PruneOptions", context: StageContext, model: Any, pool: "WeightPool", share: float
) -> Trained:
    from edgepipe.compress.pruning.pruner import KernelPruner

    pruner = KernelPruner.from_settings(
        pool, share, options.settings(), pruning_loop.objective(options, context, model), context.seed
    )
    return pruning_loop.train(options, context, pruner, model)


def _measured(model: Any, found: "PrunableKernels", pool: "WeightPool", share: float) -> "list[KernelSparsity]":
    from edgepipe.compress.pruning.weight_pool import check_sparsity, measure_sparsity

    layers = measure_sparsity(model, found)
    check_sparsity(layers, pool, share)
    return layers


def _missed(options: "PruneOptions", context: StageContext, metrics: tuple[Metric, ...]) -> tuple[Finding, ...]:
    """A target in parameters that the trained model is over after all."""
    left = next((metric.value for metric in metrics if metric.name == "nonzero_parameters"), None)
    if options.target is None or left is None or left <= (options.target.parameters or 0.0):
        return ()
    told = f"the target of parameters <= {options.target.parameters:,.0f}: {left:,.0f} weights are not zero"
    return (
        Finding(rule="prune-target", place=context.stage_name, observed=told, suggestion="prune with a lower target"),
    )


def _collapsed(layers: "list[KernelSparsity]") -> list[str]:
    """Kernels of which next to nothing is left, as a ranking over all kernels may leave them."""
    return [
        f"kernel '{layer.name}' keeps {layer.elements - layer.zeros} of {layer.elements} weights: little passes it"
        for layer in layers
        if not layer.exclusion_reason and layer.elements - layer.zeros < COLLAPSED * layer.elements
    ]


def _sparsity(layers: "list[KernelSparsity]") -> Metric:
    pruned = [layer for layer in layers if not layer.exclusion_reason]
    share = sum(layer.zeros for layer in pruned) / sum(layer.elements for layer in pruned)
    names = ", ".join(layer.name for layer in layers if layer.exclusion_reason) or "none"
    how = f"exact zeros in {len(pruned)} pruned kernels; left alone: {names}"
    return exact_metric("sparsity", share, Dimension.FRACTION, how)


def _table(layers: "list[KernelSparsity]", options: "PruneOptions") -> Table:
    rows = tuple(
        (
            layer.name,
            layer.kind,
            layer.elements,
            layer.zeros,
            f"{layer.zeros / layer.elements:.2%}",
            layer.exclusion_reason,
        )
        for layer in layers
    )
    columns = ("layer", "kind", "weights", "zeros", "share", "left alone because")
    return Table(title=f"Zeros by layer, granularity {options.granularity}", columns=columns, rows=rows)
