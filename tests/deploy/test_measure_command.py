"""`edgepipe measure`: what a device computes and how fast; and what a device that is not set up is told to do."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ssh_server
from commands import Command
from deploy_models import classifier
from ssh_server import Sshd

from edgepipe.core.errors import ExitCode
from edgepipe.tflite import host_latency

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TFLITE_RUNTIME = ROOT / ".venv-device" / "bin" / "python"


def test_what_was_measured_is_told_and_nothing_stays(
    command: Command, board: Sshd, model: Path, tmp_path: Path
) -> None:
    result = command("measure", model, "--on", board.url(tmp_path / "app"), "--samples", 3, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert record["document"]["runtime"]["package"] == "ai-edge-litert"
    assert record["document"]["first_seconds"] > 0
    assert record["document"]["memory"] > 0
    assert record["parity"]["samples"] == 3
    assert [path.name for path in (tmp_path / "app").rglob("model.tflite")] == []
    table = command("measure", model, "--on", board.url(tmp_path / "app"), "--samples", 3)
    assert (table.code, "first inference" in table.out, "measured" in table.out) == (0, True, True)


def test_the_latency_over_ssh_is_that_of_this_machine(command: Command, board: Sshd, tmp_path: Path) -> None:
    """Paired and interleaved: the ratio to the host's own measurement is 1 within its interval, or within 10 %."""
    model = classifier(tmp_path / "wide.tflite", width=8000)
    ratios = [_latency_ratio(command, model, board.url(tmp_path / "app"))]
    while len(ratios) < 3 and not _holds_one(*ratios[-1]):  # other tests may have had the cores
        ratios.append(_latency_ratio(command, model, board.url(tmp_path / "app")))
    assert _holds_one(*ratios[-1]), ratios


def _latency_ratio(command: Command, model: Path, url: str) -> tuple[float, float]:
    """The logarithm of the ratio there to here, and half the width of its interval, from eight pairs."""
    logarithms = []
    for _ in range(8):
        there = json.loads(command("measure", model, "--on", url, "--samples", 1, "--json").out)
        here = host_latency.measure(model)
        logarithms.append(np.log(there["document"]["latency"]["p50"] / here.p50))
    return float(np.mean(logarithms)), float(2.36 * np.std(logarithms, ddof=1) / np.sqrt(len(logarithms)))


def _holds_one(middle: float, half_width: float) -> bool:
    return abs(middle) <= max(half_width, 0.1)


@pytest.mark.skipif(not TFLITE_RUNTIME.exists(), reason=f"needs tflite-runtime in {TFLITE_RUNTIME.parents[1].name}")
def test_a_runtime_of_long_ago_runs_the_model_or_says_which_operator_is_too_new(
    command: Command, board: Sshd, model: Path, tmp_path: Path
) -> None:
    url = board.url(tmp_path / "app")
    result = command("measure", model, "--on", url, "--python", TFLITE_RUNTIME, "--samples", 20, "--json")
    record = json.loads(result.out)
    assert result.code == 0, record["findings"]
    assert record["document"]["runtime"]["package"] == "tflite-runtime"
    assert record["document"]["runtime"]["numpy"].startswith("1.")

    newer = classifier(tmp_path / "newer.tflite", version=12)
    refused = command("deploy", newer, "--to", url, "--python", TFLITE_RUNTIME, "--samples", 2, "--json")
    assert refused.code == ExitCode.NOT_MET
    first, *more = json.loads(refused.out)["devices"][0]["health"]["findings"]
    assert "'FULLY_CONNECTED' version '12'" in first["observed"]
    assert "convert with --runtime 'tflite-runtime==2.14.0'" in first["suggestion"]
    assert ["FULLY_CONNECTED" in finding["place"] for finding in more] == [True]
    assert not (tmp_path / "app" / "current").exists()


def _message(command: Command, model: Path, url: str, *options: object) -> str:
    result = command("measure", model, "--on", url, "--samples", 2, *options)
    assert (result.code, result.out) == (ExitCode.UNREACHABLE, ""), result.out + result.err
    (line,) = result.err.strip().splitlines()
    return line


def _program(folder: Path, text: str) -> Path:
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


