"""Android through the real adb client, against a daemon of its protocol; and what the benchmark tools print."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import adb_daemon
import pytest
import ssh_server
from commands import Command
from deploy_models import classifier

from edgepipe.core.errors import ExitCode
from edgepipe.deploy.adb_transport import find_client
from edgepipe.deploy.benchmark_output import BenchmarkResult, DelegateUse, parse_output
from edgepipe.deploy.target_url import parse_url

pytestmark = pytest.mark.slow

OF_2018 = """STARTING!
Loaded model /data/local/tmp/m.tflite
Initialized session in 3.867ms
Running benchmark for 1 iterations
count=1 curr=85391
Running benchmark for 50 iterations
count=50 first=83917 curr=83411 min=81000 max=91019 avg=83571.6 std=2219
Average inference timings in us: Warmup: 85391, Init: 3867, no stats: 83571.6
"""
OF_2021 = """STARTING!
Loaded model m.tflite
INFO: Created TensorFlow Lite delegate for GPU.
INFO: Replacing 119 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 1 partitions.
Explicitly applied GPU delegate, and the model graph will be partially executed by the delegate w/ 1 delegate kernels.
The input model file size (MB): 16.9008
Initialized session in 17.187ms.
count=1 curr=3512391

count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, Inference (avg): 2.95034e+06
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory \
footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=4.92969 overall=138.809
"""
OF_2026 = """INFO: STARTING!\r
VERBOSE: Replacing 5 out of 64 node(s) with delegate (TfLiteNnapiDelegate) node, yielding 5 partitions.\r
VERBOSE: Replacing 59 out of 62 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 5 partitions.\r
INFO: count=50 first=45401 curr=8772 min=8499 max=45401 avg=9580.26 std=5119 p5=8534 median=8894 p95=9062\r
\r
INFO: count=108 first=8622 curr=8726 min=8268 max=9464 avg=8708.66 std=193 p5=8407 median=8705 p95=8982\r
\r
INFO: Inference timings in us: Init: 355447, First inference: 45401, Warmup (avg): 9580.26, Inference (avg): 8708.66\r
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102\r
INFO: Overall peak memory footprint (MB) via periodic monitoring: 80.5\r
"""
COMPILED_MODEL = """INFO: [x.cc:1] Replacing 3 out of 3 node(s) with delegate (TfLiteXNNPackDelegate) node.
INFO: [benchmark_litert_model.h:90]
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:94] Model initialization: 23.73 ms
INFO: [benchmark_litert_model.h:96] Warmup (first):       7.04 ms
INFO: [benchmark_litert_model.h:98] Warmup (avg):         7.04 ms (1 runs)
INFO: [benchmark_litert_model.h:100] Inference (avg):      6.20 ms (10 runs)
INFO: [benchmark_litert_model.h:104] Inference (min):      5.40 ms
INFO: [benchmark_litert_model.h:108] Inference (std):      0.92
INFO: [benchmark_litert_model.h:126] Init footprint:       12.00 MB
INFO: [benchmark_litert_model.h:128] Overall footprint:    16.00 MB
INFO: [benchmark_litert_model.h:135] Peak memory usage not available. (peak_mem_mb <= 0)
"""
COMPILED_MODEL_PERCENTILES = """ BENCHMARK RESULTS
========================================
Model initialization:  10.00 ms
Warmup (first):        4.00 ms
Inference (avg):       2.10 ms (50 runs)
Inference (median):    2.00 ms
Inference (p5):        1.90 ms
Inference (p95):       2.60 ms
"""
MIB = 1 << 20
GENERATIONS = {
    OF_2018: BenchmarkResult(0.0835716, 50, initialization=0.003867),
    OF_2021: BenchmarkResult(
        2.95034, 50, initialization=0.017187, first=3.512391, memory=138.809 * MIB,
        delegates=(DelegateUse("TfLiteGpuDelegateV2", 119), DelegateUse("GPU", share="partially")),
    ),
    OF_2026: BenchmarkResult(
        0.00870866, 108, 0.008407, 0.008705, 0.008982, 0.355447, 0.045401, 80.5 * MIB,
        (DelegateUse("TfLiteNnapiDelegate", 5, 64), DelegateUse("TfLiteXNNPackDelegate", 59, 62)),
    ),
    COMPILED_MODEL: BenchmarkResult(
        0.0062, 10, initialization=0.02373, first=0.00704, memory=16 * MIB,
        delegates=(DelegateUse("TfLiteXNNPackDelegate", 3, 3),),
    ),
    COMPILED_MODEL_PERCENTILES: BenchmarkResult(0.0021, 50, 0.0019, 0.002, 0.0026, 0.01, 0.004),
}  # fmt: skip


@pytest.mark.parametrize("text", GENERATIONS, ids=["2018", "2021", "2026", "CompiledModel", "its percentiles"])
def test_the_output_of_every_generation_is_read(text: str) -> None:
    result, expected = parse_output(text), GENERATIONS[text]
    assert result is not None
    for name in ("average", "p5", "median", "p95", "initialization", "first", "memory"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name)), name
    assert (result.runs, result.delegates) == (expected.runs, expected.delegates)


@pytest.mark.parametrize(
    "text", ["", "count=50 first=1", "BENCHMARK RESULTS", "ERROR: failed to build the interpreter"]
)
def test_an_output_without_a_result_is_none(text: str) -> None:
    assert parse_output(text) is None


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real client with a server and a key of its own."""
    pytest.importorskip("adbutils")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(ssh_server.free_port()))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    client = find_client(parse_url("adb:///"))
    yield
    subprocess.run([client, "kill-server"], capture_output=True, check=False)


