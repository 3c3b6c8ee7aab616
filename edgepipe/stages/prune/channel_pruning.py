"""What `prune` does when channels go: the model that comes out is smaller on every device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from edgepipe.core.arrays import Array
from edgepipe.core.artifact import Artifact, write_bytes
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Finding, Metric, exact_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.data.splits import draw_representative
from edgepipe.devices import device_metrics, device_profile
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.prune import pruning_loop
from edgepipe.tflite.model import Model
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.pruning.channels.channel_groups import ChannelGroups
    from edgepipe.compress.pruning.channels.channel_pool import ChannelPool
    from edgepipe.compress.pruning.pruner import ChannelPruner
    from edgepipe.compress.pruning.pruning_target import PruningTarget
    from edgepipe.devices.device_profile import Device
    from edgepipe.stages.prune.prune_options import PruneOptions

CALIBRATING = 8  # samples of a conversion whose size or time alone is asked for


def run(options: "PruneOptions", context: StageContext) -> tuple[Artifact, Outcome]:
    """Prune, train, and give the smaller model."""
    model, notes = model_io.open_float(context)
    pruner = _pruner(options, context, model)
    trained = pruning_loop.train(options, context, pruner, model)
    smaller = pruner.shrunk_model
    artifact = model_io.write_float(smaller, context.output_folder)
    reached, findings = _held(options, pruner, smaller, context) if trained.reached else ([], [])
    metrics = (*model_metrics.keras_metrics(smaller, artifact, context), *reached, _removed(pruner))
    return artifact, Outcome(
        metrics=metrics,
        findings=tuple(findings),
        notes=(*notes, *trained.notes),
        tables=(_table(pruner.pool.groups, pruner.removed_groups), *trained.tables),
    )


def _pruner(options: "PruneOptions", context: StageContext, model: Any) -> "ChannelPruner":
    from edgepipe.compress.pruning.channels.channel_groups import find_channel_groups
    from edgepipe.compress.pruning.pruner import ChannelPruner, SaliencySampler
    from edgepipe.compress.pruning.saliency_loss import build_objective

    groups = find_channel_groups(model, pruning_loop.overrides(options))
    target, built = _target(options, context)
    everything = len(context.data.validation)
    validation = build_objective(model, context.task, context.data.validation, everything, context.seed)
    asking = SaliencySampler(options.settings(), pruning_loop.objective(options, context, model), context.seed)
    return ChannelPruner(
        model, _pool(options, groups, target, model, context), target, asking, validation.mean_loss, built
    )


def _pool(
    options: "PruneOptions", groups: "ChannelGroups", target: "PruningTarget", model: Any, context: StageContext
) -> "ChannelPool":
    from edgepipe.compress.pruning.channels.channel_pool import ChannelPool

    others = _macs(model, context) - groups.count_macs(groups.no_removal) if target.metric in ("macs", "latency") else 0
    own = _own(options, groups, model)
    asked = groups.groups_outside(set(own))
    costs: dict[str, Callable[[Array], float]] = {
        "sparsity": lambda gone: float(1 - gone[asked].mean()) if asked.any() else 0.0,
        "parameters": groups.count_parameters,
        "flash": groups.count_parameters,
        "macs": lambda gone: groups.count_macs(gone) + others,
        "latency": lambda gone: groups.count_macs(gone) + others,
    }
    orders = (options.distribution,) if options.distribution else ("uniform", "global", "per_mac")
    return ChannelPool(groups, costs[target.metric], orders, options.multiple_of, own)  # type: ignore[arg-type]


def _own(options: "PruneOptions", groups: "ChannelGroups", model: Any) -> dict[str, float]:
    """The shares that the options give to layers of which channels can go."""
    every = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    free = set(groups.roots.tolist())
    given = {
        layer.name: pruning_loop.own_share(options, every[layer.name])
        for layer in groups.layers
        if free.intersection(layer.roots.tolist())
    }
    return {name: share for name, share in given.items() if share is not None}


def _target(options: "PruneOptions", context: StageContext) -> "tuple[PruningTarget, Any]":
    """What is asked for, and how to tell what only a conversion can."""
    from edgepipe.compress.pruning.pruning_target import PruningTarget

    given = options.target
    if given is None:
        return PruningTarget("sparsity", options.share), None
    if given.flash is not None:
        return PruningTarget("flash", given.flash), lambda model: _size(model, context)
    if given.latency is not None:
        return PruningTarget("latency", given.latency), lambda model: _latency(model, context, str(given.device))
    if given.macs is not None:
        return PruningTarget("macs", given.macs), None
    return PruningTarget("parameters", given.parameters or 0.0), None


@contextmanager
def _converted(model: Any, context: StageContext, scheme: Literal["int8", "float32"]) -> Iterator[Model]:
    """The facts of `model` as a .tflite, which is kept only inside the block."""
    from edgepipe.compress.keras_to_tflite import convert

    path = context.output_folder / "candidate.tflite"
    samples = draw_representative(context.data.train, CALIBRATING, context.seed) if scheme == "int8" else None
    write_bytes(path, convert(model, scheme=scheme, samples=samples))
    try:
        yield read(path)
    finally:
        path.unlink()


def _size(model: Any, context: StageContext) -> float:
    with _converted(model, context, "int8") as lite:
        return float(lite.bytes)


def _macs(model: Any, context: StageContext) -> int:
    with _converted(model, context, "float32") as lite:
        return lite.macs


def _latency(model: Any, context: StageContext, device: str) -> float:
    """The seconds of one inference on `device`: the median, or what is simulated or estimated.

    Raises:
        InputError: the device could not tell.
    """
    return _on_device(model, context, device_profile.load(device, context.base_folder)).value or 0.0


def _on_device(model: Any, context: StageContext, device: "Device") -> Metric:
    with _converted(model, context, "int8") as lite:
        found = device_metrics.gather(lite, [device], cache=context.cache).metrics
    metric = next(metric for metric in found if metric.name == "latency")
    if metric.value is None:
        raise InputError(f"the latency on {device.name} is unavailable: {metric.how}")
    return metric


def _held(
    options: "PruneOptions", pruner: "ChannelPruner", smaller: Any, context: StageContext
) -> tuple[list[Metric], list[Finding]]:
    """What the target is counted in, of the trained model; a finding if it is over after all."""
    target = pruner.target
    if target.metric == "sparsity":
        return [], []
    if pruner.converted_cost is not None:
        value = pruner.converted_cost(smaller)
    else:
        value = float(_macs(smaller, context) if target.metric == "macs" else smaller.count_params())
    told = f"the target of {target.text()}: {target.show(value)} (it was {target.show(pruner.original_cost)})"
    over = Finding(rule="prune-target", place=context.stage_name, observed=told, suggestion="prune with a lower target")
    asked = options.target.device if options.target is not None else None
    device = device_profile.load(asked, context.base_folder) if asked is not None else None
    interval = None
    if device is not None and device.latency.evidence is Evidence.ESTIMATED:
        interval = _on_device(smaller, context, device).interval
    return [_reached(target, value, device, interval)], [over] if value > target.value else []


def _reached(
    target: "PruningTarget", value: float, device: "Device | None", interval: tuple[float, float] | None
) -> Metric:
    """The cost that the target is set in; a latency as `device` obtains it."""
    from edgepipe.compress.pruning.pruning_target import UNITS

    named = device.name if device is not None else ""
    how = {
        "parameters": "elements of all weights of the pruned Keras model",
        "macs": "multiply-accumulates of one inference of the pruned model as a float .tflite",
        "flash": f"bytes of the pruned model as an int8 .tflite, calibrated on {CALIBRATING} samples",
        "latency": f"of the pruned model on {named} as an int8 .tflite, calibrated on {CALIBRATING} samples",
    }[target.metric]
    obtained = device.latency.evidence if device is not None else Evidence.EXACT
    return Metric(
        name=f"pruned_{target.metric}", value=value, unit=UNITS[target.metric], evidence=obtained, how=how,
        interval=interval,
    )  # fmt: skip


def _removed(pruner: "ChannelPruner") -> Metric:
    gone, groups = pruner.removed_groups, pruner.pool.groups
    parameters = f"{groups.count_parameters(groups.no_removal):,} to {groups.count_parameters(gone):,}"
    how = f"{int(gone.sum())} of {len(gone)} groups of channels that can be removed; parameters {parameters}"
    return exact_metric("channels_removed", float(gone.mean()), Dimension.FRACTION, how)


def _table(groups: "ChannelGroups", gone: Any) -> Table:
    import numpy as np

    removed = groups.roots[gone]
    rows = tuple(
        (layer.name, layer.cls, len(layer.roots), int((~np.isin(layer.roots, removed)).sum()), layer.reason)
        for layer in groups.layers
    )
    return Table(
        title="Channels by layer", columns=("layer", "kind", "channels", "left", "keeps them because"), rows=rows
    )
