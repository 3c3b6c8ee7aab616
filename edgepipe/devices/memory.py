"""RAM and flash of a model on a runtime that cannot be run here: from the tensors and weights, as the profile says.

    RAM   = ratio * (bytes of the tensors that live at once) + plus + per_operator * operators
    flash = bytes of the constants + plus + per_operator * operators

`interval` of the profile holds the lowest and highest multiples of the estimate that were seen where it was fitted; the
constants are counted, so for flash only the rest is spread.
"""

from dataclasses import dataclass

from edgepipe.devices.profile import Obtained
from edgepipe.metric import Evidence, Metric
from edgepipe.tflite.model import Model, Operator
from edgepipe.units import Dimension


@dataclass(frozen=True)
class Peak:
    """The most bytes of tensors that live at once, and the operator at which they do."""

    bytes: int
    operator: Operator | None


def peak(model: Model) -> Peak:
    """Inputs, outputs and activations of the main subgraph, each alive from where it is written to its last use."""
    operators = [operator for operator in model.operators if operator.subgraph == 0]
    last = {t.index: step for step, operator in enumerate(operators) for t in operator.tensors}
    last |= {t.index: len(operators) for t in model.outputs}
    alive = {t.index: t.bytes for t in model.inputs}
    most = Peak(sum(alive.values()), None)
    for step, operator in enumerate(operators):
        alive |= {t.index: t.bytes for t in operator.outputs if t is not None}
        most = max(most, Peak(sum(alive.values()), operator), key=lambda found: found.bytes)
        alive = {index: size for index, size in alive.items() if last.get(index, step) > step}
    return most


def ram(obtained: Obtained, model: Model, planned: int, device: str) -> Metric:
    """RAM by `plan`; `planned` are the bytes of the planned arena."""
    assert obtained.ratio is not None, "the profile's schema demands it"
    estimate = obtained.ratio * planned + _on_top(obtained, model)
    how = f"{obtained.ratio:g} of the planned arena, and what the runtime takes, as fitted on {_points(obtained)}"
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
