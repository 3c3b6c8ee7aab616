"""Several devices at once: in parallel, a canary first, and no failure hides another device."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ssh_server
from commands import Command
from deploying import package as build_package
from deploying import printed_by_runner, recorded_python, running_version
from ssh_server import Sshd
from tcp_proxy import forwarding

import edgepipe
from edgepipe.core.errors import ExitCode

DEVICES = 10
ROUND_TRIP = 0.3  # seconds


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory, user_home: Path) -> Iterator[list[Sshd]]:
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(ssh_server.running(tmp_path_factory.mktemp("fleet"), user_home)) for _ in range(DEVICES)
        ]


def _urls(boards: list[Sshd], tmp_path: Path) -> list[str]:
    return [board.url(tmp_path / f"app{index}") for index, board in enumerate(boards)]


@pytest.fixture
def recorded(board: Sshd, model: Path, tmp_path: Path) -> str:
    """A `python3` that answers at once, as the runner did."""
    content = build_package(model, samples=200)
    device_url = board.url(tmp_path / "record")
    (tmp_path / "record").mkdir()
    return recorded_python(tmp_path / "bin", printed_by_runner(device_url, content))


@pytest.mark.slow
def test_two_broken_devices_of_ten_do_not_keep_the_others(
    command: Command, boards: list[Sshd], model: Path, recorded: str, tmp_path: Path
) -> None:
    urls = _urls(boards, tmp_path)
    urls[3] = f"ssh://127.0.0.1:{ssh_server.free_port()}/x"
    (tmp_path / "app6").write_text("a file where the folder should be")
    result = command("deploy", model, *(w for u in urls for w in ("--to", u)), "--python", recorded, "--json")
    devices = json.loads(result.out)["devices"]
    assert result.code == ExitCode.UNREACHABLE
    assert [index for index, device in enumerate(devices) if device["status"] != "deployed"] == [3, 6]
    assert "does not answer" in devices[3]["error"]
    assert "cannot create" in devices[6]["error"]
    assert {running_version(tmp_path / f"app{index}")[:4] for index in range(DEVICES) if index not in (3, 6)} == {
        "0001"
    }
    table = command("deploy", model, *(w for u in urls for w in ("--to", u)), "--python", recorded).out
    assert (table.count(" deployed "), table.count(" failed ")) == (8, 2)


def test_a_canary_that_fails_stops_all(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "app0").write_text("a file where the folder should be")
    urls = [f"host://{tmp_path}/app{index}" for index in range(3)]
    result = command("deploy", model, *(w for u in urls for w in ("--to", u)), "--samples", 2, "--json")
    devices = json.loads(result.out)["devices"]
    assert (result.code, [device["status"] for device in devices]) == (4, ["failed", "skipped", "skipped"])
    assert "the canary" in devices[2]["error"]
    assert not (tmp_path / "app1").exists()


def test_too_many_failures_stop_the_rest(command: Command, model: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        (tmp_path / f"app{index}").write_text("a file where the folder should be")
    urls = [f"host://{tmp_path}/app{index}" for index in range(5)]
    options = ("--samples", 2, "--parallel", 1, "--json")
    devices = json.loads(command("deploy", model, *(w for u in urls for w in ("--to", u)), *options).out)["devices"]
    assert [device["status"] for device in devices] == ["deployed", "failed", "failed", "skipped", "skipped"]
    assert "2 of 5 devices had failed" in devices[4]["error"]
    assert not (tmp_path / "app4").exists()


def _seconds(model: Path, urls: list[str], python: str, parallel: int) -> float:
    start = time.perf_counter()
    fleet = edgepipe.deploy_model(model, urls, python=python, canary=0, parallel=parallel)
    assert fleet.exit_code == 0, [str(outcome.error) for outcome in fleet.outcomes]
    return time.perf_counter() - start


@pytest.mark.slow
def test_ten_devices_far_away_take_less_than_three_times_one(
    boards: list[Sshd], model: Path, recorded: str, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(forwarding(board.port, delay=ROUND_TRIP / 2)) for board in boards]
        for board, proxy in zip(boards, proxies, strict=True):
            board.trust(proxy.port)
        urls = [b.url(tmp_path / f"app{i}", p.port) for i, (b, p) in enumerate(zip(boards, proxies, strict=True))]
        one = _seconds(model, urls[:1], recorded, 1)
        all_together = _seconds(model, urls, recorded, DEVICES)
    assert all_together < 3 * one


@pytest.mark.slow
def test_ten_devices_nearby_take_less_than_one_after_the_other(boards: list[Sshd], model: Path, tmp_path: Path) -> None:
    urls = _urls(boards, tmp_path)
    ratios: list[float] = []
    while len(ratios) < 4 and min(ratios, default=1.0) >= 0.65:  # other tests may have had the cores
        ratios.append(_seconds(model, urls, "python3", DEVICES) / _seconds(model, urls, "python3", 1))
    assert min(ratios) < 0.65, ratios
