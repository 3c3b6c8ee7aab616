"""Predicts published latencies of models of a family that the fit has not seen: leave one family out.

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

from edgepipe.core.arrays import Array
from edgepipe.devices.latency import cross_validation, measurement_table, profile_fragment
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
    print(f"{'':34} {'points':>6}  {'one rate a MAC':>15}  {'plain linear':>21}  {'edgepipe':>21}  inside  width")
    print(f"{'':34} {'':6}  {'median  p90':>15}  {'median  p90  worst':>21}  {'median  p90  worst':>21}")
    pooled: list[tuple[bool, float]] = []
    for case in CASES:
        found = _report(case, source, models)
        pooled += found if case.headline else []
        if asked.write:
            built = profile_fragment.fit_table(source, models, case.request)
            profile_fragment.write_fragment(built.fit, ROOT / "devices" / "fits" / f"{case.name}.yaml")
    inside, width = np.mean([one for one, _ in pooled]), np.median([wide for _, wide in pooled])
    print(f"first seven pooled: {inside:.1%} of {len(pooled)} held-out rows inside their 90 % interval; "
          f"median width x/÷ {np.exp(width):.2f}")  # fmt: skip


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


def _report(case: Case, source: Path, models: Path) -> list[tuple[bool, float]]:
    """Print one line; for each held-out row whether it is inside, and half its width as a logarithm."""
    request, kind = case.request, PROCESSOR_KINDS[case.request.kind]
    measured = measurement_table.read(source)
    rows = profile_fragment.select_rows(measured, models, request).fit_rows
    everyone = cross_validation.leave_families_out(kind, request.clock_by_group, rows)
    held_out = [one for one in everyone if one.fit_row.group == request.target_group]
    reach = cross_validation.interval_factors(held_out)
    inside = [
        (one.standardized_error <= reach[one.fit_row.family], reach[one.fit_row.family] * one.deviation)
        for one in held_out
    ]
    ours = cross_validation.summarize_errors(held_out)
    per_mac, plain = _stock(source, request)
    print(
        f"{case.name:34} {ours.point_count:6}  {_sizes(per_mac, 2):>15}  {_sizes(plain, 3):>21}  "
        f"{ours.median:7.1%} {ours.p90:6.1%} {ours.worst:6.1%}  {sum(i for i, _ in inside):3}/{len(inside):<3} "
        f"x/÷ {np.exp(np.median([wide for _, wide in inside])):.2f}"
    )
    for one in held_out:
        if abs(np.log1p(one.relative_error)) > np.log(2) and not one.extrapolation_reasons:
            print(f"    off by more than 2x and does not say that it extrapolates: {one.fit_row.model_name}")
    return inside


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
