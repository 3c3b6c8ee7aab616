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

CALIBRATION_SAMPLE_COUNT = 8  # for conversions that only serve to measure size or latency


def run(options: "PruneOptions", context: StageContext) -> tuple[Artifact, Outcome]:
    """Prune, train, and return the smaller model."""
    model, notes = model_io.open_float(context)
    pruner = _build_pruner(options, context, model)
    training_outcome = pruning_loop.train(options, context, pruner, model)
    shrunk_model = pruner.shrunk_model
    artifact = model_io.write_float(shrunk_model, context.output_folder)
    target_metrics, findings = (
        _check_target(options, pruner, shrunk_model, context) if training_outcome.is_target_reached else ([], [])
    )
    metrics = (*model_metrics.keras_metrics(shrunk_model, artifact, context), *target_metrics, _removed_metric(pruner))
    return artifact, Outcome(
        metrics=metrics,
        findings=tuple(findings),
        notes=(*notes, *training_outcome.notes),
        tables=(_channels_table(pruner.pool.channel_groups, pruner.removed_group_mask), *training_outcome.tables),
    )


def _build_pruner(options: "PruneOptions", context: StageContext, model: Any) -> "ChannelPruner":
    from edgepipe.compress.pruning.channels.channel_groups import find_channel_groups
    from edgepipe.compress.pruning.pruner import ChannelPruner, SaliencySampler
    from edgepipe.compress.pruning.saliency_loss import build_objective

    channel_groups = find_channel_groups(model, pruning_loop.layer_overrides(options))
    pruning_target, converted_cost = _build_target(options, context)
    channel_pool = _build_pool(options, channel_groups, pruning_target, model, context)
    sample_count = len(context.data.validation)
    validation_objective = build_objective(model, context.task, context.data.validation, sample_count, context.seed)
    saliency_objective = pruning_loop.saliency_objective(options, context, model)
    sampler = SaliencySampler(options.saliency_settings(), saliency_objective, context.seed)
    return ChannelPruner(model, channel_pool, pruning_target, sampler, validation_objective.mean_loss, converted_cost)


def _build_pool(
    options: "PruneOptions",
    channel_groups: "ChannelGroups",
    pruning_target: "PruningTarget",
    model: Any,
    context: StageContext,
) -> "ChannelPool":
    from edgepipe.compress.pruning.channels.channel_pool import ChannelPool

    other_macs = 0
    if pruning_target.metric_name in ("macs", "latency"):
        other_macs = _count_macs(model, context) - channel_groups.count_macs(channel_groups.empty_removal_mask)
    share_by_layer = _layer_shares(options, channel_groups, model)
    free_group_mask = channel_groups.mask_groups_outside(set(share_by_layer))
    cost_function_by_metric: dict[str, Callable[[Array], float]] = {
        "sparsity": lambda mask: float(1 - mask[free_group_mask].mean()) if free_group_mask.any() else 0.0,
        "parameters": channel_groups.count_parameters,
        "flash": channel_groups.count_parameters,
        "macs": lambda mask: channel_groups.count_macs(mask) + other_macs,
        "latency": lambda mask: channel_groups.count_macs(mask) + other_macs,
    }
    distributions = (options.distribution,) if options.distribution else ("uniform", "global", "per_mac")
    return ChannelPool(
        channel_groups,
        cost_function_by_metric[pruning_target.metric_name],
        distributions,  # type: ignore[arg-type]
        options.multiple_of,
        share_by_layer,
    )


def _layer_shares(options: "PruneOptions", channel_groups: "ChannelGroups", model: Any) -> dict[str, float]:
    """The shares that the options give to single layers, where channels of them can be removed."""
    layer_by_name = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    removable_roots = set(channel_groups.removable_roots.tolist())
    share_by_layer = {
        layer.name: pruning_loop.layer_share(options, layer_by_name[layer.name])
        for layer in channel_groups.channel_layers
        if removable_roots.intersection(layer.root_labels.tolist())
    }
    return {name: share for name, share in share_by_layer.items() if share is not None}