def _tool(folder: Path, full: str, partial: str = "") -> Path:
    """A benchmark_model that prints `full` if full delegation is demanded and possible, else `partial`."""
    (folder / "full").write_text(full)
    (folder / "partial").write_text(partial)
    tool = folder / "benchmark_model"
    tool.write_text(
        f"""#!/bin/sh
[ -f "${{1#--graph=}}" ] || exit 9
case "$*" in *--require_full_delegation=true*) [ -s {folder}/full ] || {{ echo "not fully delegated"; exit 1; }}
cat {folder}/full >&2;; *) cat {folder}/partial;; esac
"""
    )
    return tool


def test_pushed_measured_listed_and_rolled_back(adb: None, command: Command, model: Path, tmp_path: Path) -> None:
    full = OF_2026.replace(
        "5 out of 64 node(s) with delegate (TfLiteNnapi", "62 out of 62 node(s) with delegate (TfLiteXNNPack"
    )
    with adb_daemon.running(tmp_path / "phone") as phone:
        url = f"adb://{phone.serial}{tmp_path}/phone/app"
        arguments = ("--to", url, "--benchmark-model", _tool(tmp_path, full), "--json")
        first = json.loads(command("deploy", model, *arguments).out)["devices"][0]
        assert first["status"] == "deployed"
        metrics = {metric["name"]: metric for metric in first["health"]["metrics"]}
        assert (metrics["latency"]["value"], metrics["latency"]["evidence"]) == (pytest.approx(0.008705), "measured")
        assert metrics["latency"]["details"]["host"].startswith("Pixel 9 (Android 16)")
        assert metrics["ram"]["value"] == 80.5 * MIB
        assert "golden vectors were not compared" in " ".join(first["health"]["notes"])
        pushed = len([text for text in phone.commands if "benchmark_model" in text and "cat >" in text])
        second = command("deploy", classifier(tmp_path / "b.tflite", seed=1), *arguments)
        assert second.code == 0
        assert len([text for text in phone.commands if "benchmark_model" in text and "cat >" in text]) == pushed == 1
        assert (tmp_path / "phone" / "app" / "current" / "model.tflite").read_bytes() != model.read_bytes()
        assert command("deploy", "--rollback", "--to", url).code == 0
        assert (tmp_path / "phone" / "app" / "current" / "model.tflite").read_bytes() == model.read_bytes()
        listed = json.loads(command("deploy", "--list", "--to", url, "--json").out)["devices"][0]["versions"]
        assert [version["current"] for version in listed] == [True, False]


