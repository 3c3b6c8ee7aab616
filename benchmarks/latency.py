"""Predicts published latencies of models that the fit has not seen: a family, or the largest models of each device.

    python benchmarks/latency.py [--shared FOLDER] [--write]

FOLDER holds `latency/measured.csv` and its models ($EDGEPIPE_SHARED; default: `shared` beside the repository). Rows
whose file is nowhere published are built again first (their shapes; once, some minutes, TensorFlow). Beside edgepipe's
fit: one rate per MAC, and a plain non-negative linear fit of MACs by kind and operators. --write puts the fits into
devices/fits.
"""

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from edgepipe.core.arrays import Array
from edgepipe.devices.latency import cross_validation, measurement_table, profile_fragment
from edgepipe.devices.latency.cross_validation import HeldOutPrediction
from edgepipe.devices.latency.latency_fit import FitRow
from edgepipe.devices.latency.processor_kinds import PROCESSOR_KINDS
from edgepipe.devices.latency.profile_fragment import FitRequest

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("macs_pw", "macs_dw", "macs_conv3x3", "macs_conv0", "macs_fc", "n_ops")
ZOO = "ST's model zoo, stm32ai-modelzoo on GitHub (2023 to 2025), tables of its README files"
MLPERF = "MLPerf Tiny inference results, raw logs by MLCommons, "
NXP = "NXP AN14700 and UG10166, tables of inference times on i.MX"
TFLITE = "TensorFlow Lite's hosted models, performance on Android (2019)"
X_CUBE_AI = {
    "STM32H747I-DISCO@400, 10.0.0": 4e8,
    "STM32H747I-DISCO@400.0, 8.1.0": 4e8,
    "STM32H747I-DISCO@400.0, 7.3.0": 4e8,
    "B-U585I-IOT02A@160, 10.0.0": 1.6e8,
    "B-U585I-IOT02A@160.0, 7.3.0": 1.6e8,
    "MLPT v1.3 STMicroele NUCLEO_L4R5ZI-P 120 MHz X-CUBE-AI v10.2": 1.2e8,
    "MLPT v1.3 STMicroele NUCLEO_U575ZI_Q 160 MHz X-CUBE-AI v10.2": 1.6e8,
    "MLPT v1.2 STMicroele NUCLEO_H7A3ZI_Q 280 MHz X-CUBE-AI v9.0.0": 2.8e8,
}
NXP_CPU = {"i.MX 8M Plus, CPU1": 1.8e9, "i.MX 8M Plus, CPU4": 1.8e9, "i.MX 93, CPU1": 1.7e9}
CMSIS_NN = {
    "MLPT v1.1 Krai NUCLEO-L4R5ZI_MICROTVM-CMSIS-N 120 MHz microTVM": 1.2e8,
    "MLPT v1.1 Krai NRF5340-DK_MICROTVM-CMSIS-NN 128 MHz microTVM": 1.28e8,
}
KERNELS = "v1.1, microTVM with CMSIS-NN: the same kernels, another runtime"


@dataclass(frozen=True)
class Case:
    """One device and runtime: the name of its fit, what to ask for, and whether its rows are the seven of the issue."""

    name: str
    request: FitRequest
    headline: bool = False


def _case(name: str, target: str, kind: str, clock: float, source: str, headline: bool = False, **more: Any) -> Case:
    return Case(name, FitRequest(target_group=target, kind=kind, clock=clock, source=source, **more), headline)


def _shared(name: str, target: str, kind: str, group: dict[str, float], source: str, **more: Any) -> Case:
    """A case that is fitted together with its neighbours."""
    rest = {other: clock for other, clock in group.items() if other != target}
    return _case(name, target, kind, group[target], source, neighbour_clocks=rest, **more)


def _st(name: str, target: str, source: str, headline: bool = False) -> Case:
    return _shared(name, target, "cortex-m", X_CUBE_AI, source, headline=headline, on_chip_weights=2**20)


def _nxp(name: str, target: str) -> Case:
    # The anomaly detection rows sit on a timer's floor of 0.15 ms.
    return _shared(name, target, "cortex-a-xnnpack", NXP_CPU, NXP, excluded_families=frozenset({"autoencoder"}))


@dataclass(frozen=True)
class Interval:
    """A held-out prediction with the factor of its interval; `by_size`: one of the largest models was held out."""

    prediction: HeldOutPrediction
    factor: float
    by_size: bool

    @property
    def covers(self) -> bool:
        """Whether the measured latency is inside."""
        return self.prediction.standardized_error <= self.factor

    @property
    def half_width(self) -> float:
        """As a logarithm."""
        return self.factor * self.prediction.deviation


