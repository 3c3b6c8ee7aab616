"""`prune` with `granularity: channel`: whole channels are removed, so the model is smaller on every device."""

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

CALIBRATION_SAMPLES = 8  # for conversions that only serve to measure size or latency


def run(options: "PruneOptions", context: StageContext) -> tuple[Artifact, Outcome]:
    """Prune, train, and return the smaller model."""
    model, notes = model_io.open_float(context)
    pruner = _build_pruner(options, context, model)
    training = pruning_loop.train(options, context, pruner, model)
    shrunk_model = pruner.shrunk_model
    artifact = model_io.write_float(shrunk_model, context.output_folder)
    target_metrics, findings = (
        _check_target(options, pruner, shrunk_model, context) if training.is_target_reached else ([], [])
    )
    metrics = (*model_metrics.keras_metrics(shrunk_model, artifact, context), *target_metrics, _removed_metric(pruner))
    return artifact, Outcome(
        metrics=metrics,
        findings=tuple(findings),
        notes=(*notes, *training.notes),
        tables=(_channels_table(pruner.pool.groups, pruner.removed_groups), *training.tables),
    )


def _build_pruner(options: "PruneOptions", context: StageContext, model: Any) -> "ChannelPruner":
    from edgepipe.compress.pruning.channels.channel_groups import find_channel_groups
    from edgepipe.compress.pruning.pruner import ChannelPruner, SaliencySampler
    from edgepipe.compress.pruning.saliency_loss import build_objective

    groups = find_channel_groups(model, pruning_loop.overrides(options))
    target, converted_cost = _build_target(options, context)
    pool = _build_pool(options, groups, target, model, context)
    sample_count = len(context.data.validation)
    validation = build_objective(model, context.task, context.data.validation, sample_count, context.seed)
    objective = pruning_loop.saliency_objective(options, context, model)
    sampler = SaliencySampler(options.saliency_settings(), objective, context.seed)
    return ChannelPruner(model, pool, target, sampler, validation.mean_loss, converted_cost)


def _build_pool(
    options: "PruneOptions", groups: "ChannelGroups", target: "PruningTarget", model: Any, context: StageContext
) -> "ChannelPool":
    from edgepipe.compress.pruning.channels.channel_pool import ChannelPool

    other_macs = 0
    if target.metric in ("macs", "latency"):
        other_macs = _count_macs(model, context) - groups.count_macs(groups.no_removal)
    share_by_layer = _layer_shares(options, groups, model)
    free_groups = groups.groups_outside(set(share_by_layer))
    costs: dict[str, Callable[[Array], float]] = {
        "sparsity": lambda mask: float(1 - mask[free_groups].mean()) if free_groups.any() else 0.0,
        "parameters": groups.count_parameters,
        "flash": groups.count_parameters,
        "macs": lambda mask: groups.count_macs(mask) + other_macs,
        "latency": lambda mask: groups.count_macs(mask) + other_macs,
    }
    orders = (options.distribution,) if options.distribution else ("uniform", "global", "per_mac")
    return ChannelPool(groups, costs[target.metric], orders, options.multiple_of, share_by_layer)  # type: ignore[arg-type]


def _layer_shares(options: "PruneOptions", groups: "ChannelGroups", model: Any) -> dict[str, float]:
    """The shares that the options give to single layers, where channels of them can be removed."""
    layer_by_name = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    removable_roots = set(groups.roots.tolist())
    share_by_layer = {
        layer.name: pruning_loop.layer_share(options, layer_by_name[layer.name])
        for layer in groups.layers
        if removable_roots.intersection(layer.roots.tolist())
    }
    return {name: share for name, share in share_by_layer.items() if share is not None}


def _build_target(options: "PruneOptions", context: StageContext) -> "tuple[PruningTarget, Any]":
    """The target, and the function that measures its cost where that takes a conversion, else None."""
    from edgepipe.compress.pruning.pruning_target import PruningTarget

    target_options = options.target
    if target_options is None:
        return PruningTarget("sparsity", options.share), None
    if target_options.flash is not None:
        return PruningTarget("flash", target_options.flash), lambda model: _tflite_size(model, context)
    if target_options.latency is not None:
        device = str(target_options.device)
        return PruningTarget("latency", target_options.latency), lambda model: _latency_seconds(model, context, device)
    if target_options.macs is not None:
        return PruningTarget("macs", target_options.macs), None
    return PruningTarget("parameters", target_options.parameters or 0.0), None


