"""What the tables of each command are shown with: results with long names and long explanations, made by hand.

`python tests/render/terminal_samples.py` writes the snapshots that `test_terminal_snapshots.py` compares with.
"""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepipe.commands.profile import DeviceProfileResult, ModelProfile, OperatorProfile
from edgepipe.commands.sensitivity import SensitivityReport
from edgepipe.commands.verify import Verification
from edgepipe.compress.quantizer.layer_sensitivity import LayerSensitivity, RoundingError
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.cost import Cost
from edgepipe.core.metric import Evidence, Finding, Judgement, Limit, Metric, Suggestion, judge, unavailable_metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.render import devices, profile, sensitivity, stages, verify
from edgepipe.render.report import Report, StageReport
from edgepipe.render.terminal import show_report, show_tables

FOLDER = Path(__file__).resolve().parents[1] / "snapshots" / "terminal"
WIDTHS = ("80", "120", "200", "piped")
DEVICES = ("nucleo-l4r5zi", "ethos-u55-128", "raspberry-pi-4-tflite-runtime", "stm32h747i-disco-x-cube-ai-8", "host",
           "pixel-4")  # fmt: skip
LAYERS = ("conv1", "block_13_depthwise_conv2d_with_batch_norm", "encoder/attention/query/dense", "predictions")
FITTED = (
    "fitted to 4 measurements (MLPerf Tiny inference results, raw logs by MLCommons, v1.1, microTVM with CMSIS-NN: "
    "the same kernels, another runtime); error on model families not used in the fit: median 18.67 %, 90 % within "
    "51.56 %; EXTRAPOLATES: no fitted model has MAX_POOL_2D; no fitted model has MEAN"
)
PLANNED = (
    "least tensor arena in 32 bits: planned by TensorFlow Lite Micro's own allocator on this 64-bit host, which "
    "records 6208 bytes, its structures counted in their 32-bit sizes"
)


def metric(name: str, value: float, unit: Dimension, evidence: Evidence, **more: Any) -> Metric:
    return Metric(name=name, value=value, unit=unit, evidence=evidence, how=more.pop("how", "bytes of the .tflite"),
                  **more)  # fmt: skip


def device_metrics() -> tuple[Metric, ...]:
    """Latency, RAM and flash on four devices, each in another way."""
    latency, ram, flash = (("latency", Dimension.SECONDS), ("ram", Dimension.BYTES), ("flash", Dimension.BYTES))
    return (
        metric(*latency[:1], 0.012, latency[1], Evidence.ESTIMATED, device=DEVICES[0], interval=(0.00896, 0.0161),
               how=FITTED),
        metric(*ram[:1], 5151, ram[1], Evidence.SIMULATED, device=DEVICES[0], how=PLANNED),
        metric(*flash[:1], 109568, flash[1], Evidence.ESTIMATED, device=DEVICES[0], interval=(92057.6, 168960.0)),
        metric(*latency[:1], 46.6e-6, latency[1], Evidence.SIMULATED, device=DEVICES[1],
               how="23,300 cycles at 500 MHz by the cycle model of Vela 5.2.0"),
        metric(*flash[:1], 24064, flash[1], Evidence.SIMULATED, device=DEVICES[1]),
        unavailable_metric(latency[0], latency[1], "no board is connected: edgepipe measures only `host`; run the "
                           "model there and compare", DEVICES[2]),
        metric(*flash[:1], 50483, flash[1], Evidence.EXACT, device=DEVICES[2]),
        metric(*latency[:1], 8.22e-6, latency[1], Evidence.MEASURED, device="host", how="48,021 runs, 1 thread"),
    )  # fmt: skip


FINDINGS = (
    Finding(rule="npu-fallback", place="BATCH_MATMUL #17 (encoder/attention/query/dense)", device=DEVICES[1],
            observed="runs on the Cortex-M55: its second input is not constant, which the accelerator demands",
            suggestion="make the second input a constant, or let the layer run on the core, which is slower"),
    Finding(rule="release", place="FULLY_CONNECTED #30", device=DEVICES[2], judgement=Judgement.UNKNOWN,
            observed="version 9 is not in the table of tflite-runtime 2.14.0"),
)  # fmt: skip


def limits() -> list[Limit]:
    values: list[dict[str, Any]] = [
        {"metric": "accuracy", "unit": "fraction", "bound": "min", "value": 0.97},
        {"metric": "size", "unit": "bytes", "bound": "max", "value": 32768},
        {"metric": "latency", "unit": "seconds", "bound": "max", "value": 0.012, "device": DEVICES[0]},
        {"metric": "latency", "unit": "seconds", "bound": "max", "value": 0.02, "device": DEVICES[2]},
    ]
    return [Limit.model_validate(value) for value in values]


SUGGESTIONS = (
    Suggestion(limit="size <= 32.0 KiB", text="about 24 % of the channels less (`prune: {granularity: channel, target: "
               "{flash: 32.0 KiB}}`); 64% of the weights are in 'small_cnn/quant_conv3/Conv2D'"),
)  # fmt: skip


def model_metrics() -> tuple[Metric, ...]:
    return (
        metric("accuracy", 0.9944, Dimension.FRACTION, Evidence.MEASURED, details={"split": "test"},
               how="359 samples of the test split, LiteRT xnnpack, 1 thread, batches of 32"),
        metric("size", 50483, Dimension.BYTES, Evidence.EXACT),
    )  # fmt: skip


