"""What may meet a limit on cost that a model misses: the nearest option, from the facts of the model.

A suggestion is a proportion, not a promise: whether the smaller model is still good enough, only a run tells. With a
share k of all channels, activations take k of what they took, and weights and multiply-accumulates take k squared: a
layer loses inputs and outputs.
"""

import math
from collections.abc import Callable

from edgepipe.core import units
from edgepipe.core.metric import Evidence, Judgement, Metric, Verdict
from edgepipe.core.units import Dimension
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model, Tensor

INT8_SHARE = 0.25  # of what a float32 tensor takes
SHOWN_TENSORS = 2


def suggest_for_limit(verdict: Verdict, model: Model) -> str:
    """What may meet a limit that is not met; empty where nothing is known that would.

    Args:
        verdict: on a limit of the size or of the cost of `model`.
        model: the deployed one.
    """
    metric, limit = verdict.metric, verdict.limit
    suggest = _SUGGESTION_BY_METRIC.get(limit.metric)
    if verdict.judgement is not Judgement.NOT_MET or metric is None or metric.value is None or suggest is None:
        return ""
    worst_value = metric.interval[1] if metric.interval is not None else metric.value
    if limit.bound != "max" or worst_value <= limit.value:  # its evidence is not the one that is demanded
        return ""
    return suggest(metric, worst_value, limit.value, model)


def _suggest_smaller_file(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    weights = _weight_tensors(model)
    weight_bytes, excess = sum(tensor.bytes for tensor in weights), worst_value - limit
    float_bytes = sum(tensor.bytes for tensor in weights if tensor.dtype == "float32")
    if float_bytes * (1 - INT8_SHARE) >= excess:
        saved_text = units.show(float_bytes * (1 - INT8_SHARE), Dimension.BYTES)
        return f"`convert: {{scheme: int8}}` would save {saved_text} of weights"
    if excess >= weight_bytes:
        return (
            f"the weights take {units.show(weight_bytes, Dimension.BYTES)}, and {units.show(excess, Dimension.BYTES)} "
            "must go: removing weights cannot meet this; another device, or a larger limit"
        )
    share = 1 - math.sqrt(1 - excess / weight_bytes)
    target_text = units.show(model.bytes - excess, Dimension.BYTES)
    return f"{_channels_text(share)} (`{_prune_option(f'flash: {target_text}')}`){_largest_weights_text(weights)}"


def _weight_tensors(model: Model) -> list[Tensor]:
    return sorted(model.parameter_tensors, key=lambda tensor: -tensor.bytes)


def _largest_weights_text(weights: list[Tensor]) -> str:
    total = sum(tensor.bytes for tensor in weights)
    return f"; {weights[0].bytes / total:.0%} of the weights are in '{weights[0].name}'" if len(weights) > 1 else ""


def _suggest_less_memory(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    if metric.evidence is Evidence.MEASURED:  # of a process, most of which is not the model's
        return ""
    plan = plan_arena(model)
    operator, buffers = plan.peak_operator, plan.buffers_at_peak
    if operator is None or not buffers:
        return ""
    needed_share = (worst_value - limit) / plan.naive_peak_bytes
    place_text = f"most is in use at {operator.location}, by {_buffers_text([(b.name, b.size) for b in buffers])}"
    if any(tensor.dtype == "float32" for tensor in operator.tensors if not tensor.is_constant):
        return f"{place_text}; `convert: {{scheme: int8}}` takes a quarter of that"
    if needed_share >= 1:
        return f"{place_text}; less of that cannot meet this: a smaller input or another device"
    return f"{place_text}; {needed_share:.0%} less of that: so many channels fewer there, or a smaller input"


def _buffers_text(sizes: list[tuple[str, int]]) -> str:
    shown = [f"'{name}' ({units.show(size, Dimension.BYTES)})" for name, size in sizes[:SHOWN_TENSORS]]
    hidden_count = len(sizes) - SHOWN_TENSORS
    return " and ".join(shown) + (f" and {units.plural(hidden_count, 'more tensor')}" if hidden_count > 0 else "")


def _suggest_faster(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    share = 1 - math.sqrt(limit / worst_value)
    device_text = f", device: {metric.device}" if metric.device is not None else ""
    target_text = f"latency: {units.show(limit, Dimension.SECONDS)}{device_text}"
    has_floats = any(tensor.dtype == "float32" for tensor in model.parameter_tensors)
    int8_text = "`convert: {scheme: int8}`, whose kernels are faster on most devices; or " if has_floats else ""
    return f"{int8_text}{_channels_text(share)} (`{_prune_option(target_text)}`), if time follows computation"


def _suggest_fewer_macs(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    return f"{_channels_text(1 - math.sqrt(limit / worst_value))} (`{_prune_option(f'macs: {limit:.0f}')}`)"


def _suggest_fewer_parameters(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    return f"{_channels_text(1 - math.sqrt(limit / worst_value))} (`{_prune_option(f'parameters: {limit:.0f}')}`)"


def _suggest_more_zeros(metric: Metric, worst_value: float, limit: float, model: Model) -> str:
    return f"{1 - limit / worst_value:.0%} of the weights less (`prune: {{target: {{parameters: {limit:.0f}}}}}`)"


def _channels_text(share: float) -> str:
    return f"about {math.ceil(share * 100)} % of the channels less"


def _prune_option(target: str) -> str:
    return f"prune: {{granularity: channel, target: {{{target}}}}}"


_SUGGESTION_BY_METRIC: dict[str, Callable[[Metric, float, float, Model], str]] = {
    "size": _suggest_smaller_file,
    "flash": _suggest_smaller_file,
    "ram": _suggest_less_memory,
    "latency": _suggest_faster,
    "macs": _suggest_fewer_macs,
    "parameters": _suggest_fewer_parameters,
    "nonzero_parameters": _suggest_more_zeros,
}
