"""Reports how far the fake-quant model and the int8 model made from it agree, tensor by tensor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepipe.core.metric import Metric, measured_metric, unavailable_metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension
from edgepipe.tflite.interpreter import Runtime

if TYPE_CHECKING:
    from edgepipe.compress.agreement import Agreement, TensorAgreement

AGREEMENT_COLUMNS = ("layer", "scale", "equal", "p99 LSB", "max LSB", "mean LSB", "why not compared")


def describe_agreement(agreement: "Agreement | None") -> tuple[tuple[Table, ...], tuple[Metric, ...]]:
    """A table with one row per tensor in order of computation, and metrics of the worst tensor and of the labels.

    Nothing for a model without fake-quant.
    """
    if agreement is None:
        return (), ()
    conditions = f"{agreement.sample_count} validation samples, LiteRT {Runtime.BUILTIN}"
    agreement_table = Table(
        title=f"int8 against fake-quant, {conditions}",
        columns=AGREEMENT_COLUMNS,
        rows=tuple(_tensor_row(tensor) for tensor in agreement.tensors),
    )
    return (agreement_table,), (
        *_agreement_metrics(agreement.tensors, conditions),
        _labels_metric(agreement.labels_equal, conditions),
    )


def _tensor_row(tensor_agreement: "TensorAgreement") -> tuple[str | int | float, ...]:
    if tensor_agreement.missing_reason:
        return (tensor_agreement.layer, tensor_agreement.scale, "", "", "", "", tensor_agreement.missing_reason)
    cells = (
        f"{tensor_agreement.equal_fraction:.1%}",
        tensor_agreement.p99_lsb,
        tensor_agreement.max_lsb,
        f"{tensor_agreement.mean_lsb:+.3f}",
        "",
    )
    return (tensor_agreement.layer, tensor_agreement.scale, *cells)


def _agreement_metrics(tensor_agreements: "Sequence[TensorAgreement]", conditions: str) -> list[Metric]:
    compared_tensors = [
        tensor_agreement for tensor_agreement in tensor_agreements if not tensor_agreement.missing_reason
    ]
    missing_count = len(tensor_agreements) - len(compared_tensors)
    provenance = f"{len(compared_tensors)} of {len(tensor_agreements)} fake-quantized tensors, {conditions}"
    missing_metric = _count_metric(
        "tensors_not_compared", missing_count, f"fake-quantized tensors not found in the .tflite, {provenance}"
    )
    if not compared_tensors:
        return [unavailable_metric("agreement_p99", Dimension.COUNT, provenance), missing_metric]
    worst_tensor = max(compared_tensors, key=lambda entry: entry.p99_lsb)
    worst_text = f"largest 99th percentile of a tensor in LSB ('{worst_tensor.layer}'), {provenance}"
    return [_count_metric("agreement_p99", worst_tensor.p99_lsb, worst_text), missing_metric]


def _count_metric(name: str, value: float, provenance: str) -> Metric:
    return measured_metric(name, value, Dimension.COUNT, provenance)


def _labels_metric(equal_share: float | None, conditions: str) -> Metric:
    if equal_share is None:
        return unavailable_metric("labels_equal", Dimension.FRACTION, "the model has no class scores, so no labels")
    return measured_metric("labels_equal", equal_share, Dimension.FRACTION, f"same label, {conditions}")
