"""RAM and flash of a model on a runtime that cannot run here, estimated from tensors and weights.

    RAM   = ratio * (peak bytes of live tensors) + plus + per_operator * operators
    flash = bytes of the constants + plus + per_operator * operators

The profile holds the coefficients. Its `interval` is the lowest and highest multiple of the estimate among the fitted
models; for flash the constants are exact, so the interval applies to the rest only.
"""

from edgepipe.core import units
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import MetricSource
from edgepipe.tflite.arena_plan import plan_arena
from edgepipe.tflite.model import Model


def estimate_ram(source: MetricSource, model: Model, device: str) -> Metric:
    """RAM by `plan`; unavailable, with the reason, for a model whose arena cannot be planned."""
    assert source.ratio is not None, "required by the profile's schema"
    try:
        live_bytes = plan_arena(model).naive_peak
    except InputError as error:
        return unavailable_metric("ram", Dimension.BYTES, str(error), device)
    estimate = source.ratio * live_bytes + _runtime_bytes(source, model)
    explanation = (
        f"{source.ratio:g} times the peak bytes of live tensors, plus the runtime's own RAM, as fitted on "
        f"{_describe_models(source)}"
    )
    return _estimated_metric("ram", source, 0, estimate, explanation, device)


def estimate_flash(source: MetricSource, model: Model, device: str) -> Metric:
    """Flash by `weights`."""
    constants = sum(tensor.bytes for tensor in model.tensors if tensor.is_constant)
    explanation = f"the constants of the .tflite, plus the runtime's code as fitted on {_describe_models(source)}"
    return _estimated_metric("flash", source, constants, _runtime_bytes(source, model), explanation, device)


def _runtime_bytes(source: MetricSource, model: Model) -> int:
    return (source.plus or 0) + (source.per_operator or 0) * len(model.operators)


def _describe_models(source: MetricSource) -> str:
    return units.plural(source.points, "model") if source.points else "other models"


def _estimated_metric(
    name: str, source: MetricSource, exact_bytes: int, estimate: float, explanation: str, device: str
) -> Metric:
    assert source.interval is not None, "required by the profile's schema"
    low, high = (exact_bytes + bound * estimate for bound in source.interval)
    return Metric(
        name=name, value=exact_bytes + estimate, unit=Dimension.BYTES, evidence=Evidence.ESTIMATED, device=device,
        how=explanation, interval=(low, high),
    )  # fmt: skip
