"""The whole calibration: suite, measuring, fit, cross-validation, profile."""

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
from edgepipe.core.references import version
from edgepipe.devices import device_profile
from edgepipe.devices.calibration import calibration_fit as fitting
from edgepipe.devices.calibration.calibration_fit import Fitted, Held, Sample
from edgepipe.devices.calibration.calibration_record import Calibration, Group, Measured
from edgepipe.devices.calibration.cost_terms import parts
from edgepipe.devices.calibration.measurement_backend import Backend, HostBackend
from edgepipe.devices.calibration.suite import Case, Effort, suite
from edgepipe.devices.calibration.suite_measurement import Bench, Item, Store
from edgepipe.devices.device_profile import Device
from edgepipe.tflite import reader
from edgepipe.tflite.host_fingerprint import usable_cores
from edgepipe.tflite.latency_series import Reading

PASSES = {Effort.QUICK: 2, Effort.FULL: 3}
LEAST_SHARE = 0.8  # of the suite must run, or the fit would stand on too little
REFERENCE = "classifier"  # the group whose first model tells how fast the machine is just now
REFUSED_NAMED = 20
HOST_CORE = "host CPU"  # what the shipped profile `host` calls its core
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Order:
    """What to calibrate: the suite's effort and seed, and where readings are kept."""

    effort: Effort
    seed: int
    store: Path


def calibrate(backend: Backend, order: Order, progress: Progress) -> Calibration:
    """Measure the suite on `backend` and fit it.

    Raises:
        ToolError: the device runs less than four in five of the models.
    """
    cases = suite(order.effort, order.seed)
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        items = [_item(case, Path(folder), order.seed) for case in cases]
        reference = next(item.path for item in items if item.case.group == REFERENCE)
        bench = Bench(backend, Store(order.store), reference, order.seed, progress)
        readings = bench.measure(items, PASSES[order.effort])
        _check(readings)
        ran = {name for name, reading in readings.items() if reading.seconds is not None}
        sustained = bench.sustained(items, readings)
        samples = [_sample(item, readings[item.case.name], sustained) for item in items if item.case.name in ran]
    progress.note(f"fitting {len(samples)} models")
    return _record(backend, order, samples, readings, sustained)


def _item(case: Case, folder: Path, seed: int) -> Item:
    content, path = case.content(seed), folder / f"{case.name}.tflite"
    artifact.write_bytes(path, content)
    return Item(case, path, artifact.file_digest(path))


def _check(readings: dict[str, Reading]) -> None:
    refused = [f"{name}: {reading.refused}" for name, reading in readings.items() if reading.seconds is None]
    if len(refused) > (1 - LEAST_SHARE) * len(readings):
        raise ToolError(
            f"the device ran only {len(readings) - len(refused)} of the suite's {len(readings)} models, "
            f"at least {LEAST_SHARE:.0%} are needed for a fit; the first refusal: {refused[0]}"
        )


def _sample(item: Item, reading: Reading, sustained: float) -> Sample:
    assert reading.seconds is not None, "refused models are no samples"
    found = tuple(parts(reader.read(item.path)))
    return Sample(item.case.name, item.case.group, item.case.composite, found, sustained * reading.seconds)


