"""The pipeline for a Raspberry Pi against its stand-in: the aarch64 runtime computes what this machine computes."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ssh_server
from aarch64_board import CPU, python_program
from commands import Command
from deploying import running_version
from ssh_server import Sshd

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def raspberry_pi(tmp_path_factory: pytest.TempPathFactory, user_home: Path) -> Iterator[Sshd]:
    """A board named `raspberrypi` in the user's ssh configuration."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    folder = tmp_path_factory.mktemp("pi")
    with python_program(folder / "bin"), ssh_server.running(folder, user_home) as server:
        (user_home / ".ssh" / "config").write_text(f"Host raspberrypi\n  HostName 127.0.0.1\n  Port {server.port}\n")
        yield server
        (user_home / ".ssh" / "config").unlink()


def test_the_pipeline_deploys_and_reports_what_the_board_computed(
    process: Command, raspberry_pi: Sshd, trained_digits: Path, tmp_path: Path
) -> None:
    pipeline = ROOT / "pipelines" / "digits_raspberry_pi.yaml"
    options = ("--output-dir", tmp_path / "run", "--cache-dir", trained_digits, "--json")
    result = process("run", pipeline, *options, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    assert result.code == 0, result.err[-2000:]
    stage = _stage(json.loads(result.out), "deploy")
    version = running_version(raspberry_pi.folder / "digits")

    devices, golden = stage["outcome"]["tables"]
    assert devices["rows"] == [["ssh://raspberrypi/~/digits", "deployed", version, ""]]
    (row,) = golden["rows"]
    assert row[1:4] == ["Raspberry Pi 4 Model B Rev 1.4, aarch64, emulated", "ai-edge-litert 2.3.0", "100.00%"]
    histogram = {int(step): int(count) for step, count in (pair.split(": ") for pair in row[5].split(", "))}
    assert sum(histogram.values()) >= 200 * 10
    assert histogram[0] > 0.97 * sum(histogram.values())

    metrics = {metric["name"]: metric for metric in stage["outcome"]["metrics"]}
    for name in ("latency", "ram"):
        assert (metrics[name]["evidence"], metrics[name]["device"]) == ("unavailable", "raspberry-pi-4")
        assert f"emulation of aarch64 ({CPU})" in metrics[name]["how"]
    notes = " ".join(stage["outcome"]["notes"])
    assert "throttled, under-voltage" in notes
    assert "'ondemand'" in notes

    # Deploying is never taken from the cache: what is on the device is not this machine's to know.
    shutil.rmtree(raspberry_pi.folder / "digits")
    again = json.loads(process("run", pipeline, *options).out)
    assert [stage["status"] for stage in again["stages"]] == ["cached"] * 6 + ["ran"]
    assert running_version(raspberry_pi.folder / "digits") == version


def _stage(report: dict[str, Any], name: str) -> dict[str, Any]:
    (stage,) = [stage for stage in report["stages"] if stage["name"] == name]
    return dict(stage)
