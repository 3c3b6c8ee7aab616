"""What each command loads, seen from inside its own process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TENSORFLOW = ("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization", "sklearn")
START = ("pydantic", "rich", "yaml", "numpy", "zstandard", *TENSORFLOW)
ROOT = Path(__file__).resolve().parents[2]
AFTER = "import json, sys; sys.stderr.write('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded(code: str, *arguments: object) -> list[str]:
    """The top-level modules in `sys.modules` after `code` ran as a script with `arguments`."""
    whole = f"try:\n {code}\nexcept SystemExit as ended:\n assert ended.code in (None, 0, 3), ended.code\n{AFTER}"
    line = [sys.executable, "-c", whole, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


def command(*arguments: object) -> list[str]:
    return loaded("from edgepipe.cli import main; main()", *arguments)


def test_the_probe_sees_modules() -> None:
    assert "numpy" in loaded("import numpy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["device", "--help"]], ids=" ".join
)
def test_help_loads_click_and_nothing_else_of_size(arguments: list[str]) -> None:
    assert [name for name in START if name in command(*arguments)] == []


def test_importing_edgepipe_loads_nothing() -> None:
    found = loaded("import edgepipe; edgepipe.run; edgepipe.EdgepipeError")
    assert [name for name in (*START, "click") if name in found] == []


COMMANDS = [
    ["check", ROOT / "pipelines" / "digits.yaml"],
    ["inspect", "int8.tflite"],
    pytest.param(
        ["verify", "int8.tflite", "--device", "nucleo-l4r5zi", "--device", "host", "--integer-only"],
        marks=pytest.mark.slow,  # the host's latency is measured
    ),
    ["device", "list"],
    ["device", "show", "ethos-u55-128"],
    ["stages"],
    ["report", "report.json"],
    ["cache", "list", "--cache-dir", "cache"],
    ["cache", "clear", "--cache-dir", "cache"],
]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda words: " ".join(str(word) for word in words[:2]))
def test_what_tells_facts_loads_no_tensorflow(
    arguments: list[object], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("int8.tflite", "float.tflite"):
        (tmp_path / file).write_bytes((models / file).read_bytes())
    (tmp_path / "report.json").write_text(
        '{"schema": "edgepipe.report/1", "name": "n", "pipeline": "p", "seed": 1, "created": "2026", "versions": {}, '
        '"stages": [], "met": true}'
    )
    monkeypatch.chdir(tmp_path)
    assert [name for name in TENSORFLOW if name in command(*arguments)] == []