def _record(
    backend: Backend, order: Order, samples: list[Sample], readings: dict[str, Reading], sustained: float
) -> Calibration:
    fitted, held = fitting.fit(samples), fitting.held_out(samples, order.seed)
    times = np.array([sample.seconds for sample in samples])
    composite = np.array([sample.composite for sample in samples])
    refused = [f"{name}: {reading.refused}" for name, reading in readings.items() if reading.seconds is None]
    identity = backend.identity
    return Calibration(
        measured=Measured(
            host=identity.host,
            host_digest=identity.host_digest,
            runtime=identity.runtime,
            threads=identity.threads,
            suite=f"{order.effort}, seed {order.seed}",
            models=len(samples),
            sustained=float(f"{sustained:.4g}"),
            refused=tuple(refused[:REFUSED_NAMED]),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
        seconds=_seconds(fitted),
        largest=_largest(samples),
        within=fitting.errors(held.within[composite], times[composite]),
        across=fitting.errors(held.across[composite], times[composite]),
        operators=fitting.errors(held.within[~composite], times[~composite]),
        groups=_groups(samples, held, times),
        interval=fitting.interval(held.across[composite], times[composite]),
    )


def _seconds(fitted: Fitted) -> dict[str, float]:
    pairs = zip(fitted.names, fitted.seconds.tolist(), strict=True)
    return {name: float(f"{value:.5g}") for name, value in pairs if value > 0}


def _largest(samples: list[Sample]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for part in (part for sample in samples for part in sample.parts):
        terms = found.setdefault(part.kind, {})
        for name, value in part.terms.items():
            terms[name] = max(terms.get(name, 0.0), value)
    return dict(sorted(found.items()))


def _groups(samples: list[Sample], held: Held, times: Array) -> dict[str, Group]:
    groups = np.array([sample.group for sample in samples])
    found = {}
    for name in dict.fromkeys(groups.tolist()):
        inside = groups == name
        others = {part.kind for sample in samples if sample.group != name for part in sample.parts}
        alone = any(part.kind not in others for sample in samples if sample.group == name for part in sample.parts)
        found[str(name)] = Group(
            within=fitting.errors(held.within[inside], times[inside]),
            across=None if alone else fitting.errors(held.across[inside], times[inside]),
        )
    return found


def profile_text(calibration: Calibration, device: str, name: str, litert: str) -> str:
    """The YAML of a profile `name` that inherits `device` and estimates latency by `calibration`."""
    about = calibration.measured
    body = {
        "name": name,
        "description": f"{device}, calibrated on {about.at[:10]}: {about.host}, {about.threads} thread(s)",
        "inherit": device,
        "sources": [f"measured by `edgepipe device calibrate {device}` on {about.host}: {about.models} models"],
        "runtime": {"version": litert, "threads": about.threads},
        "latency": {
            "evidence": "estimated",
            "by": "calibration",
            "calibration": calibration.model_dump(mode="json"),
        },
    }
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120))


def backend_of(device: Device, threads: int) -> Backend:
    """How `device` is reached.

    Raises:
        InputError: there is no way to reach it, or it has fewer cores than `threads`.
    """
    if device.system.core != HOST_CORE:
        raise InputError(
            f"device '{device.name}' cannot be calibrated: edgepipe reaches no device but `host` yet; "
            "on a Linux board, install edgepipe there and calibrate its `host`"
        )
    if threads > usable_cores():
        raise InputError(f"--threads {threads}: this machine lets edgepipe use {usable_cores()} core(s)")
    return HostBackend(threads)


def check_target(out: Path, device: str, force: bool) -> None:
    """Whether a profile that inherits `device` can be written to `out`.

    Raises:
        InputError: a wrong ending, a name that is taken, or a file that exists.
    """
    if out.suffix not in device_profile.ENDINGS:
        raise InputError(f"{out}: a profile is a .yaml file, for example -o devices/mine.yaml")
    if out.stem == device:
        raise InputError(f"{out}: the profile inherits '{device}' and cannot have its name; choose another")
    if not NAME.fullmatch(out.stem):
        raise InputError(f"{out}: a device's name has letters, digits, '-', '_' and '.'; found '{out.stem}'")
    if out.exists() and not force:
        raise InputError(f"{out}: exists; --force replaces it")


def write(
    device: str, out: Path, *, effort: Effort, threads: int, seed: int, cache: Path, force: bool, progress: Progress
) -> Calibration:
    """Calibrate the shipped device `device` and write its profile to `out`, whole or not at all.

    Raises:
        InputError: see `backend_of` and `check_target`.
        ToolError: see `calibrate`.
        StorageError: `out` or the readings in `cache` cannot be written.
    """
    check_target(out, device, force)
    backend = backend_of(device_profile.load(device, Path.cwd(), (out.parent,)), threads)
    found = calibrate(backend, Order(effort, seed, cache / "calibration"), progress)
    artifact.write_text(out, profile_text(found, device, out.stem, version("ai-edge-litert")))
    return found