ANSWERS = {
    "no Python": ("", "is not there", "install Python 3.7"),
    "no runtime": (
        f'PYTHONPATH= exec {sys.base_prefix}/bin/python3 -S "$@"', "no runtime for Python", "pip install ai-edge-litert"
    ),
    "a crash": ("kill -SEGV $$", "crashed there (signal 11)", ""),
    "an error": ("echo broken >&2; exit 3", "the runner ended with status 3", "broken"),
    "nothing": ("exit 0", "the runner gave no result", "it printed: nothing"),
    "garbage": ("head -c 5000 /dev/urandom", "the runner gave no result", ""),
    "half a document": ("echo '{\"schema\": \"edgepipe.runner/1\", \"host\": {'", "is damaged", ""),
    "another document": ("echo '{\"schema\": \"edgepipe.runner/1\"}'", "is damaged: host: Field required", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_a_device_that_cannot_run_the_model_is_told_what_to_do(
    command: Command, board: Sshd, model: Path, tmp_path: Path, case: str
) -> None:
    program, *parts = ANSWERS[case]
    python = _program(tmp_path, program) if program else "/nowhere/python3"
    message = _message(command, model, board.url(tmp_path / "app"), "--python", python)
    assert [part for part in parts if part not in message] == [], message
    assert len(message) < 1500


def test_a_device_that_answers_without_end_is_left(
    command: Command, board: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = board.url(tmp_path / "app")
    monkeypatch.setattr("edgepipe.deploy.health_check.MAX_DOCUMENT_BYTES", 1 << 20)
    assert "printed more than 1,048,576 bytes" in _message(command, model, url, "--python", _program(tmp_path, "yes"))
    monkeypatch.setattr("edgepipe.deploy.health_check.RUN_SECONDS", 1.0)
    assert "no answer within 1 s" in _message(command, model, url, "--python", _program(tmp_path, "sleep 60"))


@contextmanager
def _board_with(folder: Path, home: Path, *options: str) -> Iterator[Sshd]:
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    with ssh_server.running(folder, home, options) as server:
        yield server


def test_what_a_login_prints_is_not_taken_for_an_answer(
    command: Command, model: Path, user_home: Path, tmp_path: Path
) -> None:
    """A banner, a talkative .bashrc, and a shell that is none."""
    with _board_with(tmp_path / "board", user_home) as server:
        noise = 'echo "Welcome to the board!"; printf "edgepipe-0000 0\\n"; echo HELD; echo "{}"\n'
        (tmp_path / "board" / ".bashrc").write_text(noise)
        assert command("measure", model, "--on", server.url(tmp_path / "app"), "--samples", 2).code == 0
    for name, forced in (("menu", "echo Choose: 1 2 3"), ("nologin", "true")):
        with _board_with(tmp_path / name, user_home, f"ForceCommand {forced}") as server:
            message = _message(command, model, server.url(tmp_path / "app"))
            assert ("Choose: 1 2 3" if name == "menu" else "before the device answered") in message


@pytest.mark.parametrize(
    "name", ["a b", "a'b\"c", "$(touch x)", "`touch x`; touch y", "-rf", "a;b|c&d", "*?[a]", "ü\u2028", "%n"]
)
def test_hostile_names_of_folders_and_files_are_only_names(
    command: Command, board: Sshd, tmp_path: Path, name: str
) -> None:
    from urllib.parse import quote

    (tmp_path / "here").mkdir()
    model = classifier(tmp_path / "here" / f"{name}.tflite")
    result = command("deploy", model, "--to", board.url(f"{quote(str(tmp_path))}/{quote(name)}"), "--samples", 1)
    assert result.code == 0, result.out + result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["here", name])
    assert (tmp_path / name / "current" / "model.tflite").read_bytes() == model.read_bytes()
    listed = command("deploy", "--list", "--to", board.url(f"{quote(str(tmp_path))}/{quote(name)}"), "--json")
    assert json.loads(listed.out)["devices"][0]["versions"][0]["model"] == f"{name}.tflite"


def test_the_users_ssh_configuration_holds(
    command: Command, board: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alias with its key elsewhere, known under another name, behind a jump host; and a proxy command."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    key = home / "keys" / "board key"
    key.parent.mkdir()
    key.write_bytes((board.home / ".ssh" / "id_ed25519").read_bytes())
    key.chmod(0o600)
    host_key = " ".join((board.folder / "host_key.pub").read_text().split()[:2])
    (home / "hosts").write_text(f"the-board {host_key}\n[127.0.0.1]:{board.port} {host_key}\n")
    (home / ".ssh" / "config").write_text(
        f"""
Host jump
  HostName 127.0.0.1
  Port {board.port}
Host inner
  HostName localhost
  Port {board.port}
  ProxyJump jump
  HostKeyAlias the-board
Host piped
  HostName 127.0.0.1
  Port {board.port}
  ProxyCommand {sys.executable} {Path(__file__).parent / "pipe_to.py"} %h %p
  HostKeyAlias the-board
Host circle
  ProxyJump circle
Host lost
  ProxyCommand no-such-program %h
Host mute
  ProxyCommand true
Host *
  IdentityFile "{key}"
  IdentitiesOnly yes
  UserKnownHostsFile {home}/hosts
"""
    )
    monkeypatch.setenv("HOME", str(home))
    for alias in ("jump", "inner", "piped"):
        result = command("deploy", model, "--to", f"ssh://{alias}{tmp_path}/{alias}", "--samples", 1)
        assert result.code == 0, result.err
        assert (tmp_path / alias / "current").exists()
    assert "circle" in _message(command, model, "ssh://circle/x")
    assert "ProxyCommand 'no-such-program lost' of its ssh configuration" in _message(command, model, "ssh://lost/x")
    assert "mute" in _message(command, model, "ssh://mute/x")
    (home / "hosts").write_text(f"the-board {host_key}\n")
    assert "over jump" in _message(command, model, "ssh://inner/x")
    assert "is not known" in _message(command, model, "ssh://inner/x")


def test_a_profile_shows_what_the_board_measured(command: Command, board: Sshd, model: Path, tmp_path: Path) -> None:
    arguments = ("profile", model, "--device", "host", "--on", board.url(tmp_path / "app"), "--json")
    (device,) = json.loads(command(*arguments).out)["devices"]
    latency = next(metric for metric in device["metrics"] if metric["name"] == "latency")
    assert latency["evidence"] == "measured"
    assert "runs there" in latency["how"]
    refused = command("profile", model, "--on", board.url(tmp_path / "app"))
    assert (refused.code, "of one device" in refused.err) == (ExitCode.BAD_INPUT, True)
    wrong = command("profile", model, "--device", "raspberry-pi-4", "--on", board.url(tmp_path / "app"))
    assert ("architecture" in wrong.out) is (os.uname().machine != "aarch64")
