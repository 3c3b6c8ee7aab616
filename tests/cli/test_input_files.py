"""Whatever a user names: pipes, sockets, devices and dangling links are refused at once, by name."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

from edgepipe.core.errors import InputError
from edgepipe.core.input_files import read_bytes
from edgepipe.data import sample_files


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (_pipe, "is a named pipe; only ordinary files are read"),
    "socket": (_socket, "is a socket; only ordinary files are read"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device; only ordinary files are read"),
    "dangling link": (_dangling, "a link to 'nowhere', which does not exist"),
    "loop of links": (_loop, "Too many levels of symbolic links"),
}
COMMANDS = {
    "inspect": ["inspect", "x"],
    "profile": ["profile", "x"],
    "profile --device": ["profile", "m.tflite", "--device", "./x.yaml"],
    "verify": ["verify", "x"],
    "verify --zeros-of": ["verify", "m.tflite", "--zeros-of", "x"],
    "check": ["check", "x"],
    "check, model": ["check", "p.yaml", "--set", "model.path=x"],
    "check, npz": ["check", "p.yaml", "--set", "data={npz: x}"],
    "check, csv": ["check", "p.yaml", "--set", "data={csv: x, label: y}"],
    "check, images": ["check", "p.yaml", "--set", "data={images: x}"],
    "check, idx": ["check", "p.yaml", "--set", "data={idx: x}"],
    "run": ["run", "x"],
    "data": ["data", "x"],
    "data, npz": ["data", "{npz: x}"],
    "data, csv": ["data", "{csv: x, label: y}"],
    "data, audio": ["data", "{audio: x}"],
    "report": ["report", "x"],
    "device show": ["device", "show", "./x.yaml"],
    "device fit": ["device", "fit", "x", "--models", ".", "--kind", "cortex-m", "--clock", "1 MHz", "-o", "o.yaml"],
    "convert": ["convert", "x"],
    "init": ["init", "x"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", COMMANDS)
def test_only_ordinary_files_are_opened(
    case: str, kind: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = KINDS[kind]
    for name in ("x", "x.yaml"):
        make(tmp_path / name)
    (tmp_path / "p.yaml").write_text("name: p\nmodel: edgepipe.zoo:small_cnn\ndata: {npz: x}\nstages: [convert]\n")
    (tmp_path / "m.tflite").write_bytes((models / "int8.tflite").read_bytes())
    ended = command(*COMMANDS[case])
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_ordinary_files(kind: str, tmp_path: Path) -> None:
    make, message = KINDS[kind]
    make(tmp_path / "x.npz")
    with pytest.raises(InputError, match=message):
        sample_files.read(tmp_path / "x.npz")


def test_a_file_larger_than_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(2049))
    assert len(read_bytes(tmp_path / "x", 2049)) == 2049
    with pytest.raises(InputError, match=r"x: a file of 2\.0 KiB; at most 1\.0 KiB are read"):
        read_bytes(tmp_path / "x", 1024)


@pytest.mark.parametrize("command_name", ["inspect", "check", "report", "data", "convert"])
def test_a_name_that_no_file_can_have(command_name: str, command: Command) -> None:
    ended = command(command_name, "x" * 5000)
    assert (ended.code, ended.out) == (2, "")
    assert "File name too long" in ended.err


def test_a_null_character_in_a_name(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text('name: p\nmodel: {path: "a\\0b"}\ndata: {npz: "a\\0b"}\nstages: [convert]\n')
    ended = command("check", tmp_path / "p.yaml")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("it holds a null character") == 2
