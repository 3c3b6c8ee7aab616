"""The calibration from end to end: suite, measurement, fit, cross-validation, profile."""

import itertools
import re
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml

from edgepipe.core import artifact
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ToolError
from edgepipe.core.progress import Progress
from edgepipe.core.references import installed_version
from edgepipe.core.units import plural
from edgepipe.devices import device_profile
from edgepipe.devices.calibration import calibration_fit as fitting
from edgepipe.devices.calibration.calibration_fit import FitSample, FittedTerms, HeldOutTimes
from edgepipe.devices.calibration.calibration_record import DeviceCalibration, GroupErrors, SuiteMeasurement
from edgepipe.devices.calibration.cost_terms import compute_operator_costs
from edgepipe.devices.calibration.measurement_backend import Backend, HostBackend
from edgepipe.devices.calibration.suite import Effort, SuiteCase, build_suite
from edgepipe.devices.calibration.suite_measurement import CaseFile, ReadingStore, SuiteBench
from edgepipe.devices.device_profile import Device
from edgepipe.tflite import reader
from edgepipe.tflite.host_fingerprint import count_usable_cores
from edgepipe.tflite.latency_series import LatencyReading

PASSES_BY_EFFORT = {Effort.QUICK: 2, Effort.FULL: 3}
MIN_MEASURED_SHARE = 0.8  # share of the suite that must run for a reliable fit
REFERENCE_GROUP = "classifier"  # the group whose first model tracks the current speed of the machine
MAX_NAMED_REFUSALS = 20
HOST_CORE_NAME = "host CPU"  # the core in the shipped profile `host`
DEVICE_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class CalibrationRequest:
    """How to calibrate: the suite's effort and seed, and where readings are stored."""

    effort: Effort
    seed: int
    readings_folder: Path


def calibrate(backend: Backend, request: CalibrationRequest, progress: Progress) -> DeviceCalibration:
    """Measure the suite on `backend` and fit it.

    Raises:
        ToolError: the device runs less than 80 % of the models.
    """
    suite_cases = build_suite(request.effort, request.seed)
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        case_files = [_write_case(case, Path(folder), request.seed) for case in suite_cases]
        reference_path = next(file.path for file in case_files if file.case.group == REFERENCE_GROUP)
        suite_bench = SuiteBench(backend, ReadingStore(request.readings_folder), reference_path, request.seed, progress)
        reading_by_case = suite_bench.measure(case_files, PASSES_BY_EFFORT[request.effort])
        _check_refusals(reading_by_case)
        measured_names = {name for name, reading in reading_by_case.items() if reading.seconds is not None}
        sustained_factor = suite_bench.measure_sustained_factor(case_files, reading_by_case)
        fit_samples = [
            _build_sample(file, reading_by_case[file.case.name], sustained_factor)
            for file in case_files
            if file.case.name in measured_names
        ]
    progress.note(f"fitting {plural(len(fit_samples), 'model')}")
    return _build_record(backend, request, fit_samples, reading_by_case, sustained_factor)


def _write_case(case: SuiteCase, folder: Path, seed: int) -> CaseFile:
    content, path = case.model_bytes(seed), folder / f"{case.name}.tflite"
    artifact.write_bytes(path, content)
    return CaseFile(case, path, artifact.file_digest(path))


def _check_refusals(reading_by_case: dict[str, LatencyReading]) -> None:
    refusal_texts = [
        f"{name}: {reading.refused}" for name, reading in reading_by_case.items() if reading.seconds is None
    ]
    if len(refusal_texts) > (1 - MIN_MEASURED_SHARE) * len(reading_by_case):
        raise ToolError(
            f"the device ran only {len(reading_by_case) - len(refusal_texts)} "
            f"of the suite's {len(reading_by_case)} models, "
            f"a fit needs at least {MIN_MEASURED_SHARE:.0%}; the first refusal: {refusal_texts[0]}"
        )


