"""`edgepipe device calibrate`, from a bad option to a profile that estimates."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import Command

from edgepipe.core.errors import ConfigError
from edgepipe.devices import device_profile
from edgepipe.devices.calibration.network_builder import NetworkBuilder
from edgepipe.devices.calibration.suite import SUITE_GROUPS
from edgepipe.tflite.host_fingerprint import count_usable_cores

BAD_OPTIONS = [
    (["host"], "Missing option '-o'"),
    (["host", "-o", "mine.json"], r"mine\.json: a profile is a \.yaml file, for example -o devices/mine\.yaml"),
    (["host", "-o", "host.yaml"], r"host\.yaml: the profile inherits 'host' and cannot have its name"),
    (["host", "-o", "my board.yaml"], "a device's name has letters, digits, .*found 'my board'"),
    (["host", "-o", "there.yaml"], r"there\.yaml: exists; --force replaces it"),
    (["hots", "-o", "mine.yaml"], "unknown device 'hots'; did you mean 'host'"),
    (["raspberry-pi-4", "-o", "mine.yaml"], "'raspberry-pi-4' cannot be calibrated: .*can only measure on `host`"),
    (["host", "-o", "mine.yaml", "--threads", "0"], "0 is not in the range x>=1"),
    (["host", "-o", "mine.yaml", "--threads", "4096"], "--threads 4096: this machine lets edgepipe use"),
    (["host", "-o", "mine.yaml", "--effort", "half"], "'half' is not one of 'quick', 'full'"),
    (["host", "-o", "mine.yaml", "--seed", "-1"], "-1 is not in the range x>=0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS)
def test_bad_options(
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("kept", encoding="utf-8")
    cli_result = command("device", "calibrate", *arguments)
    assert (cli_result.code, cli_result.out) == (2, "")
    assert re.search(message, cli_result.err), cli_result.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


# The command, with a quarter of the quick suite (whose size and models test_calibrate_suite.py proves).
COMMAND_ON_A_SMALL_SUITE = """
import dataclasses
from edgepipe import cli
from edgepipe.devices.calibration import suite, suite_measurement
suite.SUITE_GROUPS = tuple(
    dataclasses.replace(group, quick_count=max(3, group.quick_count // 4)) for group in suite.SUITE_GROUPS
)
suite_measurement.MAX_SUSTAINED_MODELS = 6
cli.main()
"""
SMALL_SUITE_SIZE = sum(max(3, group.quick_count // 4) for group in SUITE_GROUPS)


def _calibrate_line(profile: str) -> list[str]:
    options = ["host", "-o", profile, "--effort", "quick", "--cache-dir", "cache"]
    return [sys.executable, "-c", COMMAND_ON_A_SMALL_SUITE, "device", "calibrate", *options]


def _interrupt_calibration(folder: Path, arguments: list[str]) -> int:
    """Start the command and stop it once some readings are stored; returns their number."""
    process = subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _count_readings(folder):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # instead of Ctrl-C, which background jobs of a shell ignore
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "the same command resumes it" in stderr
    return _count_readings(folder)


def _count_readings(folder: Path) -> int:
    return sum(1 for _ in (folder / "cache" / "calibration").rglob("*.json"))


@pytest.fixture(scope="module")
def calibrated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.yaml, from a quick calibration that was interrupted once."""
    folder = tmp_path_factory.mktemp("calibrated")
    arguments = _calibrate_line("mine.yaml")
    readings_before = _interrupt_calibration(folder, arguments)
    assert readings_before > 0
    assert not (folder / "mine.yaml").exists()
    process = subprocess.run([*arguments, "--json"], cwd=folder, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["name"] == "mine"
    assert "Traceback" not in process.stderr
    assert _count_readings(folder) > readings_before
    return folder


@pytest.mark.slow
def test_show_prints_the_errors_of_a_calibration(
    calibrated_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calibrated_folder)
    cli_result = command("device", "show", "mine.yaml")
    assert cli_result.code == 0, cli_result.err
    for fragment in ("estimated by calibration", "error, composites, 5-fold", "90 % interval", "quick, seed 7"):
        assert fragment in cli_result.out
    calibration = device_profile.load("mine.yaml", calibrated_folder).latency.calibration
    assert calibration is not None
    assert calibration.measured.refused == ()
    assert 0.7 * SMALL_SUITE_SIZE < calibration.measured.models <= SMALL_SUITE_SIZE
    assert calibration.interval[0] < 1 < calibration.interval[1]
    # Measured times on a machine that may be busy: test_calibrate_fit.py proves the fit, on times that are known.
    assert 0 < calibration.within.median < 1
    assert min(calibration.seconds.values()) > 0


@pytest.mark.slow
def test_a_calibration_estimates_an_unseen_network(
    calibrated_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calibrated_folder)
    net = NetworkBuilder(99)
    x = net.quantize(net.input(72, 72, 3, dtype="uint8"))
    x = net.conv(x, 12, 3, 2)
    for channels in (20, 36, 60):
        x = net.conv(net.depthwise(x, 3, 2), channels)
    x = net.softmax(net.dense(net.mean(x), 7))
    Path("net.tflite").write_bytes(net.set_outputs(net.dequantize(x)).to_bytes())
    verdict = json.loads(command("verify", "net.tflite", "--device", "mine.yaml", "--device", "host", "--json").out)
    estimate, measurement = (
        next(m for m in verdict["metrics"] if m["name"] == "latency" and m["device"] == name)
        for name in ("mine", "host")
    )
    assert (estimate["evidence"], measurement["evidence"]) == ("estimated", "measured")
    low, high = estimate["interval"]
    assert 0 < low < estimate["value"] < high
    assert estimate["details"]["extrapolates"] == "no"
    # Only a wrong unit is caught here, the machine may be busy: benchmarks/calibration.py has the numbers.
    assert measurement["value"] / 10 < estimate["value"] < 10 * measurement["value"]


@pytest.mark.slow
def test_stored_readings_give_the_same_calibration(calibrated_folder: Path) -> None:
    reading_count = _count_readings(calibrated_folder)
    line = _calibrate_line("again.yaml")
    process = subprocess.run(line, cwd=calibrated_folder, text=True, capture_output=True, check=False)
    assert process.returncode == 0, process.stderr
    assert _count_readings(calibrated_folder) == reading_count
    calibration, repeated_calibration = (
        device_profile.load(f"{name}.yaml", calibrated_folder).latency.calibration for name in ("mine", "again")
    )
    assert calibration is not None
    assert repeated_calibration is not None
    assert calibration.seconds == repeated_calibration.seconds


def test_a_profile_without_its_calibration_is_rejected(tmp_path: Path) -> None:
    profile = {
        "name": "mine",
        "description": "d",
        "inherit": "host",
        "sources": ["s"],
        "latency": {"evidence": "estimated", "by": "calibration"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    with pytest.raises(ConfigError, match="`by: calibration` needs it"):
        device_profile.load("mine.yaml", tmp_path)


def test_there_is_a_core_to_calibrate_on() -> None:
    assert count_usable_cores() >= 1
