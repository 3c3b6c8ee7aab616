"""Every command with hostile names of everything that has a name: nothing controls the terminal or breaks a table."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite_handmade as made
from ai_edge_litert import schema_py_generated as schema
from commands import Command, CommandResult
from PIL import Image

from edgepipe.core.artifact import Artifact, ArtifactKind, text_digest
from edgepipe.core.cache import Cache
from edgepipe.core.cost import Cost
from edgepipe.core.escape import escape_line
from edgepipe.core.outcome import Outcome

ROOT = Path(__file__).resolve().parents[2]
EVIL = "e\x1b[2J\x07\nmet\r\x9b\u202e\u200b[bold]|`<b>"  # as a name in a file
EVIL_FILE = os.fsdecode(b"\xff") + EVIL  # as the name of a file: also not UTF-8


def _assert_harmless(ended: CommandResult, code: int) -> None:
    for text in (ended.out, ended.err):
        bad = [character for character in text if not (character.isprintable() or character in "\n ")]
        assert not bad, (bad, text)
        assert not re.search(r"^ *met\b", text, re.MULTILINE), text  # no line of its own
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert "internal error" not in ended.err


def _dense(folder: Path) -> Path:
    tensors = [
        made.T(EVIL, (1, 4), scales=(0.5,), zero_points=(0,)),
        made.T(f"w{EVIL}", (3, 4), data=np.arange(12, dtype="int8").reshape(3, 4), scales=(0.5,), zero_points=(0,)),
        made.T("b", (3,), "int32", data=np.zeros(3, "int32"), scales=(0.25,), zero_points=(0,)),
        made.T(f"y{EVIL}", (1, 3), scales=(0.5,), zero_points=(0,)),
        made.T(f"z{EVIL}", (1, 3), scales=(0.5,), zero_points=(0,)),
    ]
    dense = made.Op("FULLY_CONNECTED", (EVIL, f"w{EVIL}", "b"), (f"y{EVIL}",), schema.FullyConnectedOptionsT())
    custom = made.Op("CUSTOM", (f"y{EVIL}",), (f"z{EVIL}",), custom=EVIL)
    graph = made.Graph(tensors, [dense, custom], [EVIL], [f"z{EVIL}"])
    return made.write_graphs(folder / f"{EVIL_FILE}.tflite", [graph], {EVIL: EVIL.encode()})


def _device(folder: Path) -> Path:
    text = (ROOT / "devices" / "nucleo-l4r5zi.yaml").read_text()
    for key in ("name", "description"):
        text = re.sub(f"^{key}: .*", lambda _, key=key: f"{key}: {json.dumps(EVIL)}", text, flags=re.MULTILINE)
    path = folder / f"{EVIL}.yaml"
    path.write_text(text)
    return path


def _pipeline(folder: Path) -> Path:
    path = folder / f"{EVIL_FILE}.yaml"
    stages = [{"train": {EVIL: EVIL}}, EVIL, {EVIL: {}}, {"name": EVIL, "prune": {"sparsity": EVIL}}]
    content = {"name": EVIL, EVIL: 1, "model": {"file": EVIL, EVIL: 1}, "data": {"npz": EVIL, EVIL: 1}}
    path.write_text(json.dumps({**content, "task": EVIL, "stages": stages}))
    return path


def _images(folder: Path) -> str:
    for name in (f"a{EVIL}", f"b{EVIL}"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (8, 8), number).save(folder / "photos" / name / f"{EVIL_FILE}{number}.png")
        (folder / "photos" / name / f"{EVIL_FILE}.txt").touch()
    (folder / "photos" / f"a{EVIL}" / f"broken{EVIL_FILE}.png").write_bytes(b"nothing")
    return str(folder / "photos")


def _table(folder: Path) -> str:
    with (folder / f"{EVIL_FILE}.csv").open("w") as file:
        file.write('"' + EVIL.replace("\n", " ") + '",b,"label\x1b[0m"\n' + "1,2,'x\x1b\n3,4,y\x07\n" * 20)
    return f"{{csv: {json.dumps(EVIL_FILE + '.csv')}, label: nothing{ascii(EVIL)[1:4]}}}"


def _report(folder: Path) -> Path:
    content = json.loads((ROOT / "tests" / "snapshots" / "report_of_an_earlier_version.json").read_text())
    (folder / f"run{EVIL_FILE}").mkdir()
    path = folder / f"run{EVIL_FILE}" / "report.json"
    path.write_text(json.dumps(_with_evil_texts(content)))
    return path


KEPT = {"schema", "status", "kind", "evidence", "unit", "judgement", "measured_at", "dimension", "bound"}


def _with_evil_texts(value: Any, key: str = "") -> Any:
    """Every text of a report with `EVIL` after it, but those that must be one of a few."""
    if isinstance(value, dict):
        return {name: _with_evil_texts(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_evil_texts(inner, key) for inner in value]
    return value + EVIL if isinstance(value, str) and key not in KEPT else value


def _cache(folder: Path) -> Path:
    cache = Cache(folder / f"cache{EVIL_FILE}")
    with cache.shared_lock(), cache.workspace() as workspace:
        (workspace / "model.tflite").write_bytes(b"nothing")
        artifact = Artifact.from_path(ArtifactKind.TFLITE, workspace / "model.tflite")
        cache.store(workspace, text_digest("key"), EVIL, artifact, Outcome(notes=(EVIL,)), Cost(wall=1.0, cpu=1.0))
    return cache.root


def _not_a_model(folder: Path) -> Path:
    (folder / f"{EVIL_FILE}.keras").write_bytes(EVIL.encode())
    return folder / f"{EVIL_FILE}.keras"


COMMANDS: dict[str, tuple[Callable[[Path], list[Any]], int]] = {  # arguments, exit code
    "inspect": (lambda folder: ["inspect", _dense(folder)], 0),
    "inspect --json": (lambda folder: ["inspect", _dense(folder), "--json"], 0),
    "inspect --run": (lambda folder: ["inspect", _dense(folder), "--run"], 0),
    "inspect, no model": (lambda folder: ["inspect", _not_a_model(folder)], 2),
    "inspect, no file": (lambda folder: ["inspect", EVIL_FILE], 2),
    "profile": (lambda folder: ["profile", _dense(folder), "--device", _device(folder), "--operators"], 0),
    "profile --json": (lambda folder: ["profile", _dense(folder), "--device", _device(folder), "--json"], 0),
    "profile, unknown device": (lambda folder: ["profile", _dense(folder), "--device", EVIL_FILE], 2),
    "verify": (lambda folder: ["verify", _dense(folder), "--device", _device(folder), "--max", "ram=1KiB"], 3),
    "verify --json": (lambda folder: ["verify", _dense(folder), "--integer-only", "--json"], 3),
    "verify, unknown metric": (lambda folder: ["verify", _dense(folder), "--max", f"{EVIL_FILE}=1"], 2),
    "verify, unknown runtime": (lambda folder: ["verify", _dense(folder), "--runtime", f"{EVIL_FILE}==1"], 2),
    "device show": (lambda folder: ["device", "show", _device(folder)], 0),
    "device show --json": (lambda folder: ["device", "show", _device(folder), "--json"], 0),
    "device show, unknown": (lambda folder: ["device", "show", EVIL_FILE], 2),
    "device show, a pipeline": (lambda folder: ["device", "show", _pipeline(folder)], 2),
    "device calibrate": (lambda folder: ["device", "calibrate", EVIL_FILE, "-o", folder / "x.yaml"], 2),
    "device fit": (
        lambda folder: [
            *("device", "fit", _pipeline(folder), "--models", folder, "--kind", EVIL),
            *("--clock", "1 MHz", "-o", folder / "x.yaml"),
        ],
        2,
    ),
    "stages": (lambda _: ["stages", EVIL], 2),
    "zoo": (lambda _: ["zoo", EVIL, "--input", "8x8x1"], 2),
    "zoo --set": (lambda _: ["zoo", "small_cnn", "--input", "8x8x1", "--set", f"{EVIL}=1"], 2),
    "check": (lambda folder: ["check", _pipeline(folder), folder / EVIL_FILE], 2),
    "check --set": (lambda folder: ["check", _pipeline(folder), "--set", f"{EVIL}={EVIL}"], 2),
    "data, images": (lambda folder: ["data", f"{{images: {_images(folder)}, size: [8, 8], skip_corrupt: true}}"], 0),
    "data --json": (
        lambda folder: ["data", f"{{images: {_images(folder)}, size: [8, 8], skip_corrupt: true}}", "--json"],
        0,
    ),
    "data, a corrupt image": (lambda folder: ["data", f"{{images: {_images(folder)}, size: [8, 8]}}"], 2),
    "data, a table": (lambda folder: ["data", _table(folder)], 2),
    "data, no description": (lambda _: ["data", EVIL], 2),
    "report": (lambda folder: ["report", _report(folder).parent], 0),
    "report --format json": (lambda folder: ["report", _report(folder).parent, "--format", "json"], 0),
    "report --format markdown": (lambda folder: ["report", _report(folder), "--format", "markdown"], 0),
    "report, none": (lambda folder: ["report", _pipeline(folder)], 2),
    "cache list": (lambda folder: ["cache", "list", "--cache-dir", _cache(folder)], 0),
    "cache list --json": (lambda folder: ["cache", "list", "--json", "--cache-dir", _cache(folder)], 0),
    "cache clear": (lambda folder: ["cache", "clear", "--cache-dir", _cache(folder)], 0),
    "convert, no model": (lambda folder: ["convert", _not_a_model(folder)], 2),
    "convert, no file": (lambda _: ["convert", EVIL_FILE], 2),
    "sensitivity": (lambda folder: ["sensitivity", EVIL_FILE, "--data", EVIL_FILE], 2),
    "init, no model": (lambda folder: ["init", _not_a_model(folder), "-o", folder / "p.yaml"], 2),
    "run": (lambda folder: ["run", _pipeline(folder)], 2),
    "run, no file": (lambda _: ["run", EVIL_FILE], 2),
    "--debug": (lambda _: ["--debug", "run", EVIL_FILE], 2),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_no_name_reaches_the_terminal_as_it_is(
    case: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_arguments, code = COMMANDS[case]
    ended = command(*build_arguments(tmp_path))
    if case == "--debug":
        assert "Traceback" in ended.err
        ended = CommandResult(ended.code, ended.out, ended.err.replace("Traceback", ""))
    _assert_harmless(ended, code)
    if code == 2 and case != "data, a table":
        assert escape_line(EVIL) in ended.err
    if "json" in case and code != 2:
        json.loads(ended.out)