def _build_sample(case_file: CaseFile, reading: LatencyReading, sustained_factor: float) -> FitSample:
    assert reading.seconds is not None, "refused models are no samples"
    operator_costs = tuple(compute_operator_costs(reader.read(case_file.path)))
    return FitSample(
        case_file.case.name,
        case_file.case.group,
        case_file.case.is_composite,
        operator_costs,
        sustained_factor * reading.seconds,
    )


def _build_record(
    backend: Backend,
    request: CalibrationRequest,
    fit_samples: list[FitSample],
    reading_by_case: dict[str, LatencyReading],
    sustained_factor: float,
) -> DeviceCalibration:
    fitted_terms, held_out_times = fitting.fit(fit_samples), fitting.predict_held_out(fit_samples, request.seed)
    measured_times = np.array([sample.seconds for sample in fit_samples])
    composite_mask = np.array([sample.is_composite for sample in fit_samples])
    refusal_texts = [
        f"{name}: {reading.refused}" for name, reading in reading_by_case.items() if reading.seconds is None
    ]
    identity = backend.identity
    return DeviceCalibration(
        measured=SuiteMeasurement(
            host=identity.host,
            host_digest=identity.host_digest,
            runtime=identity.runtime,
            threads=identity.threads,
            suite=f"{request.effort}, seed {request.seed}",
            models=len(fit_samples),
            sustained=float(f"{sustained_factor:.4g}"),
            refused=tuple(refusal_texts[:MAX_NAMED_REFUSALS]),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        seconds=_seconds_by_term(fitted_terms),
        largest=_largest_amounts_by_kind(fit_samples),
        within=fitting.summarize_errors(
            held_out_times.random_fold_times[composite_mask], measured_times[composite_mask]
        ),
        across=fitting.summarize_errors(
            held_out_times.unseen_group_times[composite_mask], measured_times[composite_mask]
        ),
        operators=fitting.summarize_errors(
            held_out_times.random_fold_times[~composite_mask], measured_times[~composite_mask]
        ),
        groups=_errors_by_group(fit_samples, held_out_times, measured_times),
        interval=fitting.conformal_interval(
            held_out_times.unseen_group_times[composite_mask], measured_times[composite_mask]
        ),
    )


def _seconds_by_term(fitted_terms: FittedTerms) -> dict[str, float]:
    term_seconds_pairs = zip(fitted_terms.term_names, fitted_terms.seconds_per_unit.tolist(), strict=True)
    return {name: float(f"{seconds:.5g}") for name, seconds in term_seconds_pairs if seconds > 0}


def _largest_amounts_by_kind(fit_samples: list[FitSample]) -> dict[str, dict[str, float]]:
    largest_amounts_by_kind: dict[str, dict[str, float]] = {}
    for cost in itertools.chain.from_iterable(sample.operator_costs for sample in fit_samples):
        largest_amounts = largest_amounts_by_kind.setdefault(cost.kind, {})
        for name, amount in cost.term_amounts.items():
            largest_amounts[name] = max(largest_amounts.get(name, 0.0), amount)
    return dict(sorted(largest_amounts_by_kind.items()))


def _errors_by_group(
    fit_samples: list[FitSample], held_out_times: HeldOutTimes, measured_times: Array
) -> dict[str, GroupErrors]:
    group_names = np.array([sample.group for sample in fit_samples])
    errors_by_group = {}
    for group_name in dict.fromkeys(group_names.tolist()):
        in_group_mask = group_names == group_name
        other_kinds = {
            cost.kind for sample in fit_samples if sample.group != group_name for cost in sample.operator_costs
        }
        has_own_kind = any(
            cost.kind not in other_kinds
            for sample in fit_samples
            if sample.group == group_name
            for cost in sample.operator_costs
        )
        errors_by_group[str(group_name)] = GroupErrors(
            within=fitting.summarize_errors(
                held_out_times.random_fold_times[in_group_mask], measured_times[in_group_mask]
            ),
            across=(
                None
                if has_own_kind
                else fitting.summarize_errors(
                    held_out_times.unseen_group_times[in_group_mask], measured_times[in_group_mask]
                )
            ),
        )
    return errors_by_group


def profile_text(calibration: DeviceCalibration, device_name: str, profile_name: str, litert_version: str) -> str:
    """The YAML of a profile that inherits `device_name` and estimates latency by `calibration`.

    Args:
        calibration: the fitted latency model.
        device_name: the name of the parent profile.
        profile_name: the name of the new profile.
        litert_version: the installed LiteRT, for `runtime.version`.
    """
    suite_measurement = calibration.measured
    thread_count_text = plural(suite_measurement.threads, "thread")
    profile_data = {
        "name": profile_name,
        "description": f"{device_name}, calibrated on {suite_measurement.at[:10]}: {suite_measurement.host}, "
        f"{thread_count_text}",
        "inherit": device_name,
        "sources": [
            f"measured by `edgepipe device calibrate {device_name}` on {suite_measurement.host}: "
            f"{plural(suite_measurement.models, 'model')}"
        ],
        "runtime": {"version": litert_version, "threads": suite_measurement.threads},
        "latency": {
            "evidence": "estimated",
            "by": "calibration",
            "calibration": calibration.model_dump(mode="json"),
        },
    }
    return str(yaml.safe_dump(profile_data, sort_keys=False, allow_unicode=True, width=120))


def choose_backend(device: Device, threads: int) -> Backend:
    """The backend that measures on `device`.

    Raises:
        InputError: no backend reaches it, or it has fewer cores than `threads`.
    """
    if device.system.core != HOST_CORE_NAME:
        raise InputError(
            f"device '{device.name}' cannot be calibrated: edgepipe can only measure on `host` so far; "
            "on a Linux board, install edgepipe there and calibrate its `host`"
        )
    if threads > count_usable_cores():
        raise InputError(f"--threads {threads}: this machine lets edgepipe use {plural(count_usable_cores(), 'core')}")
    return HostBackend(threads)


def check_target(out: Path, device_name: str, force: bool) -> None:
    """Check that a profile that inherits `device_name` can be written to `out`.

    Raises:
        InputError: a wrong suffix, the stem `device_name`, an invalid name, or an existing file without `force`.
    """
    if out.suffix not in device_profile.PROFILE_SUFFIXES:
        raise InputError(f"{out}: a profile is a .yaml file, for example -o devices/mine.yaml")
    if out.stem == device_name:
        raise InputError(f"{out}: the profile inherits '{device_name}' and cannot have its name; choose another")
    if not DEVICE_NAME_PATTERN.fullmatch(out.stem):
        raise InputError(f"{out}: a device's name has letters, digits, '-', '_' and '.'; found '{out.stem}'")
    if out.exists() and not force:
        raise InputError(f"{out}: exists; --force replaces it")


def write_profile(
    device_name: str,
    out: Path,
    *,
    effort: Effort,
    threads: int,
    seed: int,
    cache: Path,
    force: bool,
    progress: Progress,
) -> DeviceCalibration:
    """Calibrate `device_name` and write its profile atomically to `out`.

    Args:
        device_name: the name of a device profile.
        out: the .yaml file to write; its stem names the new device.
        effort: the size of the suite.
        threads: threads of the runtime.
        seed: seeds the suite, the order of measurements and the folds.
        cache: the cache folder; readings are kept below it.
        force: replace an existing `out`.
        progress: receives the progress.

    Raises:
        InputError: see `choose_backend` and `check_target`.
        ToolError: see `calibrate`.
        StorageError: `out` or the readings in `cache` cannot be written.
    """
    check_target(out, device_name, force)
    backend = choose_backend(device_profile.load(device_name, Path.cwd(), (out.parent,)), threads)
    calibration = calibrate(backend, CalibrationRequest(effort, seed, cache / "calibration"), progress)
    artifact.write_text(out, profile_text(calibration, device_name, out.stem, installed_version("ai-edge-litert")))
    return calibration
