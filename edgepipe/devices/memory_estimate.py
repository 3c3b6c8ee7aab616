"""RAM and flash of a model on a runtime that cannot be run here: from the tensors and weights, as the profile says.

    RAM   = ratio * (bytes of the tensors that live at once) + plus + per_operator * operators
    flash = bytes of the constants + plus + per_operator * operators

`interval` of the profile holds the lowest and highest multiples of the estimate that were seen where it was fitted; the
constants are counted, so for flash only the rest is spread.
"""

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, unavailable
from edgepipe.core.units import Dimension
from edgepipe.devices.device_profile import Obtained
from edgepipe.tflite.arena_plan import plan
from edgepipe.tflite.model import Model


def ram(obtained: Obtained, model: Model, device: str) -> Metric:
    """RAM by `plan`; unavailable for a model whose memory cannot be planned, with the reason."""
    assert obtained.ratio is not None, "the profile's schema demands it"
    try:
        live = plan(model).naive_peak
    except InputError as error:
        return unavailable("ram", Dimension.BYTES, str(error), device)
    estimate = obtained.ratio * live + _on_top(obtained, model)
    how = (
        f"{obtained.ratio:g} of the bytes of tensors that live at once, and what the runtime takes, as fitted on "
        f"{_points(obtained)}"
    )
    return _estimate("ram", obtained, 0, estimate, how, device)


def flash(obtained: Obtained, model: Model, device: str) -> Metric:
    """Flash by `weights`."""
    constants = sum(tensor.bytes for tensor in model.tensors if tensor.constant)
    how = f"the constants of the .tflite, and the runtime's code as fitted on {_points(obtained)}"
    return _estimate("flash", obtained, constants, _on_top(obtained, model), how, device)


def _on_top(obtained: Obtained, model: Model) -> int:
    return (obtained.plus or 0) + (obtained.per_operator or 0) * len(model.operators)


def _points(obtained: Obtained) -> str:
    return f"{obtained.points} models" if obtained.points else "other models"


def _estimate(name: str, obtained: Obtained, counted: int, estimate: float, how: str, device: str) -> Metric:
    assert obtained.interval is not None, "the profile's schema demands it"
    low, high = (counted + bound * estimate for bound in obtained.interval)
    return Metric(
        name=name, value=counted + estimate, unit=Dimension.BYTES, evidence=Evidence.ESTIMATED, device=device,
        how=how, interval=(low, high),
    )  # fmt: skip
