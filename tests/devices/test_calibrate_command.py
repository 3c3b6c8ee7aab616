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
from edgepipe.tflite.host_fingerprint import usable_cores

BAD = [
    (["host"], "Missing option '-o'"),
    (["host", "-o", "mine.json"], r"mine\.json: a profile is a \.yaml file, for example -o devices/mine\.yaml"),
    (["host", "-o", "host.yaml"], r"host\.yaml: the profile inherits 'host' and cannot have its name"),
    (["host", "-o", "my board.yaml"], "a device's name has letters, digits, .*found 'my board'"),
    (["host", "-o", "there.yaml"], r"there\.yaml: exists; --force replaces it"),
    (["hots", "-o", "mine.yaml"], "unknown device 'hots'; did you mean 'host'"),
    (["raspberry-pi-4", "-o", "mine.yaml"], "'raspberry-pi-4' cannot be calibrated: .*reaches no device but `host`"),
    (["host", "-o", "mine.yaml", "--threads", "0"], "0 is not in the range x>=1"),
    (["host", "-o", "mine.yaml", "--threads", "4096"], "--threads 4096: this machine lets edgepipe use"),
    (["host", "-o", "mine.yaml", "--effort", "half"], "'half' is not one of 'quick', 'full'"),
    (["host", "-o", "mine.yaml", "--seed", "-1"], "-1 is not in the range x>=0"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_options(
    arguments: list[str], message: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").write_text("kept", encoding="utf-8")
    ended = command("device", "calibrate", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(message, ended.err), ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def _interrupted(folder: Path, line: list[str]) -> int:
    """Start the command, stop it once some readings are kept; how many are."""
    process = subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _kept(folder):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # told like Ctrl-C, which a shell makes background jobs ignore
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from there" in said
    return _kept(folder)


def _kept(folder: Path) -> int:
    return sum(1 for _ in (folder / "cache" / "calibration").rglob("*.json"))


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.yaml, from a quick calibration that was interrupted once."""
    folder = tmp_path_factory.mktemp("calibrated")
    line = [sys.executable, "-m", "edgepipe", "device", "calibrate", "host", "-o", "mine.yaml", "--effort", "quick",
            "--cache-dir", "cache"]  # fmt: skip
    before = _interrupted(folder, line)
    assert before > 0
    assert not (folder / "mine.yaml").exists()
    done = subprocess.run([*line, "--json"], cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "mine"
    assert "Traceback" not in done.stderr
    assert _kept(folder) > before
    return folder


@pytest.mark.slow
def test_the_profile_is_shown_and_says_how_good_it_is(
    calibrated: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calibrated)
    shown = command("device", "show", "mine.yaml")
    assert shown.code == 0, shown.err
    for expected in ("estimated by calibration", "error, composites, 5-fold", "90 % interval", "quick, seed 7"):
        assert expected in shown.out
    found = device_profile.load("mine.yaml", calibrated).latency.calibration
    assert found is not None
    assert found.measured.refused == ()
    assert found.measured.models > 300
    assert found.interval[0] < 1 < found.interval[1]
    # No timed test: these bounds only tell a fit from nonsense, on a machine that others use at the same time.
    assert found.within.median < 0.25
    assert min(found.seconds.values()) > 0


@pytest.mark.slow
def test_it_estimates_a_network_it_has_not_seen(
    calibrated: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calibrated)
    net = NetworkBuilder(99)
    x = net.quantize(net.input(72, 72, 3, dtype="uint8"))
    x = net.conv(x, 12, 3, 2)
    for channels in (20, 36, 60):
        x = net.conv(net.depthwise(x, 3, 2), channels)
    x = net.softmax(net.dense(net.mean(x), 7))
    Path("net.tflite").write_bytes(net.output(net.dequantize(x)).to_bytes())
    verdict = json.loads(command("verify", "net.tflite", "--device", "mine.yaml", "--device", "host", "--json").out)
    estimated, measured = (
        next(m for m in verdict["metrics"] if m["name"] == "latency" and m["device"] == name)
        for name in ("mine", "host")
    )
    assert (estimated["evidence"], measured["evidence"]) == ("estimated", "measured")
    low, high = estimated["interval"]
    assert 0 < low < estimated["value"] < high
    assert estimated["details"]["extrapolates"] == "no"
    assert measured["value"] / 3 < estimated["value"] < 3 * measured["value"]  # the numbers: benchmarks/calibration.py


@pytest.mark.slow
def test_it_is_the_same_again_from_kept_readings(
    calibrated: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calibrated)
    kept = _kept(calibrated)
    again = command("device", "calibrate", "host", "-o", "again.yaml", "--effort", "quick", "--cache-dir", "cache")
    assert again.code == 0, again.err
    assert _kept(calibrated) == kept
    first, second = (device_profile.load(f"{name}.yaml", calibrated).latency.calibration for name in ("mine", "again"))
    assert first is not None
    assert second is not None
    assert first.seconds == second.seconds


def test_a_profile_without_its_calibration_is_refused(tmp_path: Path) -> None:
    body = {"name": "mine", "description": "d", "inherit": "host", "sources": ["s"],
            "latency": {"evidence": "estimated", "by": "calibration"}}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    with pytest.raises(ConfigError, match="`by: calibration` needs it"):
        device_profile.load("mine.yaml", tmp_path)


def test_there_is_a_core_to_calibrate_on() -> None:
    assert usable_cores() >= 1