CASES = (
    _st("stm32h747i-disco-x-cube-ai-10", "STM32H747I-DISCO@400, 10.0.0", ZOO, True),
    _st("stm32h747i-disco-x-cube-ai-8", "STM32H747I-DISCO@400.0, 8.1.0", ZOO, True),
    _case("stm32mp157f-dk2-litert", "STM32MP157F-DK2@800.0, X-LINUX5.0", "cortex-a-scalar-depthwise", 8e8, ZOO, True,
          neighbour_clocks={"STM32MP157F-DK2@800.0, old": 8e8}),
    _case("stm32mp257f-dk2-openvx", "STM32MP257F-DK2@800, OpenVX", "npu-beside-cpu", 8e8, ZOO, True),
    _case("stm32n6570-dk-neural-art", "STM32N6570-DK@1000, N6", "npu-in-mcu", 1e9, ZOO, True),
    _case("pixel-3-float32", "Pixel 3, cpu4T|fp32|TFLite, Andr", "cortex-a-float", 2.5e9, TFLITE, True,
          dtype="float32"),
    _case("pixel-3-int8", "Pixel 3, cpu4T|int8|TFLite, Andr", "cortex-a-int8", 2.5e9, TFLITE, True),
    _st("nucleo-l4r5zi-x-cube-ai-10", "MLPT v1.3 STMicroele NUCLEO_L4R5ZI-P 120 MHz X-CUBE-AI v10.2", MLPERF + "v1.3"),
    _st("nucleo-u575zi-q-x-cube-ai-10", "MLPT v1.3 STMicroele NUCLEO_U575ZI_Q 160 MHz X-CUBE-AI v10.2",
        MLPERF + "v1.3"),
    _st("nucleo-h7a3zi-q-x-cube-ai-9", "MLPT v1.2 STMicroele NUCLEO_H7A3ZI_Q 280 MHz X-CUBE-AI v9.0.0",
        MLPERF + "v1.2"),
    _st("b-u585i-iot02a-x-cube-ai-10", "B-U585I-IOT02A@160, 10.0.0", ZOO),
    *(_shared(name, target, "cortex-m", CMSIS_NN, MLPERF + KERNELS)
      for name, target in zip(("nucleo-l4r5zi-microtvm", "nrf5340-dk-microtvm"), CMSIS_NN, strict=True)),
    _nxp("imx8mp-litert-1-thread", "i.MX 8M Plus, CPU1"),
    _nxp("imx8mp-litert-4-threads", "i.MX 8M Plus, CPU4"),
    _nxp("imx93-litert-1-thread", "i.MX 93, CPU1"),
    _case("imx8mp-npu", "i.MX 8M Plus, NPU", "npu-beside-cpu", 1e9, NXP, excluded_families=frozenset({"autoencoder"})),
)  # fmt: skip


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = ROOT.parent / "shared"
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("EDGEPIPE_SHARED", beside)))
    parser.add_argument("--write", action="store_true", help="write the fits into devices/fits")
    asked = parser.parse_args()
    source = asked.shared / "latency" / "measured.csv"
    models = _models(source)
    print(f"{'':34} {'':6}  {'one rate a MAC':>15}  {'plain linear':>21}  {'families held out':>21}  "
          f"{'largest held out':>17}  inside, width")  # fmt: skip
    print(f"{'':34} {'models':>6}  {'median  p90':>15}  {'median  p90  worst':>21}  {'median  p90  worst':>21}  "
          f"{'n  median  worst':>17}")  # fmt: skip
    intervals: list[Interval] = []
    for case in CASES:
        intervals += _report(case, source, models)
        if asked.write:
            built = profile_fragment.fit_table(source, models, case.request)
            profile_fragment.write_fragment(built.fit, ROOT / "devices" / "fits" / f"{case.name}.yaml")
    for name, part in (
        ("families held out", [one for one in intervals if not one.by_size]),
        ("largest held out", [one for one in intervals if one.by_size]),
        ("all", intervals),
    ):
        print(f"{name:34} {_coverage(part)}  {np.mean([one.covers for one in part]):.1%} inside a 90 % interval")


def _models(source: Path) -> Path:
    """A folder with every model of the table: those published, and the others built again."""
    from rebuilt import write

    folder = Path(os.environ.get("EDGEPIPE_CACHE_DIR", Path.home() / ".cache" / "edgepipe")) / "rebuilt"
    folder.mkdir(parents=True, exist_ok=True)
    published = folder / "models"
    published.unlink(missing_ok=True)
    published.symlink_to((source.parent / "models").resolve())
    with source.open(encoding="utf-8", newline="") as file:
        wanted = {line["model"]: int(line["macs"]) for line in csv.DictReader(file) if not line["file"]}
    for problem in filter(None, (write(name, macs, folder) for name, macs in wanted.items())):
        print("left out:", problem)
    return folder


