"""What `prune` does when zeros go into kernels: single weights, blocks, n of m."""

from typing import TYPE_CHECKING, Any

from edgepipe.core.artifact import Artifact
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.stages import model_metrics, pruning_loop
from edgepipe.stages.base import Work
from edgepipe.stages.pruning_loop import Trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgepipe.compress.pruning.prunable_kernels import Found
    from edgepipe.compress.pruning.weight_pool import LayerSparsity, Pool
    from edgepipe.stages.prune import Prune

SHARES = 1_000_000  # steps between 0 and 1 in which a share for a number of parameters is looked for
COLLAPSED = 0.01  # share of a kernel below which what it keeps is told


def run(prune: "Prune", work: Work) -> tuple[Artifact, Outcome]:
    """Prune and train; the zeros of every kernel are counted afterwards."""
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.compress.pruning.prunable_kernels import find

    model, notes = model_metrics.open_float(work)
    found, pool = _pool(prune, find(model, pruning_loop.overrides(prune), prune.exclude_last), model.name)
    share = _share(prune, model, pool)
    if tfmot_pruning.serves(model, pool, prune.settings(), prune.when(share)):
        model, trained = _by_tfmot(prune, work, model, pool, share)
    else:
        trained = _by_edgepipe(prune, work, model, pool, share)
    layers = _measured(model, found, pool, share if trained.reached else 0.0)
    artifact = model_metrics.write_float(model, work.folder)
    metrics = (*model_metrics.keras_evidence(model, artifact, work), _sparsity(layers))
    return artifact, Outcome(
        metrics=metrics,
        findings=_missed(prune, work, metrics) if trained.reached else (),
        notes=(*notes, *trained.notes, *_collapsed(layers)),
        tables=(_table(layers, prune), *trained.tables),
    )


def _pool(prune: "Prune", found: "Found", model: str) -> "tuple[Found, Pool]":
    """The kernels that can be pruned in the shape that is asked for; the others are left alone with the reason."""
    from edgepipe.compress.pruning.granularity import parse
    from edgepipe.compress.pruning.weight_pool import Pool

    granularity = parse(prune.granularity)
    refused = {kernel.name: granularity.refuses(kernel) for kernel in found.kernels}
    found = found.without({name: reason for name, reason in refused.items() if reason}, model)
    own = {kernel.name: pruning_loop.own_share(prune, kernel.layer) for kernel in found.kernels}
    shares = {name: share for name, share in own.items() if share is not None}
    return found, Pool(found.kernels, granularity, prune.distribution or "uniform", shares)  # type: ignore[arg-type]


def _share(prune: "Prune", model: Any, pool: "Pool") -> float:
    """The share of units that goes: as given, or what leaves the target's number of parameters."""
    if ":" in prune.granularity:
        return 1.0
    if prune.target is None:
        return prune.share
    wanted = prune.target.parameters or 0.0
    total = sum(int(weight.shape.num_elements()) for weight in model.weights)
    others = total - sum(kernel.size for kernel in pool.kernels)
    if others + pool.left(1.0) > wanted:
        raise InputError(
            f"a target of {wanted:,.0f} parameters cannot be met: {others:,} of the {total:,} weights of "
            f"'{model.name}' are not pruned, and {pool.left(1.0):,} of the others stay, at least one unit of a kernel"
        )
    return _least_share(lambda share: others + pool.left(share) <= wanted)


def _least_share(enough: "Callable[[float], bool]") -> float:
    """The least share, to a millionth, that is `enough`; more is always enough, too."""
    low, high = 0, SHARES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle / SHARES) else (middle + 1, high)
    return high / SHARES


def _by_tfmot(prune: "Prune", work: Work, model: Any, pool: "Pool", share: float) -> tuple[Any, Trained]:
    from edgepipe.compress.pruning import tfmot_pruning
    from edgepipe.training.batch_norms import refresh
    from edgepipe.training.training_loop import fit

    lesson, schedule = prune.lesson(work), prune.fit_schedule(work)
    wrapped = tfmot_pruning.wrap(model, pool, share, prune.when(share), pruning_loop.steps(prune, work))
    fit(wrapped, lesson, schedule, work.progress.epoch, tfmot_pruning.callbacks())
    stripped = tfmot_pruning.strip(wrapped)
    refresh(stripped, lesson.train.x, work.seed)
    told = ("masks by tfmot's prune_low_magnitude", *lesson.notes, *pruning_loop.averaged(stripped))
    return stripped, Trained(told, (), reached=True)


def _by_edgepipe(prune: "Prune", work: Work, model: Any, pool: "Pool", share: float) -> Trained:
    from edgepipe.compress.pruning.pruner import KernelPruner

    pruner = KernelPruner.of(pool, share, prune.settings(), pruning_loop.objective(prune, work, model), work.seed)
    return pruning_loop.train(prune, work, pruner, model)


def _measured(model: Any, found: "Found", pool: "Pool", share: float) -> "list[LayerSparsity]":
    from edgepipe.compress.pruning.weight_pool import check_reached, measure

    layers = measure(model, found)
    check_reached(layers, pool, share)
    return layers


def _missed(prune: "Prune", work: Work, metrics: tuple[Metric, ...]) -> tuple[Finding, ...]:
    """A target in parameters that the trained model is over after all."""
    left = next((metric.value for metric in metrics if metric.name == "nonzero_parameters"), None)
    if prune.target is None or left is None or left <= (prune.target.parameters or 0.0):
        return ()
    told = f"the target of parameters <= {prune.target.parameters:,.0f}: {left:,.0f} weights are not zero"
    return (Finding(rule="prune-target", place=work.name, observed=told, suggestion="prune with a lower target"),)


def _collapsed(layers: "list[LayerSparsity]") -> list[str]:
    """Kernels of which next to nothing is left, as a ranking over all kernels may leave them."""
    return [
        f"kernel '{layer.name}' keeps {layer.elements - layer.zeros} of {layer.elements} weights: little passes it"
        for layer in layers
        if not layer.left_alone and layer.elements - layer.zeros < COLLAPSED * layer.elements
    ]


def _sparsity(layers: "list[LayerSparsity]") -> Metric:
    pruned = [layer for layer in layers if not layer.left_alone]
    share = sum(layer.zeros for layer in pruned) / sum(layer.elements for layer in pruned)
    names = ", ".join(layer.name for layer in layers if layer.left_alone) or "none"
    how = f"exact zeros in {len(pruned)} pruned kernels; left alone: {names}"
    return model_metrics.exact("sparsity", share, Dimension.FRACTION, how)


def _table(layers: "list[LayerSparsity]", prune: "Prune") -> Table:
    rows = tuple(
        (layer.name, layer.kind, layer.elements, layer.zeros, f"{layer.zeros / layer.elements:.2%}", layer.left_alone)
        for layer in layers
    )
    columns = ("layer", "kind", "weights", "zeros", "share", "left alone because")
    return Table(title=f"Zeros by layer, granularity {prune.granularity}", columns=columns, rows=rows)
