"""Compares the fake-quant model with the int8 model converted from it, tensor by tensor."""

from typing import Any

from edgepipe.compress.qat.agreement import TensorAgreement, choose_sample_count, measure_agreement
from edgepipe.core.arrays import count_samples, take_samples
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.outcome import Table
from edgepipe.core.units import Dimension
from edgepipe.stages.context import StageContext
from edgepipe.tflite.model import Model

COLUMNS = ("layer", "scale", "equal", "p99 LSB", "max LSB", "mean LSB", "why not compared")


def compare_with_fake_quant(
    model: Any, lite: Model, context: StageContext
) -> tuple[tuple[Table, ...], tuple[Metric, ...]]:
    """The table, one row for each tensor in order of computation, and the metrics of its last row."""
    x = context.data.validation.x
    x = take_samples(x, slice(choose_sample_count(lite, count_samples(x))))
    found = measure_agreement(model, lite, x)
    where = f"{count_samples(x)} validation samples, LiteRT's reference kernels against tf_keras with fake-quant"
    table = Table(
        title=f"int8 against fake-quant, {where}", columns=COLUMNS, rows=tuple(_row(entry) for entry in found.tensors)
    )
    return (table,), (*_metrics(found.tensors, where), _labels(found.labels_equal, where))


def _row(entry: TensorAgreement) -> tuple[str | int | float, ...]:
    if entry.missing_reason:
        return (entry.layer, entry.scale, "", "", "", "", entry.missing_reason)
    shown = (f"{entry.equal_fraction:.1%}", entry.p99_lsb, entry.max_lsb, f"{entry.mean_lsb:+.3f}", "")
    return (entry.layer, entry.scale, *shown)


def _metrics(found: list[TensorAgreement], where: str) -> list[Metric]:
    known = [entry for entry in found if not entry.missing_reason]
    unmatched = len(found) - len(known)
    how = f"{len(known)} of {len(found)} fake-quantized tensors, {where}"
    worst = max(known, key=lambda entry: entry.p99_lsb)
    return [
        _count("agreement_p99", worst.p99_lsb, f"largest 99th percentile of a tensor in LSB ('{worst.layer}'), {how}"),
        _count("tensors_not_compared", unmatched, f"fake-quantized tensors without a twin in the .tflite, {how}"),
    ]


def _count(name: str, value: float, how: str) -> Metric:
    return Metric(name=name, value=value, unit=Dimension.COUNT, evidence=Evidence.MEASURED, how=how)


def _labels(share: float | None, where: str) -> Metric:
    if share is None:
        return unavailable_metric(
            "labels_equal", Dimension.FRACTION, "the model has no class scores to take labels from"
        )
    return Metric(
        name="labels_equal",
        value=share,
        unit=Dimension.FRACTION,
        evidence=Evidence.MEASURED,
        how=f"same label, {where}",
    )