def report() -> Report:
    """A run of five stages that missed two limits, with layer names that are as long as real ones."""
    quality = {"details": {"split": "validation"}}
    trained = [metric("accuracy", value, Dimension.FRACTION, Evidence.MEASURED, **quality) for value in (0.99, 0.98)]
    counts = (metric("parameters", 42986, Dimension.COUNT, Evidence.EXACT),
              metric("nonzero_parameters", 11666, Dimension.COUNT, Evidence.EXACT),
              metric("sparsity", 0.75, Dimension.FRACTION, Evidence.EXACT))  # fmt: skip
    zeros = Table(title="Zeros", columns=("layer", "elements", "zeros", "share"),
                  rows=tuple((name, 13824, 10368, "75.00%") for name in LAYERS))  # fmt: skip
    validated = (*model_metrics(), *device_metrics())
    outcomes = {
        "model": Outcome(),
        "train": Outcome(metrics=(trained[0], *counts[:1])),
        "prune_to_three_quarters": Outcome(
            metrics=(trained[1], *counts), tables=(zeros,), notes=("masks by tfmot's prune_low_magnitude",)
        ),
        "convert": Outcome(notes=("zeros are kept in 3 of 4 kernels: conv1, conv2, conv3",)),
        "validate": Outcome(metrics=validated, findings=FINDINGS,
                            verdicts=tuple(judge(limit, list(validated)) for limit in limits())),
    }  # fmt: skip
    return Report(
        name="digits", pipeline="pipelines/digits.yaml", seed=7, created="2026-11-28T09:53:23+00:00",
        versions={"edgepipe": "0.1.0"}, met=False, model="model.tflite",
        suggestions=SUGGESTIONS,
        stages=tuple(_stage_report(name, outcome) for name, outcome in outcomes.items()),
    ).in_folder(Path("runs/digits/20261128-095323-a14fd98f"))  # fmt: skip


def _stage_report(name: str, outcome: Outcome) -> StageReport:
    kind = ArtifactKind.TFLITE if name in ("convert", "validate") else ArtifactKind.KERAS
    return StageReport(
        name=name, type=name, status="ran", kind=kind, digest="ab" * 32, made="2026-11-28T09:53:23+00:00",
        options={"devices": DEVICES[:3]} if name == "validate" else {}, outcome=outcome,
        cost=Cost(wall=27.2, cpu=25.1, peak_memory=764 * 2**20),
    )  # fmt: skip


def model_profile() -> ModelProfile:
    operators = (
        OperatorProfile(operator="BATCH_MATMUL #17", runs_on="CPU", seconds=3.1e-5, reason=FINDINGS[0].observed,
                        suggestion=FINDINGS[0].suggestion),
        OperatorProfile(operator="CONV_2D #0", runs_on="NPU", seconds=1.2e-5),
    )  # fmt: skip
    return ModelProfile(
        path="runs/digits/latest/model.tflite", notes=(), seconds={},
        devices=tuple(
            DeviceProfileResult(
                device=name, description="", runtime="", metrics=_metrics_of(name), operators=operators,
                findings=tuple(finding for finding in FINDINGS if finding.device == name),
            )
            for name in DEVICES[:3]
        ),
    )  # fmt: skip


def _metrics_of(device: str) -> tuple[Metric, ...]:
    known = {m.name: m for m in device_metrics() if m.device == device}
    units = {"latency": Dimension.SECONDS, "ram": Dimension.BYTES, "flash": Dimension.BYTES}
    missing = {name: unavailable_metric(name, unit, "not modelled", device) for name, unit in units.items()}
    return tuple({**missing, **known}.values())


def verification() -> Verification:
    metrics = (*model_metrics()[1:], *device_metrics())
    return Verification(path="runs/digits/latest/model.tflite", devices=DEVICES[:3], metrics=metrics, findings=FINDINGS,
                        suggestions=SUGGESTIONS,
                        verdicts=tuple(judge(limit, list(metrics)) for limit in limits()[1:]))  # fmt: skip


def sensitivity_report() -> SensitivityReport:
    error = RoundingError(mse=1e-5, snr=41.23, cosine=0.999962, worst_channel=29.8)
    layers = tuple(
        LayerSensitivity(layer=name, operator="FULLY_CONNECTED", macs=1048576, alone=1.23e-3, left_out=4.56e-4,
                         errors={"weights": error, "weights_per_tensor": error, "activation": error},
                         quality_alone=0.9876, quality_left_out=0.9912)
        for name in LAYERS
    )  # fmt: skip
    return SensitivityReport(model="model.keras", scheme="int8", calibration="min_max", layers=layers, whole=2.1e-3,
                             quality="accuracy", quality_float=0.9944, quality_whole=0.9888, notes=(),
                             how="512 samples through LiteRT 2.3.0, float and int8")  # fmt: skip


def _show_devices() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_profile, "device_names", lambda: list(DEVICES))
        show_tables(devices.list_tables())


SHOW: dict[str, Callable[[], None]] = {
    "run": lambda: show_report(report()),
    "run_full": lambda: show_report(report(), full=True),
    "profile": lambda: show_tables(profile.tables(model_profile(), every_operator=False)),
    "profile_all": lambda: show_tables(profile.tables(model_profile(), every_operator=False, full=False)),
    "verify": lambda: show_tables(verify.tables(verification())),
    "sensitivity": lambda: show_tables(sensitivity.tables(sensitivity_report())),
    "device_list": _show_devices,
    "stages": lambda: show_tables(stages.tables(None)),
}


def shown(name: str, width: str) -> str:
    """What a command prints in so many columns, or in a pipe."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.delenv("COLUMNS", raising=False)
        if width != "piped":
            patch.setenv("COLUMNS", width)
        SHOW[name]()
    return printed.getvalue()


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    FOLDER.mkdir(exist_ok=True)
    for sample in SHOW:
        for columns in WIDTHS:
            (FOLDER / f"{sample}_{columns}.txt").write_text(shown(sample, columns), encoding="utf-8")