def _report(case: Case, source: Path, models: Path) -> list[Interval]:
    """Print one line; the interval of each held-out prediction of the target."""
    request = case.request
    measured = measurement_table.read(source)
    rows = profile_fragment.select_rows(measured, models, request).fit_rows
    held_out = _held_out(request, rows)
    by_family, by_size = (_of_target(predictions, request) for predictions in held_out)
    reach = cross_validation.interval_factors(by_family, {one.fit_row.family for one in by_size})
    intervals = [Interval(one, reach[one.fit_row.family], one in by_size) for one in (*by_family, *by_size)]
    ours = cross_validation.summarize_errors(by_family)
    per_mac, plain = _stock(source, request)
    print(
        f"{case.name:34} {ours.point_count:6}  {_sizes(per_mac, 2):>15}  {_sizes(plain, 3):>21}  "
        f"{ours.median:7.1%} {ours.p90:6.1%} {ours.worst:6.1%}  {len(by_size):3} {_median_and_worst(by_size):>13}  "
        f"{_coverage(intervals)}"
    )
    for one in (*by_family, *by_size):
        if abs(np.log1p(one.relative_error)) > np.log(2) and not one.extrapolation_reasons:
            print(f"    off by more than 2x and does not say that it extrapolates: {one.fit_row.model_name}")
    return intervals


def _held_out(request: FitRequest, rows: list[FitRow]) -> tuple[list[HeldOutPrediction], list[HeldOutPrediction]]:
    """The predictions with families and with the largest models held out; devices fitted together share them."""
    key = (request.kind, frozenset(request.clock_by_group.items()))
    if key not in _HELD_OUT:
        kind, clocks = PROCESSOR_KINDS[request.kind], request.clock_by_group
        _HELD_OUT[key] = (
            cross_validation.leave_families_out(kind, clocks, rows),
            cross_validation.leave_largest_out(kind, clocks, rows),
        )
    return _HELD_OUT[key]


_HELD_OUT: dict[Any, tuple[list[HeldOutPrediction], list[HeldOutPrediction]]] = {}


def _median_and_worst(predictions: Sequence[HeldOutPrediction]) -> str:
    if not predictions:
        return "-"
    errors = cross_validation.summarize_errors(predictions)
    return f"{errors.median:6.1%} {errors.worst:6.1%}"


def _of_target(predictions: Sequence[HeldOutPrediction], request: FitRequest) -> list[HeldOutPrediction]:
    return [one for one in predictions if one.fit_row.group == request.target_group]


def _coverage(intervals: Sequence[Interval]) -> str:
    """How many are inside, how likely so few are if 90 % should be, and the median half width."""
    inside = sum(one.covers for one in intervals)
    chance = binom.cdf(inside, len(intervals), cross_validation.INTERVAL_COVERAGE)
    width = np.exp(np.median([one.half_width for one in intervals]))
    return f"{inside:3}/{len(intervals):<3} p {chance:.2f} x/÷ {width:.2f}"


def _stock(source: Path, request: FitRequest) -> tuple[Array, Array]:
    """Absolute relative errors, families held out, of one rate per MAC and of a plain linear fit."""
    from scipy.optimize import nnls

    with source.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if _group(line) == request.target_group]
    lines = [line for line in lines if line["family"] not in request.excluded_families]
    seconds, macs = _column(lines, "latency_ms"), _column(lines, "macs")
    features = np.stack([_column(lines, name) for name in PLAIN], axis=1)
    families = np.array([line["family"] for line in lines])
    per_mac, plain = np.zeros(len(lines)), np.zeros(len(lines))
    scale = features.max(axis=0) + (features.max(axis=0) == 0)
    for family in set(families):
        rest, out = families != family, families == family
        per_mac[out] = macs[out] * np.median(seconds[rest] / macs[rest])
        weights, _ = nnls(features[rest] / scale / seconds[rest, None], np.ones(rest.sum()))
        plain[out] = features[out] / scale @ weights
    return abs(per_mac / seconds - 1), abs(plain / seconds - 1)


def _group(line: dict[str, str]) -> str:
    return ", ".join(filter(None, (line["device"].strip(), line["runtime"].strip())))


def _column(lines: Sequence[dict[str, str]], name: str) -> Array:
    return np.array([float(line[name] or 0) for line in lines])


def _sizes(errors: Array, count: int) -> str:
    found = (np.median(errors), np.quantile(errors, 0.9), errors.max())[:count]
    return " ".join(f"{size:6.1%}" for size in found)


if __name__ == "__main__":
    main()
