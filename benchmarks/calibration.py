"""Calibrates this host on the generated suite and tests it on real models that the fit has not seen.

    python benchmarks/calibration.py [--effort full] [--profile FILE] [--models DIR] [--again]

The models are those of `latency/models` below $EDGEPIPE_SHARED, or below `../shared` beside the repository. They are
measured like any model on the host (`edgepipe.tflite.host_latency.measure`), three times; --again forgets earlier
readings of the suite. A model that XNNPACK refuses is listed with its reason.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepipe.core.cache import default_root
from edgepipe.core.errors import InputError
from edgepipe.core.progress import show_progress
from edgepipe.devices import device_profile
from edgepipe.devices.calibration import calibrate as calibrating
from edgepipe.devices.calibration.calibrated_latency import CalibratedEstimate, estimate
from edgepipe.devices.calibration.calibration_record import DeviceCalibration
from edgepipe.devices.calibration.measurement_backend import HostBackend
from edgepipe.devices.calibration.suite import Effort
from edgepipe.render.devices import errors_text
from edgepipe.tflite import host_latency, reader

PASSES = 3
SHARED = Path(os.environ.get("EDGEPIPE_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))


@dataclass(frozen=True)
class Row:
    """One real model: seconds measured and estimated."""

    name: str
    measured: float
    found: CalibratedEstimate

    @property
    def error(self) -> float:
        """Estimate / measurement - 1."""
        return self.found.seconds / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measurement lies in the interval."""
        return self.found.low_seconds <= self.measured <= self.found.high_seconds


def measured(models: list[Path], threads: int) -> dict[str, float | str]:
    """Seconds of each model as `edgepipe verify --device host` measures them, or why it does not run, by file name.

    The median of three measurements that lie apart.
    """
    found: dict[str, list[float]] = {path.name: [] for path in models}
    refused: dict[str, str] = {}
    for path in models * PASSES:
        try:
            found[path.name].append(host_latency.measure(path, threads=threads).p50)
        except InputError as error:
            refused[path.name] = str(error)
    return {name: refused.get(name) or float(np.median(times)) for name, times in found.items()}


def show(rows: list[Row], refused: dict[str, str]) -> None:
    """The table, the refused models, and the summary."""
    print(f"{'model':52} {'measured':>10} {'estimated':>10} {'90 % interval':>21} {'error':>7}  inside")
    for row in sorted(rows, key=lambda row: abs(row.error)):
        found = row.found
        span = f"{found.low_seconds * 1e6:9.1f} ..{found.high_seconds * 1e6:9.1f}"
        note = "; extrapolates: " + found.extrapolation_reasons[0] if found.extrapolation_reasons else ""
        times = f"{row.measured * 1e6:10.1f} {found.seconds * 1e6:10.1f} {span}"
        print(f"{row.name[:52]:52} {times} {row.error * 100:+6.1f}%  {'yes' if row.inside else 'NO'}{note}")
    for name, reason in refused.items():
        print(f"{name[:52]:52} not run: {reason[:200]}")
    for label, chosen in (
        ("all", rows),
        ("inside the fitted range", [row for row in rows if not row.found.extrapolation_reasons]),
    ):
        off = np.abs([row.error for row in chosen])
        median, p90, worst = np.quantile(off, (0.5, 0.9, 1.0)) * 100
        width = (
            np.median([(row.found.high_seconds - row.found.low_seconds) / row.found.seconds for row in chosen]) * 100
        )
        covered = np.mean([row.inside for row in chosen]) * 100
        print(
            f"{label}: {len(chosen)} models, median error {median:.1f} %, p90 {p90:.1f} %, worst {worst:.1f} %; "
            f"{covered:.0f} % inside the 90 % interval of median width {width:.0f} %"
        )


def told(found: DeviceCalibration) -> None:
    """How the calibration judged itself before it saw any of the real models."""
    about = found.measured
    print(f"{about.host}; {about.runtime}, {about.threads} threads; suite {about.suite}, {about.models} models")
    print(f"composites, 5-fold:          {errors_text(found.within)}")
    print(f"composites, group held out:  {errors_text(found.across)}")
    print(f"single operators, 5-fold:    {errors_text(found.operators)}")
    print(f"90 % of held-out composites: {found.interval[0]:.3f} to {found.interval[1]:.3f} times the estimate\n")


def main() -> None:
    """Calibrate (or take --profile), measure the real models, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", choices=[str(effort) for effort in Effort], default="full")
    parser.add_argument("--profile", help="a calibrated profile; default: calibrate now")
    parser.add_argument("--models", type=Path, default=SHARED / "latency" / "models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="measure anew")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) if given.again else default_root() / "calibration"
        backend, order = (
            HostBackend(given.threads),
            calibrating.CalibrationRequest(Effort(given.effort), given.seed, root),
        )
        if given.profile:
            found = device_profile.load(given.profile, Path.cwd()).latency.calibration
        else:
            with show_progress() as progress:
                found = calibrating.calibrate(backend, order, progress)
        if found is None:
            raise SystemExit(f"{given.profile}: not a calibrated profile")
        models = sorted(given.models.glob("*.tflite"))
        times = measured(models, given.threads)
    told(found)
    rows = [Row(path.name, t, estimate(found, reader.read(path))) for path in models
            if isinstance(t := times[path.name], float)]  # fmt: skip
    show(rows, {name: reason for name, reason in times.items() if isinstance(reason, str)})


if __name__ == "__main__":
    main()