@contextmanager
def _temporary_tflite(model: Any, context: StageContext, scheme: Literal["int8", "float32"]) -> Iterator[Model]:
    """`model` as a .tflite, whose file exists only inside the block."""
    from edgepipe.compress.keras_to_tflite import convert

    path = context.output_folder / "candidate.tflite"
    samples = draw_representative(context.data.train, CALIBRATION_SAMPLES, context.seed) if scheme == "int8" else None
    write_bytes(path, convert(model, scheme=scheme, samples=samples))
    try:
        yield read(path)
    finally:
        path.unlink()


def _tflite_size(model: Any, context: StageContext) -> float:
    with _temporary_tflite(model, context, "int8") as lite:
        return float(lite.bytes)


def _count_macs(model: Any, context: StageContext) -> int:
    with _temporary_tflite(model, context, "float32") as lite:
        return lite.macs


def _latency_seconds(model: Any, context: StageContext, device: str) -> float:
    """The seconds of one inference on `device`: the measured median, or simulated or estimated.

    Raises:
        InputError: the latency on the device is unavailable.
    """
    return _latency_metric(model, context, device_profile.load(device, context.base_folder)).value or 0.0


def _latency_metric(model: Any, context: StageContext, device: "Device") -> Metric:
    with _temporary_tflite(model, context, "int8") as lite:
        metrics = device_metrics.gather(lite, [device], cache=context.cache).metrics
    metric = next(metric for metric in metrics if metric.name == "latency")
    if metric.value is None:
        raise InputError(f"the latency on {device.name} is unavailable: {metric.how}")
    return metric


def _check_target(
    options: "PruneOptions", pruner: "ChannelPruner", shrunk_model: Any, context: StageContext
) -> tuple[list[Metric], list[Finding]]:
    """The target's metric, measured on the trained model, and a finding if it is over the target."""
    target = pruner.target
    if target.metric == "sparsity":
        return [], []
    if pruner.converted_cost is not None:
        cost = pruner.converted_cost(shrunk_model)
    else:
        cost = float(_count_macs(shrunk_model, context) if target.metric == "macs" else shrunk_model.count_params())
    observation = f"the target of {target.text()}: {target.show(cost)} (it was {target.show(pruner.original_cost)})"
    finding = Finding(
        rule="prune-target", place=context.stage_name, observed=observation, suggestion="prune with a lower target"
    )
    device_name = options.target.device if options.target is not None else None
    device = device_profile.load(device_name, context.base_folder) if device_name is not None else None
    interval = None
    if device is not None and device.latency.evidence is Evidence.ESTIMATED:
        interval = _latency_metric(shrunk_model, context, device).interval
    return [_target_metric(target, cost, device, interval)], [finding] if cost > target.value else []


def _target_metric(
    target: "PruningTarget", cost: float, device: "Device | None", interval: tuple[float, float] | None
) -> Metric:
    """The cost that the target limits, as a metric; a latency has the evidence of `device`."""
    from edgepipe.compress.pruning.pruning_target import UNITS

    device_name = device.name if device is not None else ""
    int8_model = f"as an int8 .tflite, calibrated on {CALIBRATION_SAMPLES} samples"
    provenance = {
        "parameters": "elements of all weights of the pruned Keras model",
        "macs": "multiply-accumulates of one inference of the pruned model as a float .tflite",
        "flash": f"bytes of the pruned model {int8_model}",
        "latency": f"of the pruned model on {device_name} {int8_model}",
    }[target.metric]
    evidence = device.latency.evidence if device is not None else Evidence.EXACT
    return Metric(
        name=f"pruned_{target.metric}", value=cost, unit=UNITS[target.metric], evidence=evidence, how=provenance,
        interval=interval,
    )  # fmt: skip


def _removed_metric(pruner: "ChannelPruner") -> Metric:
    removed_groups, groups = pruner.removed_groups, pruner.pool.groups
    parameters = f"{groups.count_parameters(groups.no_removal):,} to {groups.count_parameters(removed_groups):,}"
    count_text = f"{int(removed_groups.sum())} of {len(removed_groups)} removable groups of channels"
    provenance = f"{count_text}; parameters {parameters}"
    return exact_metric("channels_removed", float(removed_groups.mean()), Dimension.FRACTION, provenance)


def _channels_table(groups: "ChannelGroups", removed_groups: Any) -> Table:
    import numpy as np

    removed_roots = groups.roots[removed_groups]
    rows = tuple(
        (layer.name, layer.cls, len(layer.roots), int((~np.isin(layer.roots, removed_roots)).sum()), layer.reason)
        for layer in groups.layers
    )
    columns = ("layer", "kind", "channels", "kept", "reason")
    return Table(title="Channels by layer", columns=columns, rows=rows)
