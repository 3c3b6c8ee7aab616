"""RAM and flash of a model on a runtime that cannot run here, estimated from tensors and weights.

    RAM   = ratio * (peak bytes of live tensors) + plus + per_operator * operators
    flash = bytes of the constants + plus + per_operator * operators
    flash = bytes of the .tflite + plus + per_kind * kinds of operators, for an interpreter

The profile holds the coefficients. Its `interval` is the lowest and highest multiple of the estimate among the fitted
models; for flash the constants are exact, so the interval applies to the rest only.
"""

from edgepipe.core import units
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, exact_metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import MetricSource, RuntimeProfile
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model


def estimate_ram(metric_source: MetricSource, model: Model, device: str) -> Metric:
    """RAM by `plan`; unavailable, with the reason, for a model whose arena cannot be planned."""
    assert metric_source.ratio is not None, "required by the profile's schema"
    try:
        live_bytes = plan_arena(model).naive_peak_bytes
    except InputError as error:
        return unavailable_metric("ram", Dimension.BYTES, str(error), device)
    estimated_bytes = metric_source.ratio * live_bytes + _runtime_bytes(metric_source, model)
    explanation = (
        f"{metric_source.ratio:g} times the peak bytes of live tensors, plus the runtime's own RAM, as fitted on "
        f"{_describe_models(metric_source)}"
    )
    return _estimated_metric("ram", metric_source, 0, estimated_bytes, explanation, device)


def estimate_flash(metric_source: MetricSource, model: Model, device: str) -> Metric:
    """Flash by `weights`."""
    constant_bytes = sum(tensor.bytes for tensor in model.tensors if tensor.is_constant)
    explanation = (
        f"the constants of the .tflite, plus the runtime's code as fitted on {_describe_models(metric_source)}"
    )
    return _estimated_metric(
        "flash", metric_source, constant_bytes, _runtime_bytes(metric_source, model), explanation, device
    )


def estimate_program(metric_source: MetricSource, model: Model, runtime: RuntimeProfile, device: str) -> Metric:
    """Flash by `program`: the .tflite as it is, and the code of an interpreter with the kernels of its operators."""
    if runtime.code is not None:
        text = (
            f"the .tflite and {units.show(runtime.code, Dimension.BYTES)} of the runtime's code, as the profile states"
        )
        return exact_metric("flash", model.bytes + runtime.code, Dimension.BYTES, text, device)
    kind_count = len({operator.name for operator in model.operators})
    code_bytes = (metric_source.plus or 0) + (metric_source.per_kind or 0) * kind_count
    explanation = (
        f"{units.show(model.bytes, Dimension.BYTES)} of the .tflite, and the code of the runtime with kernels for "
        f"{units.plural(kind_count, 'kind')} of operators, without the application's; `runtime.code` of the profile "
        "states it"
    )
    return _estimated_metric("flash", metric_source, model.bytes, code_bytes, explanation, device)


def _runtime_bytes(metric_source: MetricSource, model: Model) -> int:
    return (metric_source.plus or 0) + (metric_source.per_operator or 0) * len(model.operators)


def _describe_models(metric_source: MetricSource) -> str:
    return units.plural(metric_source.points, "model") if metric_source.points else "other models"


def _estimated_metric(
    metric_name: str,
    metric_source: MetricSource,
    exact_bytes: int,
    estimated_bytes: float,
    explanation: str,
    device: str,
) -> Metric:
    assert metric_source.interval is not None, "required by the profile's schema"
    low_bytes, high_bytes = (exact_bytes + bound * estimated_bytes for bound in metric_source.interval)
    return Metric(
        name=metric_name, value=exact_bytes + estimated_bytes, unit=Dimension.BYTES,
        evidence=Evidence.ESTIMATED, device=device, how=explanation, interval=(low_bytes, high_bytes),
    )  # fmt: skip
