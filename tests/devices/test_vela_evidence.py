"""Metrics and findings of the Ethos-U profiles, their budget, and the stage `compile`, through the real Vela."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vela_models
from commands import Command

from edgepipe.core import references
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Limit, Metric
from edgepipe.core.units import Dimension
from edgepipe.devices import device_metrics, device_profile
from edgepipe.devices.device_metrics import DeviceMetrics
from edgepipe.tflite import reader

pytest.importorskip("ethosu.vela", reason="the extra `npu` is not installed")

ROOT = Path(__file__).parents[2]
LATENCY_FOLDER = Path(os.environ.get("EDGEPIPE_SHARED", ROOT.parent / "shared")) / "latency"
ETHOS = [name for name in device_profile.device_names() if "ethos-u" in name]
MIXED_OPERATORS = ["RELU", "LOG_SOFTMAX", "LOGISTIC", "LOG_SOFTMAX"]


@pytest.fixture(scope="module")
def vela_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for these tests: what it does is proven in test_vela.py."""
    return tmp_path_factory.mktemp("vela_cache")


@pytest.fixture(autouse=True)
def _own_cache(vela_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPIPE_CACHE_DIR", str(vela_cache))


def gather_metrics(model: Path, *devices: str, limits: list[Limit] | None = None) -> DeviceMetrics:
    profiles = [device_profile.load(name, ROOT) for name in devices]
    return device_metrics.gather(reader.read(model), profiles, limits)


def find_metric(metrics: DeviceMetrics, name: str, device: str) -> Metric:
    return next(m for m in metrics.metrics if (m.name, m.device) == (name, device))


def test_there_is_a_profile_for_every_accelerator_of_vela() -> None:
    from ethosu.vela.architecture_features import Accelerator

    npus = [npu for name in ETHOS if (npu := device_profile.load(name, ROOT).system.npu) is not None]
    assert {npu.vela.accelerator for npu in npus if npu.vela} == set(Accelerator.member_list())
    assert all(npu.vela and npu.macs_per_cycle == int(npu.vela.accelerator.rpartition("-")[2]) for npu in npus)


@pytest.mark.slow
@pytest.mark.parametrize("device", ETHOS)
def test_an_integer_model_runs_completely_on_every_ethos_u(device: str, models: Path) -> None:
    metrics = gather_metrics(models / "int8.tflite", device)
    assert metrics.findings == ()
    share, latency = find_metric(metrics, "npu_operators", device), find_metric(metrics, "latency", device)
    assert (share.value, share.evidence, share.unit) == (1.0, Evidence.EXACT, Dimension.FRACTION)
    assert latency.evidence is Evidence.SIMULATED
    npu = device_profile.load(device, ROOT).system.npu
    assert npu is not None
    assert npu.vela is not None
    cycles, clock = float(latency.details["cycles"]), float(latency.details["clock"])
    assert clock == npu.clock
    assert latency.value == pytest.approx(cycles / clock + npu.vela.invoke)
    assert "memories are modelled for" not in latency.how, "the profile has the clock of Vela's configuration"
    ram, flash = find_metric(metrics, "ram", device), find_metric(metrics, "flash", device)
    assert ram.value == float(ram.details["sram"]) + float(ram.details["dram"]) > 0
    assert (flash.value or 0) > float(flash.details["weights"]) > 0


def test_npu_operators_of_the_u85_are_those_of_vela(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ethosu.vela", "--supported-ops-report"]
    subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True)
    table = (tmp_path / "SUPPORTED_OPS.md").read_text().split("## Ethos-U85 TFLite Summary")[1].split("TOSA")[0]
    npu = device_profile.load("ethos-u85-256", ROOT).system.npu
    assert npu is not None
    assert npu.operators is not None
    assert set(re.findall(r"^\| ([A-Z0-9_]+) \| \[", table, re.MULTILINE)) == set(npu.operators)


def test_driver_overhead_is_added_and_reported(models: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(
        "inherit: ethos-u55-128\nname: slow\ndescription: d\nsources: [s]\n"
        "system: {npu: {clock: 250 MHz, vela: {invoke: 2 ms}}}\n"
    )
    metrics = device_metrics.gather(reader.read(models / "int8.tflite"), [device_profile.load("slow.yaml", tmp_path)])
    latency = find_metric(metrics, "latency", "slow")
    assert latency.value == pytest.approx(float(latency.details["cycles"]) / 250e6 + 2e-3)
    assert "; whose memories are modelled for 500 MHz; plus 2.00 ms to invoke" in latency.how


def test_a_mixed_model_names_what_its_latency_excludes(tmp_path: Path) -> None:
    metrics = gather_metrics(vela_models.chain(tmp_path / "mixed.tflite", MIXED_OPERATORS), "ethos-u55-128")
    latency, share = (
        find_metric(metrics, "latency", "ethos-u55-128"),
        find_metric(metrics, "npu_operators", "ethos-u55-128"),
    )
    assert latency.how.endswith("NOT included: the time of LOG_SOFTMAX #1, LOG_SOFTMAX #3 on the Cortex-M55")
    assert share.value == 0.5
    assert share.how.startswith("2 of 4 operators")
    assert [(f.rule, f.place) for f in metrics.findings] == [
        ("npu-fallback", "LOG_SOFTMAX #1"),
        ("npu-fallback", "LOG_SOFTMAX #3"),
    ]
    assert metrics.findings[0].observed == (
        "Vela leaves it to the core: Ethos-U55-128 does not compute LOG_SOFTMAX (Unsupported opType); "
        "it runs on the Cortex-M55"
    )


def test_an_operator_without_any_kernel_is_reported(tmp_path: Path) -> None:
    npu_only_metrics = gather_metrics(vela_models.chain(tmp_path / "relu.tflite", ["RELU_0_TO_1"]), "ethos-u55-128")
    assert npu_only_metrics.findings == (), "the core has no kernel for it, but Vela supports it"
    finding = gather_metrics(vela_models.chain(tmp_path / "sign.tflite", ["RELU", "SIGN"]), "ethos-u55-128").findings[
        -1
    ]
    assert finding.place == "SIGN #1"
    assert finding.observed.endswith("and vela has no kernel for it on the Cortex-M55: the model does not run")


def test_a_model_without_npu_operators_has_no_latency(models: Path) -> None:
    metrics = gather_metrics(models / "float.tflite", "ethos-u85-256")
    assert find_metric(metrics, "npu_operators", "ethos-u85-256").value == 0
    for name in ("latency", "ram"):
        assert find_metric(metrics, name, "ethos-u85-256").how.startswith("no operator of the model runs on ")


def test_a_loop_has_no_latency(tmp_path: Path) -> None:
    metrics = gather_metrics(vela_models.with_loop(tmp_path / "loop.tflite"), "ethos-u55-64")
    assert find_metric(metrics, "latency", "ethos-u55-64").how.startswith(
        "the model has 3 subgraphs (loops or branches)"
    )
    assert find_metric(metrics, "ram", "ethos-u55-64").value is None


def test_a_model_without_operators(tmp_path: Path) -> None:
    metrics = gather_metrics(vela_models.without_operators(tmp_path / "empty.tflite"), "ethos-u55-64")
    assert find_metric(metrics, "npu_operators", "ethos-u55-64").how == "the model has no operators"


def test_a_crash_is_a_finding_and_no_number(tmp_path: Path) -> None:
    metrics = gather_metrics(vela_models.crashing(tmp_path / "boom.tflite"), "ethos-u55-128")
    (crash,) = [finding for finding in metrics.findings if finding.rule == "vela"]
    assert crash.place == "boom.tflite"
    assert "for ethos-u55-128 on boom.tflite: the child process crashed with SIGSEGV" in crash.observed
    for name in ("latency", "ram", "flash", "npu_operators"):
        assert find_metric(metrics, name, "ethos-u55-128").how == crash.observed


@pytest.mark.slow
@pytest.mark.skipif(not LATENCY_FOLDER.is_dir(), reason="no shared/latency: set EDGEPIPE_SHARED")
def test_the_published_models_that_crash_vela() -> None:
    files = sorted((LATENCY_FOLDER / "models").glob("*ssd_mobilenet_v1*.tflite"))
    assert len(files) == 5
    for file in files:
        assert "vela" in {finding.rule for finding in gather_metrics(file, "ethos-u55-128").findings}


@pytest.mark.slow
@pytest.mark.skipif(not LATENCY_FOLDER.is_dir(), reason="no shared/latency: set EDGEPIPE_SHARED")
def test_imx93_against_nxps_times() -> None:
    with (LATENCY_FOLDER / "measured.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if (row["device"], row["runtime"]) == ("i.MX 93", "NPU")]
    errors = []
    for row in (row for row in rows if row["file"]):
        metrics = gather_metrics(LATENCY_FOLDER / row["file"], "imx93-ethos-u65")
        if find_metric(metrics, "npu_operators", "imx93-ethos-u65").value == 1:
            seconds = find_metric(metrics, "latency", "imx93-ethos-u65").value or 0
            errors.append(abs(seconds / (float(row["latency_ms"]) / 1e3) - 1))
    assert len(errors) == 5
    assert sum(errors) / len(errors) == pytest.approx(0.26, abs=0.005), "the error that the profile states"


def test_without_vela_the_operator_list_is_used(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "installed_version", lambda _: "absent")
    metrics = gather_metrics(models / "float.tflite", "ethos-u55-128")
    assert find_metric(metrics, "latency", "ethos-u55-128").how.endswith("not installed: pip install 'edgepipe[npu]'")
    fallbacks = [finding for finding in metrics.findings if finding.rule == "npu-fallback"]
    assert fallbacks
    assert all("Ethos-U55-128 does not" in finding.observed for finding in fallbacks)


def test_an_npu_without_vela_has_no_share_and_a_core_no_such_metric(models: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(
        "inherit: nucleo-l4r5zi\nname: other\ndescription: d\nsources: [s]\n"
        "system: {npu: {name: X, operators: [CONV_2D], dtypes: [int8]}}\n"
    )
    devices = [device_profile.load(name, tmp_path) for name in ("other.yaml", "nucleo-l4r5zi")]
    metrics = device_metrics.gather(reader.read(models / "int8.tflite"), devices)
    shares = {m.device: m for m in metrics.metrics if m.name == "npu_operators"}
    assert list(shares) == ["other"]
    assert shares["other"].value is None
    assert "npu-fallback" in {finding.rule for finding in metrics.findings}


def test_settings_that_vela_does_not_know_name_the_device(models: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(
        "inherit: ethos-u55-128\nname: odd\ndescription: d\nsources: [s]\n"
        "system: {npu: {vela: {memory_mode: Shared_SRAM}}}\n"
    )
    with pytest.raises(InputError, match=r"^device 'odd': Vela .* Memory_Mode\.Shared_SRAM not found"):
        device_metrics.gather(reader.read(models / "int8.tflite"), [device_profile.load("odd.yaml", tmp_path)])


def test_a_result_that_cannot_be_cached_is_a_note(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    device = device_profile.load("ethos-u55-128", ROOT)
    metrics = device_metrics.gather(
        reader.read(models / "int8.tflite"), [device], cache=Cache(tmp_path / "file" / "cache")
    )
    (note,) = metrics.notes
    assert note.startswith("Vela's output was not cached")


def share_limit(minimum: float) -> Limit:
    unit = Dimension.FRACTION
    return Limit(metric="npu_operators", unit=unit, bound="min", value=minimum, device="ethos-u55-128")


def test_a_budget_may_allow_operators_on_the_core(tmp_path: Path) -> None:
    model = vela_models.chain(tmp_path / "mixed.tflite", MIXED_OPERATORS)
    tolerated_metrics = gather_metrics(model, "ethos-u55-128", limits=[share_limit(0.5)])
    assert tolerated_metrics.findings == ()
    assert len(tolerated_metrics.notes) == 2
    assert tolerated_metrics.notes[0].endswith("; the budget allows it")
    strict_metrics = gather_metrics(model, "ethos-u55-128", limits=[share_limit(0.6)])
    assert len(strict_metrics.findings) == 2
    assert strict_metrics.notes == ()


PIPELINE = """\
name: npu
model: MODEL
stages:
  - compile: {device: ethos-u55-128}
  - validate: {devices: [ethos-u55-128], budget: {ethos-u55-128: {npu_operators: 100 %}}}
"""


def run(command: Command, folder: Path, model: Path, text: str = PIPELINE) -> tuple[Any, dict[str, Any]]:
    (folder / "p.yaml").write_text(text.replace("MODEL", str(model)))
    cli_result = command(
        "run", folder / "p.yaml", "--cache-dir", folder / "cache", "--output-dir", folder / "out", "--json"
    )
    return cli_result, json.loads(cli_result.out) if cli_result.out else {}


@pytest.mark.slow  # loads TensorFlow
def test_compile_in_a_pipeline(command: Command, models: Path, tmp_path: Path) -> None:
    cli_result, report = run(command, tmp_path, models / "int8.tflite")
    assert cli_result.code == 0, cli_result.err
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert (stages["compile"]["kind"], stages["validate"]["kind"]) == ("vela", "vela")
    compiled_model = reader.read(tmp_path / "out" / stages["compile"]["artifact"])
    assert {operator.name for operator in compiled_model} == {"ethos-u"}
    flash = next(m for m in stages["validate"]["outcome"]["metrics"] if m["name"] == "flash")
    assert flash["value"] == compiled_model.bytes
    cached_stages = [entry.stage for entry in Cache(tmp_path / "cache").list_entries()]
    assert cached_stages.count("vela ethos-u55-128") == 1, "validate reuses the output of compile"
    _, report = run(command, tmp_path, models / "int8.tflite")
    assert {stage["status"] for stage in report["stages"]} == {"cached"}
    two_device_pipeline = PIPELINE.replace("devices: [ethos-u55-128]", "devices: [ethos-u55-64, ethos-u55-128]")
    _, report = run(command, tmp_path, models / "int8.tflite", two_device_pipeline)
    assert (
        "the model was compiled for ethos-u55-128; ethos-u55-64: judged by a compilation of its own"
        in (report["stages"][-1]["outcome"]["notes"])
    )


@pytest.mark.slow
@pytest.mark.parametrize("model_kind", ["float", "mixed"])
def test_npu_operators_100_percent_is_not_met(model_kind: str, command: Command, models: Path, tmp_path: Path) -> None:
    model = models / "float.tflite"
    if model_kind == "mixed":
        model = vela_models.chain(tmp_path / "mixed.tflite", MIXED_OPERATORS)
    cli_result, report = run(command, tmp_path, model)
    assert cli_result.code == 3
    outcome = report["stages"][-1]["outcome"]
    (verdict,) = outcome["verdicts"]
    assert not verdict["met"]
    assert "is under the limit" in verdict["reason"]
    fallbacks = [finding for finding in outcome["findings"] if finding["rule"] == "npu-fallback"]
    assert len(fallbacks) == (2 if model_kind == "mixed" else len(reader.read(model).operators))
    assert all("Unsupported opType" in f["observed"] or "Float32" in f["observed"] for f in fallbacks)
    assert fallbacks[0]["place"] in verdict["metric"]["how"]


def test_compile_of_a_model_that_crashes_vela_ends_in_one_line(command: Command, tmp_path: Path) -> None:
    text = PIPELINE[: PIPELINE.index("  - validate")]
    cli_result, _ = run(command, tmp_path, vela_models.crashing(tmp_path / "boom.tflite"), text)
    assert cli_result.code == 2
    assert (
        "for ethos-u55-128 on model.tflite: the child process crashed with SIGSEGV" in cli_result.err.splitlines()[-1]
    )
    assert "Traceback" not in cli_result.err


def test_the_profile_shown_on_the_page_loads(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(name: mine\n.*?)```", (ROOT / "docs" / "npu.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    npu = device_profile.load("mine.yaml", tmp_path).system.npu
    assert npu is not None
    assert npu.vela is not None
    assert (npu.clock, npu.vela.accelerator) == (400e6, "ethos-u55-256")
    assert npu.vela.invoke == pytest.approx(150e-6)
