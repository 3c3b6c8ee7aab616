"""Writes the part of a profile with a latency fit, from a table of measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from edgepipe.core.artifact import write_text
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.devices.latency import cross_validation, fit_domain, measurement_table
from edgepipe.devices.latency import latency_fit as fits
from edgepipe.devices.latency.cross_validation import HeldOutPrediction
from edgepipe.devices.latency.latency_fit import FitRow, Rates
from edgepipe.devices.latency.latency_record import FamilyError, HeldOutError, LatencyFit
from edgepipe.devices.latency.measurement_table import MeasuredLatency, MeasurementRows
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS

SIGNIFICANT_DIGITS = 4  # of the stored numbers
FRAGMENT_HEADER = "# Written by `edgepipe device fit`: operator costs, for a profile to inherit. Do not edit.\n"


@dataclass(frozen=True)
class FitRequest:
    """What to fit: a group of the table, with neighbours of the same processor kind."""

    target_group: str  # device and runtime, as `MeasuredLatency.group`
    kind: str
    clock: float  # hertz
    source: str
    dtype: Literal["int8", "float32"] = "int8"
    on_chip_weights: int | None = None  # weights that fit on the chip; None: weights do not spill
    neighbour_clocks: Mapping[str, float] = field(default_factory=dict)  # clock by group, hertz
    excluded_families: frozenset[str] = frozenset()  # families whose rows are left out

    @property
    def clock_by_group(self) -> dict[str, float]:
        """The clock of every group, in hertz."""
        return {self.target_group: self.clock, **self.neighbour_clocks}


@dataclass(frozen=True)
class DeviceFit:
    """A fit, its held-out predictions for the target, and why table lines were skipped."""

    fit: LatencyFit
    held_out_predictions: list[HeldOutPrediction]
    skip_reasons: list[str]


def fit_table(path: Path, model_folder: Path, request: FitRequest) -> DeviceFit:
    """Fit the table at `path`, whose models are in `model_folder`.

    Raises:
        InputError: an invalid table, an unknown kind or group, or no usable row of the target.
    """
    if request.kind not in PROCESSOR_KINDS:
        raise InputError(f"unknown kind of processor '{request.kind}'{did_you_mean(request.kind, PROCESSOR_KINDS)}")
    processor_kind, table_lines = PROCESSOR_KINDS[request.kind], measurement_table.read(path)
    usable_rows = select_rows(table_lines, model_folder, request)
    if not any(row.group == request.target_group for row in usable_rows.fit_rows):
        raise InputError(
            f"{path}: no model file for '{request.target_group}' found: {'; '.join(usable_rows.skip_reasons[:3])}"
        )
    rates = fits.fit(processor_kind, request.clock_by_group, usable_rows.fit_rows)[request.target_group]
    predictions = cross_validation.leave_families_out(processor_kind, request.clock_by_group, usable_rows.fit_rows)
    return DeviceFit(
        _build_record(request, rates, usable_rows.fit_rows, predictions),
        _select_target(request.target_group, predictions),
        usable_rows.skip_reasons,
    )


def select_rows(table_lines: Sequence[MeasuredLatency], model_folder: Path, request: FitRequest) -> MeasurementRows:
    """The usable rows of the target and its neighbours, and why the others are skipped."""
    requested_lines = [
        line for group in request.clock_by_group for line in measurement_table.select_group(table_lines, group)
    ]
    kept_lines = [line for line in requested_lines if line.family not in request.excluded_families]
    measurement_rows = measurement_table.build_rows(
        kept_lines, model_folder, PROCESSOR_KINDS[request.kind].tile, request.on_chip_weights
    )
    exclusion_reasons = [
        f"line {line.line_number}: {line.model_name}: --without {line.family}"
        for line in requested_lines
        if line not in kept_lines
    ]
    return MeasurementRows(measurement_rows.fit_rows, [*measurement_rows.skip_reasons, *exclusion_reasons])


def _select_target(target_group: str, predictions: Sequence[HeldOutPrediction]) -> list[HeldOutPrediction]:
    return [prediction for prediction in predictions if prediction.fit_row.group == target_group]


def _build_record(
    request: FitRequest, rates: Rates, fit_rows: Sequence[FitRow], predictions: Sequence[HeldOutPrediction]
) -> LatencyFit:
    target_rows = [row for row in fit_rows if row.group == request.target_group]
    domain = fit_domain.build_domain(target_rows, rates.feature_names)
    return LatencyFit(
        source=request.source,
        kind=request.kind,
        dtype=request.dtype,
        clock=request.clock,
        on_chip=request.on_chip_weights,
        points=len(target_rows),
        neighbours=tuple(request.neighbour_clocks),
        rates={
            name: _round_digits(rate) for name, rate in zip(rates.feature_names, rates.seconds_per_unit, strict=True)
        },
        covariance=tuple(tuple(map(_round_digits, row[: n + 1])) for n, row in enumerate(rates.covariance)),
        noise=rates.noise,
        factor=_round_digits(cross_validation.interval_factor(_select_target(request.target_group, predictions))),
        rate=cross_validation.INTERVAL_COVERAGE,
        error=_held_out_error(_select_target(request.target_group, predictions)),
        operators=tuple(sorted(domain.operator_names)),
        layers=domain.layers.to_texts(),
        largest={name: _round_digits(amount) for name, amount in domain.largest_amounts.items()},
        seconds=domain.latency_range,
    )


def _round_digits(number: float) -> float:
    return float(f"{float(number):.{SIGNIFICANT_DIGITS}g}")


def _held_out_error(predictions: Sequence[HeldOutPrediction]) -> HeldOutError | None:
    if not predictions:
        return None
    overall_errors = cross_validation.summarize_errors(predictions)
    errors_by_family = {
        family: cross_validation.summarize_errors(
            [prediction for prediction in predictions if prediction.fit_row.family == family]
        )
        for family in sorted({prediction.fit_row.family for prediction in predictions})
    }
    return HeldOutError(
        points=overall_errors.point_count,
        median=_round_digits(overall_errors.median),
        p90=_round_digits(overall_errors.p90),
        worst=_round_digits(overall_errors.worst),
        families={
            family: FamilyError(
                points=family_errors.point_count,
                median=_round_digits(family_errors.median),
                worst=_round_digits(family_errors.worst),
            )
            for family, family_errors in errors_by_family.items()
        },
    )


@dataclass(frozen=True)
class MeasuredTransfer:
    """One factor from a fitted device to another one, and the scatter of single models around it."""

    scale: float
    deviation: float  # standard deviation of the logarithm
    point_count: int


def measure_transfer(
    fit: LatencyFit, path: Path, model_folder: Path, target_group: str, clock: float
) -> MeasuredTransfer:
    """The factor from the predictions of `fit` at `clock` to the measurements of `target_group`.

    Args:
        fit: of another device of the same kind.
        path: the CSV file of measurements.
        model_folder: the folder of the .tflite files.
        target_group: device and runtime in the table, as `MeasuredLatency.group`.
        clock: of the target, in hertz.

    Raises:
        InputError: an invalid table, an unknown target, or no usable row.
    """
    processor_kind = PROCESSOR_KINDS[fit.kind]
    measurement_rows = measurement_table.build_rows(
        measurement_table.select_group(measurement_table.read(path), target_group),
        model_folder,
        processor_kind.tile,
        fit.on_chip,
    )
    if not measurement_rows.fit_rows:
        raise InputError(
            f"{path}: no model file for '{target_group}' found: {'; '.join(measurement_rows.skip_reasons[:3])}"
        )
    seconds_per_unit = np.array(list(fit.rates.values())) * fit.clock / clock
    log_ratios = [
        np.log(row.seconds / (seconds_per_unit @ fits.feature_vector(processor_kind.feature_names, row.features)))
        for row in measurement_rows.fit_rows
    ]
    deviation = float(np.std(log_ratios, ddof=1)) if len(log_ratios) > 1 else 0.0
    return MeasuredTransfer(_round_digits(np.exp(np.median(log_ratios))), _round_digits(deviation), len(log_ratios))


def write_fragment(fit: LatencyFit, target_path: Path) -> None:
    """Write the part of a profile that others can `inherit`."""
    latency_section = {"evidence": "estimated", "by": "fit", "fit": fit.model_dump(mode="json", exclude_none=True)}
    document = {"abstract": True, "latency": latency_section}
    write_text(
        target_path, FRAGMENT_HEADER + yaml.safe_dump(document, sort_keys=False, width=120, default_flow_style=None)
    )