def _build_target(options: "PruneOptions", context: StageContext) -> "tuple[PruningTarget, Any]":
    """The target, and the function that measures its cost where that takes a conversion, else None."""
    from edgepipe.compress.pruning.pruning_target import PruningTarget

    target_options = options.target
    if target_options is None:
        return PruningTarget("sparsity", options.removed_share), None
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
    samples = (
        draw_representative(context.data.train, CALIBRATION_SAMPLE_COUNT, context.seed) if scheme == "int8" else None
    )
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


def _latency_seconds(model: Any, context: StageContext, device_name: str) -> float:
    """The seconds of one inference on `device`: the measured median, or simulated or estimated.

    Raises:
        InputError: the latency on the device is unavailable.
    """
    return _latency_metric(model, context, device_profile.load(device_name, context.base_folder)).value or 0.0


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
    pruning_target = pruner.target
    if pruning_target.metric_name == "sparsity":
        return [], []
    if pruner.measure_converted_cost is not None:
        target_cost = pruner.measure_converted_cost(shrunk_model)
    else:
        target_cost = float(
            _count_macs(shrunk_model, context) if pruning_target.metric_name == "macs" else shrunk_model.count_params()
        )
    observation = (
        f"the target of {pruning_target.text()}: {pruning_target.show(target_cost)} "
        f"(it was {pruning_target.show(pruner.original_cost)})"
    )
    finding = Finding(
        rule="prune-target", place=context.stage_name, observed=observation, suggestion="prune with a lower target"
    )
    device_name = options.target.device if options.target is not None else None
    device = device_profile.load(device_name, context.base_folder) if device_name is not None else None
    interval = None
    if device is not None and device.latency.evidence is Evidence.ESTIMATED:
        interval = _latency_metric(shrunk_model, context, device).interval
    return [_target_metric(pruning_target, target_cost, device, interval)], [
        finding
    ] if target_cost > pruning_target.value else []


def _target_metric(
    pruning_target: "PruningTarget", target_cost: float, device: "Device | None", interval: tuple[float, float] | None
) -> Metric:
    """The cost that the target limits, as a metric; a latency has the evidence of `device`."""
    from edgepipe.compress.pruning.pruning_target import DIMENSION_BY_METRIC

    device_name = device.name if device is not None else ""
    int8_text = f"as an int8 .tflite, calibrated on {CALIBRATION_SAMPLE_COUNT} samples"
    provenance = {
        "parameters": "elements of all weights of the pruned Keras model",
        "macs": "multiply-accumulates of one inference of the pruned model as a float .tflite",
        "flash": f"bytes of the pruned model {int8_text}",
        "latency": f"of the pruned model on {device_name} {int8_text}",
    }[pruning_target.metric_name]
    evidence = device.latency.evidence if device is not None else Evidence.EXACT
    return Metric(
        name=f"pruned_{pruning_target.metric_name}", value=target_cost,
        unit=DIMENSION_BY_METRIC[pruning_target.metric_name], evidence=evidence, how=provenance, interval=interval,
    )  # fmt: skip


def _removed_metric(pruner: "ChannelPruner") -> Metric:
    removed_mask, channel_groups = pruner.removed_group_mask, pruner.pool.channel_groups
    original_parameters = channel_groups.count_parameters(channel_groups.empty_removal_mask)
    parameters_text = f"{original_parameters:,} to {channel_groups.count_parameters(removed_mask):,}"
    count_text = f"{int(removed_mask.sum())} of {len(removed_mask)} removable groups of channels"
    provenance = f"{count_text}; parameters {parameters_text}"
    return exact_metric("channels_removed", float(removed_mask.mean()), Dimension.FRACTION, provenance)


def _channels_table(channel_groups: "ChannelGroups", removed_mask: Any) -> Table:
    import numpy as np

    removed_roots = channel_groups.removable_roots[removed_mask]
    rows = tuple(
        (
            layer.name,
            layer.class_name,
            len(layer.root_labels),
            int((~np.isin(layer.root_labels, removed_roots)).sum()),
            layer.freeze_reason,
        )
        for layer in channel_groups.channel_layers
    )
    columns = ("layer", "kind", "channels", "kept", "reason")
    return Table(title="Channels by layer", columns=columns, rows=rows)