def test_without_the_tool_the_file_is_proved_and_the_latency_is_unavailable(
    adb: None, command: Command, model: Path, tmp_path: Path
) -> None:
    with adb_daemon.running(tmp_path / "phone") as phone:
        url = f"adb://{phone.serial}{tmp_path}/phone/app"
        device = json.loads(command("deploy", model, "--to", url, "--json").out)["devices"][0]
        latency = device["health"]["metrics"][0]
        assert (device["status"], latency["evidence"]) == ("deployed", "unavailable")
        assert "--benchmark-model" in latency["how"]
        missing = command("deploy", model, "--to", url, "--benchmark-model", tmp_path / "none")
        assert (missing.code, "no such file" in missing.err) == (ExitCode.BAD_INPUT, True)


def test_a_delegate_that_does_not_run_all_of_it_is_a_finding(
    adb: None, command: Command, model: Path, tmp_path: Path
) -> None:
    with adb_daemon.running(tmp_path / "phone") as phone:
        url = f"adb://{phone.serial}{tmp_path}/phone/app"
        for full, partial, delegate, text in (
            ("", OF_2026, "nnapi", "TfLiteNnapiDelegate: 5 of 64 nodes; TfLiteXNNPackDelegate: 59 of 62"),
            (COMPILED_MODEL, "", "npu", "TfLiteXNNPackDelegate: 3 of 3 nodes"),
            ("", OF_2021, "gpu", "GPU: partially executed"),
        ):
            options = ("--benchmark-model", _tool(tmp_path, full, partial), "--delegate", delegate, "--json")
            result = command("deploy", model, "--to", url, *options)
            assert result.code == ExitCode.NOT_MET
            device = json.loads(result.out)["devices"][0]
            (finding,) = device["health"]["findings"]
            assert (device["status"], finding["rule"], text in finding["observed"]) == ("refused", "delegate", True)
        assert not (tmp_path / "phone" / "app" / "current").exists()
        broken = command("deploy", model, "--to", url, "--benchmark-model", _tool(tmp_path, "", "Segmentation fault"))
        assert (broken.code, "gave no result" in broken.err) == (ExitCode.UNREACHABLE, True)


def test_a_phone_that_is_not_ready_says_what_to_do(adb: None, command: Command, model: Path, tmp_path: Path) -> None:
    def message(url: str) -> str:
        result = command("deploy", model, "--to", url)
        assert (result.code, result.out) == (ExitCode.UNREACHABLE, ""), result.out + result.err
        assert len(result.err.strip().splitlines()) == 1
        return result.err

    assert "no Android device is attached" in message("adb:///")
    assert "no device 'R5CT' is attached" in message("adb://R5CT")
    with adb_daemon.running(tmp_path / "locked", trusts_keys=False) as locked:
        assert "accept this computer's key" in message(f"adb://{locked.serial}")
    with adb_daemon.running(tmp_path / "one") as one, adb_daemon.running(tmp_path / "two") as two:
        for phone in (one, two):
            assert command("deploy", model, "--to", f"adb://{phone.serial}{phone.folder}/app").code == 0
        assert "devices are attached" in message("adb:///")
        one.breaks_after = len(one.commands) + 5
        assert "adb://127.0.0.1" in message(f"adb://{one.serial}{one.folder}/app")
        assert (one.folder / "app" / "current" / "model.tflite").exists()


def test_no_adb_at_all(command: Command, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "adbutils", None)
    result = command("deploy", model, "--to", "adb:///")
    assert (result.code, "there is no adb" in result.err) == (ExitCode.UNREACHABLE, True)
    assert os.environ["PATH"] == str(tmp_path)
